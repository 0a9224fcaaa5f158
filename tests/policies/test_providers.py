"""What providers' errors mean: a table of what they say."""

import pytest

from tpo_graph.policies.providers import ProviderFailure, policy_failed


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
