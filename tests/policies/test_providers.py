"""What providers' errors mean, and how the models inside wrappers are found."""

import httpx
import pytest

from tpo_graph.errors import PolicyError
from tpo_graph.policies.providers import ProviderFailure, change_models, models_inside, policy_failed, unbind
from tpo_graph.testing import ScriptedChatModel


class ProviderError(Exception):
    """An error as OpenAI's client makes it of a response."""

    def __init__(self, status, message, param=None):
        super().__init__(f"Error code: {status} - {{'error': {{'message': {message!r}}}}}")
        self.status_code, self.param, self.body = status, param, {"message": message}


LLAMA_CPP = "Value must be between 1 <= value <= 8, but got 20"


@pytest.mark.parametrize(
    ("error", "named", "smaller"),
    [
        (ProviderError(400, "Only n = 1 is supported"), True, 1),
        (ProviderError(400, LLAMA_CPP), True, 8),
        (ProviderError(422, "Unknown field", param="n"), True, 10),
        (ProviderError(500, "n > 1 is not supported"), True, 1),
        (ProviderError(400, "The content was flagged"), False, 10),
        (ProviderError(400, "In 'first line\\n second line'"), False, 10),
        (TypeError("got an unexpected keyword argument 'n'"), True, 10),
        (ValueError("no"), False, 10),
    ],
)
def test_what_a_refusal_of_20_completions_says(error, named, smaller):
    failure = ProviderFailure.of(error)
    assert failure.may_refuse_n
    assert (failure.names_n(20), failure.smaller_n(20)) == (named, smaller)


@pytest.mark.parametrize(
    "error",
    [
        ProviderError(500, "The server had an error"),
        ProviderError(429, "n too large for the rate"),
        ConnectionError("n"),
    ],
)
def test_what_is_no_refusal_of_n(error):
    assert not ProviderFailure.of(error).may_refuse_n


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ProviderError(400, "Unsupported parameter: 'temperature' is not supported"), "sample_temperature=none"),
        (ProviderError(400, "Not here", param="top_p"), "sample_top_p=none"),
        (ProviderError(422, "max_completion_tokens: too large"), "sample_max_new_tokens=none"),
        (ProviderError(400, "Unsupported parameter: 'seed' is not supported with this model."), "set seed to none"),
        (ProviderError(400, "This model's maximum context length is 4096 tokens, and max_tokens is 2048"), "max_shown"),
        (ProviderError(400, "request (402 tokens) exceeds the available context size (256 tokens)"), "context_tokens="),
        (ProviderError(500, "Context size has been exceeded."), "context_tokens="),
        (ProviderError(400, "Bad", param="logit_bias"), "does not take 'logit_bias'"),
    ],
)
def test_a_hint_says_what_to_change(error, hint):
    assert hint in policy_failed(error).hint


@pytest.mark.parametrize(
    "error", [ProviderError(400, "The content was flagged"), ProviderError(500, "oops"), ValueError("context length")]
)
def test_no_hint_is_better_than_a_wrong_one(error):
    assert policy_failed(error).hint == ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ProviderError(400, "no"), "refused"),
        (ValueError("no"), "unsupported"),
        (PolicyError("The provider returned no completion."), "other"),
        (ProviderError(403, "no"), "key"),
        (ProviderError(404, "no"), "not_found"),
        (ProviderError(529, "overloaded"), "transient"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError("gone"), "unreachable"),
        (httpx.ConnectTimeout("no route"), "unreachable"),
        (httpx.ReadError("gone"), "unreachable"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (ZeroDivisionError("1 / 0"), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}",
)
def test_what_kind_of_failure_an_error_is(error, kind):
    assert ProviderFailure.of(error).kind == kind


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "too long", "code": 1}}', "too long"),
        ('{"error": "too\\nlong"}', "too long"),
        ('{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        ("<html>\nBad gateway</html>", "<html> Bad gateway</html>"),
        ("x" * 400, "x" * 300 + "..."),
        ("null", ""),
    ],
)
def test_what_a_servers_answer_says(body, message):
    failure = ProviderFailure.of_response(422, body)
    assert (failure.kind, failure.status, failure.message) == ("refused", 422, message)


def test_a_refused_connection_is_found_behind_what_it_caused():
    timeout = TimeoutError("Request timed out.")
    timeout.__cause__ = ConnectionRefusedError(111, "refused")
    failure = ProviderFailure.of(timeout)
    assert (failure.kind, failure.summary) == ("unreachable", "the connection was refused")
    assert failure.hint("http://h/v1") == "Is the server at http://h/v1 running?"


def test_the_models_inside_wrappers_are_found_and_changed():
    first, second = ScriptedChatModel(["a"]), ScriptedChatModel(["b"])
    policy = first.bind(user="me").with_retry().with_fallbacks([second.with_config(tags=["t"])])
    assert models_inside(policy) == [first, second]
    changed = change_models(policy, lambda model: model.model_copy(update={"temperature": 0.5}))
    assert [model.temperature for model in models_inside(changed)] == [0.5, 0.5]
    assert models_inside(policy | str) == models_inside(None) == []


def test_outer_bindings_win():
    model = ScriptedChatModel(["a"])
    policy = model.bind(stop=["a"], user="me").with_config(tags=["inner"]).bind(stop=["b"])
    inner, arguments, config = unbind(policy)
    assert (inner, arguments, config["tags"]) == (model, {"stop": ["b"], "user": "me"}, ["inner"])
