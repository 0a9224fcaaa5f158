"""What a request asks for: the recipe in its model name, its settings, and what its policy has to take."""

import json

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph.run_parts import RunParts
from tpo_graph.serving import Limits
from tpo_graph.serving.call import ModelName, call_arguments, listed_names
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.requests import ChatRequest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}
PICTURE = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}
BODY = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}


@pytest.mark.parametrize(
    ("name", "policy", "settings"),
    [
        ("tpo", "one", {"mode": "tpo"}),
        ("tpo-d2-n5", "one", {"mode": "tpo", "depth": 2, "n": 5}),
        ("tpo-n5-d2", "one", {"mode": "tpo", "depth": 2, "n": 5}),
        ("tpo-d0", "one", {"mode": "tpo", "depth": 0}),
        ("revision-d3-n4/a/b", "a/b", {"mode": "revision", "depth": 3, "n": 4}),
        ("bon-16", "one", {"mode": "bon", "n": 16}),
        ("bon-n16", "one", {"mode": "bon", "n": 16}),
        ("bon/one", "one", {"mode": "bon"}),
    ],
)
def test_names(name, policy, settings):
    assert ModelName.parse(name, ["one", "a/b"]) == ModelName(policy, settings)


@pytest.mark.parametrize(
    "name",
    ["gpt-4o", "tpo-x", "tpo-d2-d3", "tpo-5", "bon-d2", "bon-0", "tpo/other", "tpo/", "tpo--n5", "TPO", "tpo-n٣"],
)
def test_names_of_no_model(name):
    with pytest.raises(RequestRefusedError, match="does not exist") as caught:
        ModelName.parse(name, ["one"])
    assert (caught.value.status, caught.value.param, caught.value.code) == (404, "model", "model_not_found")
    assert caught.value.hint.endswith("Policies here: one.")


def test_names_beyond_the_limits_are_not_listed():
    names = list(listed_names(["one", "two"], Limits(max_n=5)))
    assert names[:3] == ["tpo", "tpo-d2-n5", "revision"]
    assert names[-1] == "bon/two"
    assert list(listed_names(["one"], Limits(max_depth=1)))[:3] == ["tpo", "revision", "bon"]


def asked(policy, change, *, limits=None, **parts):
    """The arguments of a call, as from a server with this one policy."""
    chat = ChatRequest.parse(json.dumps({**BODY, **change}).encode())
    loaded = RunParts(policy=policy, reward=number_reward(), **parts).load()
    return call_arguments(chat, ModelName.parse(chat.model, ["one"]), loaded, limits or Limits())


def refusal(*arguments, **options):
    with pytest.raises(RequestRefusedError) as caught:
        asked(*arguments, **options)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tpo": {"depth": -1}}, "tpo.depth"),
        ({"tpo": {"temprature": 1}}, "tpo.temprature"),
        ({"tpo": {"temperature": 1}}, "tpo.temperature"),
        ({"tpo": {"n": 5}}, "tpo.n"),
        ({"tpo": {"mode": "tpo"}}, "tpo.mode"),
        ({"seed": 1, "tpo": {"seed": 2}}, "tpo.seed"),
        ({"model": "bon-65"}, "tpo.n"),
        ({"model": "bon", "tpo": {"n": 65}}, "tpo.n"),
        ({"model": "tpo-d21"}, "tpo.depth"),
        ({"model": "revision", "tpo": {"depth": 21}}, "tpo.depth"),
        ({"tpo": {"timeout": None}}, "tpo.timeout"),
        ({"tpo": {"timeout": 601}}, "tpo.timeout"),
        ({"tpo": {"max_retries": 3}}, "tpo.max_retries"),
    ],
    ids=str,
)
def test_settings_that_can_not_be_used(change, param):
    error = refusal(scripted_policy(), change)
    assert (error.param, error.code) == (param, "invalid_value")
    assert param.removeprefix("tpo.") in error.message


def test_defaults_of_the_server_are_limited_too():
    policy, limits = scripted_policy(), Limits(max_n=4, max_depth=0)
    assert refusal(policy, {"model": "tpo-n4"}, limits=limits).param == "tpo.depth"
    assert asked(policy, {"model": "bon-4"}, limits=limits) == {"mode": "bon", "n": 4}


def test_a_setting_may_be_named_twice_with_one_value():
    assert asked(scripted_policy(), {"seed": 1, "tpo": {"n": 1, "seed": 1}}) == {"mode": "bon", "n": 1, "seed": 1}


NOTHING = [{"n": 1}, {"n": None}, {"logprobs": False}, {"top_logprobs": 0}, {"modalities": ["text"]}, {"tools": None}]
NOTHING += [{"tools": []}, {"tool_choice": "none"}, {"unheard_of": None}, {"stream_options": None}, {"stop": []}]
NOTHING += [{"response_format": {"type": "text"}}, {"tpo": {}}, {"tpo": {"n": 1}}, {"tpo": None}]


@pytest.mark.parametrize("change", NOTHING, ids=str)
def test_what_asks_for_nothing_changes_nothing(change):
    assert asked(scripted_policy(), change) == {"mode": "bon", "n": 1}


def test_a_schema_that_is_not_valid():
    schema = {"type": "strin", "properties": {}}
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    error = refusal(scripted_policy(), {"response_format": response_format})
    assert (error.param, error.code) == ("response_format", "invalid_value")
    assert "strin" in error.message


class Plain(BaseChatModel):
    """A policy without a field for anything."""

    @property
    def _llm_type(self):
        return "plain"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage("cand 0"))])


POLICIES = {
    "plain": Plain(),
    "wrapped": scripted_policy().with_fallbacks([Plain()]),
    "opaque": RunnableLambda(lambda messages: AIMessage("cand 0")),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"seed": 7}, "seed"),
        ({"tools": [TOOL]}, "tools"),
        ({"top_p": 0.5, "tools": [TOOL]}, "top_p"),
        ({"user": "me"}, "user"),
        ({"tpo": {"seed": 7}}, "tpo.seed"),
        ({"tpo": {"update_temperature": 0.5}}, "tpo.update_temperature"),
        ({"tpo": {"loss_max_new_tokens": 5}}, "tpo.loss_max_new_tokens"),
    ],
    ids=str,
)
def test_what_the_policy_can_not_take_is_refused_by_name(policy, change, param):
    error = refusal(POLICIES[policy], change)
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert param in error.message


def test_a_policy_that_is_not_openais_gets_no_fields_of_openai():
    assert refusal(scripted_policy(), {"logit_bias": {"17": 1}}).param == "logit_bias"


@pytest.mark.parametrize("policy", ["plain", "opaque"])
def test_a_request_for_nothing_special_is_served(serve, policy):
    body = {**BODY, "tpo": {"sample_temperature": None}}
    assert serve(POLICIES[policy]).post(body).json()["choices"][0]["message"]["content"] == "cand 0"


def test_the_critic_has_to_take_what_is_meant_for_it():
    policy = scripted_policy()
    assert refusal(policy, {"tpo": {"gradient_top_p": 0.5}}, critic=Plain()).param == "tpo.gradient_top_p"
    assert asked(policy, {"temperature": 0.5, "tpo": {"update_top_p": 0.5}}, critic=Plain())["temperature"] == 0.5


def test_an_image_that_the_policy_would_not_see_is_refused():
    policy = scripted_policy()
    messages = [{"role": "system", "content": [{"type": "text", "text": "Look."}]}, PICTURE]
    error = refusal(policy, {"messages": messages}, prompts="base")
    assert (error.param, error.code) == ("messages[1].content[1]", "unsupported_parameter")
    assert "'base' shows the policy texts alone" in error.message
    assert asked(policy, {"messages": messages[:1] + BODY["messages"]}, prompts="base")


def test_an_image_reaches_a_policy_that_is_shown_the_conversation(serve):
    policy = scripted_policy()
    assert serve(policy).post({**BODY, "messages": [PICTURE]}).status_code == 200
    assert policy.requests[0][0].content[1] == IMAGE
