"""What a server takes on: clients that leave, too much at once, keys, and its end."""

import asyncio
import threading

import httpx
import openai
import pytest

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import ConfigurationError
from tpo_graph.serving import Limits, create_app
from tpo_graph.serving.chat import cancel_on
from tpo_graph.serving.limits import SharedEvent

BODY = {"model": "bon-2", "messages": [{"role": "user", "content": "q"}]}


@pytest.fixture
def hanging(chat_server):
    return chat_server(always="hang")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_requests_to_the_policy(serve, hanging, chat_openai, stream):
    running = serve(chat_openai(hanging))
    async with openai.AsyncOpenAI(base_url=f"{running.root}/v1", api_key="any", max_retries=0) as client:
        asked = asyncio.create_task(client.chat.completions.create(**BODY, stream=stream))
        await asyncio.to_thread(hanging.asked.wait, 10)
        assert running.slots.taken == 1
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.to_thread(running.wait_until, lambda: hanging.disconnected == 1 and not running.slots.taken)
    assert len(hanging.requests) == 1
    assert 'status="499"' in running.http.get("/metrics").text


async def test_a_client_that_leaves_a_stream_in_the_middle(serve, chat_server, chat_openai):
    behind = chat_server(faults=[None, "hang"])
    running = serve(chat_openai(behind))
    async with openai.AsyncOpenAI(base_url=f"{running.root}/v1", api_key="any", max_retries=0) as client:
        # the head of the response comes with the first step, and then the critic hangs
        stream = await client.chat.completions.create(**{**BODY, "model": "tpo-d1-n2"}, stream=True)
        await asyncio.to_thread(running.wait_until, lambda: len(behind.requests) == 2)
        await stream.close()
        await asyncio.to_thread(running.wait_until, lambda: behind.disconnected == 1 and not running.slots.taken)
    assert len(behind.requests) == 2


def test_more_than_its_slots_are_refused(serve, chat_server, chat_openai):
    behind = chat_server(seconds=0.5)
    running = serve(chat_openai(behind), limits=Limits(max_concurrency=1))
    first = threading.Thread(target=running.chat, kwargs={"model": "bon-1"})
    first.start()
    behind.asked.wait(10)
    response = running.post(BODY)
    told = response.json()["error"]
    assert (response.status_code, told["type"], told["code"]) == (429, "rate_limit_error", "too_many_requests")
    assert response.headers["retry-after"] == "1"
    first.join()


def test_who_has_an_answer_may_ask_again_at_once(serve):
    running = serve(scripted_policy(), limits=Limits(max_concurrency=1))
    for stream in [False, True] * 10:
        assert running.post({**BODY, "stream": stream}).status_code == 200


def test_openais_client_comes_back_after_a_429(serve, chat_server, chat_openai):
    behind = chat_server(seconds=0.3)
    running = serve(chat_openai(behind), limits=Limits(max_concurrency=1))
    first = threading.Thread(target=running.chat, kwargs={"model": "bon-1"})
    first.start()
    behind.asked.wait(10)
    patient = running.client.with_options(max_retries=3)
    assert patient.chat.completions.create(**BODY).choices[0].message.content.startswith("cand")
    first.join()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(serve, chunked):
    policy = scripted_policy()
    running = serve(policy, limits=Limits(max_body_bytes=1000))

    def pieces():
        for _ in range(20):
            yield b"x" * 100

    content = pieces() if chunked else b"x" * 1001
    headers = {"content-type": "application/json"}
    response = running.http.post("/v1/chat/completions", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert running.post(BODY).status_code == 200


def test_n_and_depth_are_limited_wherever_they_are_said(serve):
    running = serve(scripted_policy(), limits=Limits(max_n=4, max_depth=0))
    said = [{"model": "bon-5"}, {"model": "tpo-d1-n2"}, {"model": "tpo"}, {"model": "bon", "tpo": {"n": 5}}]
    params = [running.post({**BODY, **each}).json()["error"]["param"] for each in said]
    assert params == ["tpo.n", "tpo.depth", "tpo.n", "tpo.n"]
    assert running.post({**BODY, "model": "bon-4"}).status_code == 200
    assert "tpo-d2-n5" not in [model.id for model in running.client.models.list()]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_n": 0},
        {"max_concurrency": 0},
        {"max_depth": -1},
        {"keep_alive_seconds": 0},
        {"max_body_bytes": 0},
        {"max_body_seconds": 0},
    ],
)
def test_limits_have_to_leave_something(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Limits(**wrong)


def test_one_of_several_keys_is_asked_for(serve):
    running = serve(scripted_policy(), api_keys=["first", "sécond"])
    assert running.post(BODY, headers={"authorization": "bearer first"}).status_code == 200
    assert running.http.get("/v1/models", headers={"authorization": "Bearer sécond".encode()}).status_code == 200
    assert running.http.get("/health").status_code == 200
    for path in ("/v1/models", "/v1/models/tpo", "/metrics"):
        assert running.http.get(path).status_code == 401
    for given in ("Bearer firs", "Bearer first2", "Basic first", "first", "Bearer \xff"):
        response = running.post(BODY, headers={"authorization": given.encode("latin-1")})
        told = response.json()["error"]
        assert (response.status_code, told["type"], told["code"]) == (401, "authentication_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


def test_the_client_raises_a_wrong_key(serve):
    running = serve(scripted_policy(), api_keys=["right"], api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        running.chat()


def test_an_empty_key_is_none(serve):
    with pytest.raises(ConfigurationError, match="empty"):
        serve(scripted_policy(), api_keys=[" "])


def test_a_server_without_a_policy(serve):
    with pytest.raises(ConfigurationError, match="no policy"):
        serve({})


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_is_told_to_who_waits(serve, hanging, chat_openai, stream):
    running = serve(chat_openai(hanging))
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(running.post({**BODY, "stream": stream})))
    waiting.start()
    hanging.asked.wait(10)
    running.close()
    waiting.join(10)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "shutting_down")
    assert "x-should-retry" not in answers[0].headers
    assert running.post(BODY).status_code == 503
    health = running.http.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "closing")
    running.wait_until(lambda: hanging.disconnected == 1)


def test_health_and_metrics(serve):
    running = serve({"one": scripted_policy()})
    assert running.http.get("/health").json() == {"status": "ok", "in_flight": 0, "max_concurrency": 64}
    answer = running.chat()
    running.post({**BODY, "n": 2})
    response = running.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    assert 'tpo_requests_total{mode="tpo",policy="one",status="200"} 1.0' in lines
    assert 'tpo_requests_total{mode="",policy="",status="400"} 1.0' in lines
    assert 'tpo_runs_total{mode="tpo",policy="one",stop_reason="depth"} 1.0' in lines
    assert 'tpo_steps_total{mode="tpo",policy="one"} 1.0' in lines
    assert f'tpo_policy_tokens_total{{kind="prompt",policy="one"}} {float(answer.usage.prompt_tokens)}' in lines
    assert "tpo_requests_in_flight 0.0" in lines
    assert 'tpo_request_seconds_count{mode="tpo",policy="one"} 1.0' in lines


async def asked(app, body=BODY):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post("/v1/chat/completions", json=body)


async def silent(app):
    """A client that sends the head of a request and no body; returns the status it is told."""
    gone, told = asyncio.Event(), []

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        told.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return told[0]["status"]


async def test_who_sends_no_body_holds_no_slot():
    app = create_app({"one": scripted_policy()}, number_reward(), limits=Limits(max_concurrency=1))
    waiting = asyncio.create_task(silent(app))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert (await asked(app)).status_code == 200
    waiting.cancel()


async def test_a_body_that_does_not_come_is_not_waited_for():
    app = create_app({"one": scripted_policy()}, number_reward(), limits=Limits(max_body_seconds=0.05))
    assert await silent(app) == 408


def test_one_app_serves_one_event_loop_after_another():
    app = create_app({"one": scripted_policy()}, number_reward())
    assert [asyncio.run(asked(app)).status_code for _ in range(3)] == [200] * 3
    app.state.slots.closing.set()
    assert asyncio.run(asked(app)).status_code == 503


def test_a_signal_reaches_every_loop():
    signal, ended = SharedEvent(), []

    async def wait():
        await signal.wait_async()
        ended.append(True)

    loops = [threading.Thread(target=asyncio.run, args=(wait(),)) for _ in range(3)]
    for each in loops:
        each.start()
    left = asyncio.new_event_loop()
    waiting = left.create_task(wait())
    left.run_until_complete(asyncio.sleep(0.05))
    waiting.cancel()
    left.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    left.close()
    signal.set()
    for each in loops:
        each.join(10)
    asyncio.run(wait())
    assert (ended, signal.is_set()) == ([True] * 4, True)


async def test_what_fails_while_work_waits_is_not_taken_for_an_end():
    async def fails():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await cancel_on(fails(), asyncio.sleep(60))
