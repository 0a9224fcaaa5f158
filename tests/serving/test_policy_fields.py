"""Fields that this policy can't take are refused by the client's own name, before anything is paid for."""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from tests.serving.conftest import served
from tests.tpo_script import number_reward, scripted_policy
from tpo_graph.serving import create_app

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}
PICTURE = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}
BODY = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}


class Plain(BaseChatModel):
    """A policy without a field for anything."""

    _llm_type = "plain"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage("cand 0"))])


@pytest.fixture(scope="module")
def running():
    policies = {
        "plain": Plain(),
        "wrapped": scripted_policy().with_fallbacks([Plain()]),
        "unknown": RunnableLambda(lambda messages: AIMessage("cand 0")),
        "scripted": scripted_policy(),
    }
    with served(create_app(policies, number_reward())) as running:
        yield running


@pytest.mark.parametrize("policy", ["plain", "wrapped", "unknown"])
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
def test_what_the_policy_can_not_take_is_refused_by_name(running, policy, change, param):
    response = running.post({**BODY, **change, "model": f"bon-1/{policy}"})
    told = response.json()["error"]
    assert (response.status_code, told["param"], told["code"]) == (400, param, "unsupported_parameter")
    assert param in told["message"]


@pytest.mark.parametrize("policy", ["plain", "unknown"])
def test_a_request_that_wants_nothing_of_it_is_served(running, policy):
    body = {**BODY, "model": f"bon-1/{policy}", "tpo": {"sample_temperature": None}}
    assert running.post(body).json()["choices"][0]["message"]["content"] == "cand 0"


def test_the_critic_takes_what_is_said_to_it(serve):
    running = serve(scripted_policy(), critic=Plain())
    told = running.post({**BODY, "tpo": {"gradient_top_p": 0.5}}).json()["error"]
    assert told["param"] == "tpo.gradient_top_p"
    assert running.post({**BODY, "temperature": 0.5, "tpo": {"update_top_p": 0.5}}).status_code == 200


def test_an_image_that_the_policy_would_not_see_is_refused(serve):
    policy = scripted_policy()
    running = serve(policy, prompts="base")
    messages = [{"role": "system", "content": [{"type": "text", "text": "Look."}]}, PICTURE]
    response = running.post({**BODY, "messages": messages})
    told = response.json()["error"]
    assert (response.status_code, told["param"]) == (400, "messages[1].content[1]")
    assert "'base' shows the policy texts alone" in told["message"]
    assert policy.requests == []
    assert running.post({**BODY, "messages": messages[:1] + BODY["messages"]}).status_code == 200


def test_elsewhere_it_goes_to_the_policy(serve):
    policy = scripted_policy()
    assert serve(policy).post({**BODY, "messages": [PICTURE]}).status_code == 200
    assert policy.requests[0][0].content[1] == IMAGE


def test_the_seed_reaches_a_first_reply_with_tools(serve):
    policy = scripted_policy()
    assert serve(policy).post({**BODY, "model": "bon-2", "seed": 7, "tools": [TOOL]}).status_code == 200
    assert [knobs["seed"] for knobs in policy.knobs] == [7, 8]


def test_the_budget_of_tokens_is_that_of_one_request(serve):
    running = serve(scripted_policy())
    body = {**BODY, "model": "tpo-d1-n2", "max_tokens": 50}
    assert running.post({**body, "tpo": {"budget_tokens": 1}}).json()["tpo"]["stop_reason"] == "budget"
    assert running.post(body).json()["tpo"]["stop_reason"] == "depth"
