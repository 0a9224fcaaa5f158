"""Failures as clients see them: a status, an object, no traceback."""

import logging

import openai
import pytest

from tests.tpo_script import scripted_policy
from tpo_graph.run_parts import ModelStore
from tpo_graph.testing import TableReward

BODY = {"model": "bon-2", "messages": [{"role": "user", "content": "q"}]}


@pytest.mark.parametrize(
    ("fault", "message"),
    [("500", "The server had an error"), ("401", "Check the API key"), ("drop", "The policy failed")],
)
def test_a_policy_that_fails(serve, chat_server, chat_openai, fault, message):
    response = serve(chat_openai(chat_server(always=fault))).post(BODY)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (502, "policy_failed", "policy_error")
    assert message in error["message"]
    assert "Traceback" not in response.text
    assert response.headers["x-should-retry"] == "false"


def test_what_the_policy_refuses_is_the_clients_to_change(serve, chat_server, chat_openai):
    running = serve(chat_openai(chat_server(refused_knobs=["stop"])))
    with pytest.raises(openai.BadRequestError, match="Unsupported parameter") as caught:
        running.chat(stop="x")
    assert caught.value.code == "refused_by_policy"


def test_a_reward_model_that_fails(serve):
    class Broken:
        async def score(self, messages, responses):
            raise SystemError("out of order")

    for reward, message in ((TableReward({}), "cand"), (Broken(), "out of order")):
        response = serve(scripted_policy(), reward).post(BODY)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (502, "reward_failed", "reward_error")
        assert message in error["message"]


def test_a_run_that_fails_late_gives_the_best_so_far(serve):
    answer = serve(scripted_policy(loss=RuntimeError("gone"))).chat()
    assert (answer.choices[0].message.content, answer.tpo["stop_reason"]) == ("cand 1", "policy_failed")


def test_a_budget_that_is_too_small(serve):
    error = serve(scripted_policy()).post({**BODY, "tpo": {"budget_requests": 1}}).json()["error"]
    assert error["code"] == "budget"
    assert error["hint"] in error["message"]


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


def test_a_failure_in_the_middle_of_a_stream_is_an_event(serve):
    running = serve(scripted_policy(loss=RuntimeError("gone")))
    with pytest.raises(openai.APIError, match="gone") as caught:
        list(running.chat(stream=True, extra_body={"tpo": {"on_failure": "raise"}}))
    assert not isinstance(caught.value, openai.APIStatusError)
    body = {**BODY, "model": "tpo-d1-n2", "stream": True, "tpo": {"on_failure": "raise"}}
    text = running.post(body).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"code":"policy_failed"' in text
    counted = 'tpo_requests_total{mode="tpo",policy="scripted",status="502"} 2.0'
    running.wait_until(lambda: counted in running.http.get("/metrics").text)


def test_a_failure_before_the_first_event_has_a_status(serve):
    with pytest.raises(openai.APIStatusError) as caught:
        serve(scripted_policy(sample=RuntimeError("gone"))).chat(stream=True)
    assert caught.value.status_code == 502


def test_a_path_or_a_model_that_does_not_exist(serve):
    running = serve(scripted_policy())
    for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/chat/completions", 405)):
        response = running.http.request(method, path)
        assert (response.status_code, response.json()["error"]["type"]) == (status, "invalid_request_error")
    response = running.post({**BODY, "model": "gpt-4o"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_each_policy_is_loaded_when_it_is_asked(serve):
    running = serve({"one": "server:http://127.0.0.1:9/v1#m", "two": scripted_policy()}, "length:1-9 words")
    assert running.chat(model="bon-1/two").choices[0].message.content == "cand 0"
    response = running.post({**BODY, "model": "bon-1/one"})
    assert (response.status_code, response.json()["error"]["code"]) == (502, "policy_failed")
    assert "running" in response.json()["error"]["hint"]


def test_a_wrong_reward_name_is_reported_to_the_client(serve):
    error = serve(scripted_policy(), "nothing:at:all").post(BODY).json()["error"]
    assert "Unknown reward model" in error["message"]


def test_a_critic_and_a_policy_of_one_name_are_one(serve, chat_server):
    behind, critic = chat_server(), chat_server()
    name, other = (f"server:{server.url}#m" for server in (behind, critic))
    assert serve({"one": name}, critic=name).chat().tpo["reward"] == 5.0
    assert len(behind.requests) == 4
    assert serve({"one": name, "two": name}, critic=other).chat(model="tpo-d1-n2/two").tpo["stop_reason"] == "depth"
    assert (len(behind.requests), len(critic.requests)) == (6, 2)
