"""Failures as clients see them: a status, an object, no traceback."""

import logging

import httpx
import openai
import pytest

from tests.tpo_script import scripted_policy
from tpo_graph.run_parts import ModelStore
from tpo_graph.testing import TableReward

BODY = {"model": "bon-2", "messages": [{"role": "user", "content": "q"}]}


@pytest.mark.parametrize(
    ("fault", "status", "code", "says"),
    [
        ("500", 502, "policy_failed", "The server had an error"),
        ("401", 502, "policy_failed", "Check the API key"),
        ("429", 502, "policy_failed", "Rate limit reached"),
        ("drop", 502, "policy_failed", "The policy failed"),
    ],
)
def test_a_policy_that_fails(serve, chat_server, chat_openai, fault, status, code, says):
    response = serve(chat_openai(chat_server(always=fault))).post(BODY)
    told = response.json()["error"]
    assert (response.status_code, told["code"], told["type"]) == (status, code, "policy_error")
    assert says in told["message"]
    assert "Traceback" not in response.text
    assert response.headers["x-should-retry"] == "false"


def test_what_the_policy_refuses_is_the_clients_to_change(serve, chat_server, chat_openai):
    running = serve(chat_openai(chat_server(refused_knobs=["stop"])))
    with pytest.raises(openai.BadRequestError, match="Unsupported parameter") as caught:
        running.chat(stop="x")
    assert caught.value.code == "refused_by_policy"


def test_a_reward_model_that_fails(serve):
    told = serve(scripted_policy(), TableReward({})).post(BODY)
    assert (told.status_code, told.json()["error"]["code"]) == (502, "reward_failed")


def test_a_run_that_fails_late_gives_the_best_so_far(serve):
    policy = scripted_policy(loss=RuntimeError("gone"))
    answer = serve(policy).chat()
    assert (answer.choices[0].message.content, answer.tpo["stop_reason"]) == ("cand 1", "policy_failed")


def test_a_budget_that_is_too_small(serve):
    told = serve(scripted_policy()).post({**BODY, "tpo": {"budget_requests": 1}}).json()["error"]
    assert told["code"] == "budget"
    assert told["hint"] in told["message"]


class BrokenStore(ModelStore):
    """Fails with what no error of ours covers."""

    def policy(self, name):
        raise SystemError("a secret")


@pytest.mark.parametrize("stream", [False, True])
def test_a_defect_reaches_the_log_and_not_the_client(serve, caplog, stream):
    running = serve("scripted", models=BrokenStore())
    with caplog.at_level(logging.ERROR):
        response = running.post({**BODY, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (500, "server_error")
    assert error["message"] == "The server failed. The details are in its log."
    assert "a secret" in caplog.text
    assert running.slots.taken == 0


def test_a_reward_model_of_ones_own_that_raises(serve):
    class Broken:
        async def score(self, messages, responses):
            raise SystemError("out of order")

    told = serve(scripted_policy(), Broken()).post(BODY)
    assert (told.status_code, told.json()["error"]["type"]) == (502, "reward_error")
    assert "out of order" in told.json()["error"]["message"]


def test_a_failure_in_the_middle_of_a_stream_is_an_event(serve):
    policy = scripted_policy(loss=RuntimeError("gone"))
    running = serve(policy)
    options = {"stream": True, "extra_body": {"tpo": {"on_failure": "raise"}}}
    with pytest.raises(openai.APIError, match="gone") as caught:
        list(running.chat(**options))
    assert not isinstance(caught.value, openai.APIStatusError)
    body = {**BODY, "model": "tpo-d1-n2", "stream": True, "tpo": {"on_failure": "raise"}}
    text = running.post(body).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"code":"policy_failed"' in text


def test_a_failure_before_the_first_event_has_a_status(serve):
    running = serve(scripted_policy(sample=RuntimeError("gone")))
    with pytest.raises(openai.APIStatusError) as caught:
        running.chat(stream=True)
    assert caught.value.status_code == 502


@pytest.mark.parametrize("name", ["gpt-4o", "tpo-x", "tpo-d2-d3", "tpo-5", "bon-d2", "bon-0", "tpo/other", "", "tpo/"])
def test_a_model_that_is_none(serve, name):
    policy = scripted_policy()
    response = serve(policy).post({**BODY, "model": name})
    told = response.json()["error"]
    assert (response.status_code, told["param"], told["code"]) == (404, "model", "model_not_found")
    assert "scripted" in told["hint"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/chat/completions", 405)])
def test_a_path_that_is_none(serve, method, path, status):
    response = serve(scripted_policy()).http.request(method, path)
    assert (response.status_code, response.json()["error"]["type"]) == (status, "invalid_request_error")


def test_names_are_loaded_once_and_a_wrong_one_is_told(serve):
    running = serve({"one": "server:http://127.0.0.1:9/v1#m", "two": scripted_policy()}, "length:1-9 words")
    assert running.chat(model="bon-1/two").choices[0].message.content == "cand 0"
    told: httpx.Response = running.post({**BODY, "model": "bon-1/one"})
    assert (told.status_code, told.json()["error"]["code"]) == (502, "policy_failed")
    assert "running" in told.json()["error"]["hint"]


def test_a_reward_name_that_is_wrong_is_told_by_request(serve):
    told = serve(scripted_policy(), "nothing:at:all").post(BODY)
    assert "Unknown reward model" in told.json()["error"]["message"]


def test_a_critic_and_a_policy_of_one_name_are_one(serve, chat_server):
    behind, critic = chat_server(), chat_server()
    name, other = (f"server:{each.url}#m" for each in (behind, critic))
    assert serve({"one": name}, critic=name).chat().tpo["reward"] == 5.0
    assert len(behind.requests) == 4
    assert serve({"one": name, "two": name}, critic=other).chat(model="tpo-d1-n2/two").tpo["stop_reason"] == "depth"
    assert (len(behind.requests), len(critic.requests)) == (6, 2)
