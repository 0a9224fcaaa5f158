"""What a server accepts: clients that leave, too much at once, keys, and its end."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import httpx
import openai
import pytest

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import ConfigurationError, TPOSettings
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


def test_more_requests_than_slots_are_refused_and_openais_client_comes_back(serve, chat_server, chat_openai):
    behind = chat_server(seconds=0.5)
    running = serve(chat_openai(behind), limits=Limits(max_concurrency=1))
    first = threading.Thread(target=running.chat, kwargs={"model": "bon-1"})
    first.start()
    behind.asked.wait(10)
    response = running.post(BODY)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "too_many_requests")
    assert response.headers["retry-after"] == "1"
    patient = running.client.with_options(max_retries=3)
    assert patient.chat.completions.create(**BODY).choices[0].message.content.startswith("cand")
    first.join()


def test_requests_that_hang_end_and_leave_their_slots_to_others(serve, chat_server, chat_openai):
    behind = chat_server(faults=["hang"] * 4)
    running = serve(chat_openai(behind), limits=Limits(max_concurrency=4), settings=TPOSettings(timeout=0.3))
    with ThreadPoolExecutor(4) as pool:
        statuses = [response.status_code for response in pool.map(lambda _: running.post(BODY), range(4))]
    assert statuses == [502] * 4
    assert running.slots.taken == 0
    assert running.post(BODY).status_code == 200


def test_who_has_an_answer_may_ask_again_at_once(serve):
    running = serve(scripted_policy(), limits=Limits(max_concurrency=1))
    for stream in [False, True] * 10:
        assert running.post({**BODY, "stream": stream}).status_code == 200


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


@pytest.mark.parametrize("limit", [field.name for field in fields(Limits)])
def test_limits_have_to_leave_something(limit):
    least = 0 if limit == "max_depth" else 1
    assert getattr(Limits(**{limit: least}), limit) == least
    with pytest.raises(ConfigurationError, match=limit):
        Limits(**{limit: least - 1})


def test_one_of_several_keys_is_asked_for(serve):
    running = serve(scripted_policy(), api_keys=["first", "sécond"])
    assert running.post(BODY, headers={"authorization": "bearer first"}).status_code == 200
    assert running.http.get("/v1/models", headers={"authorization": "Bearer sécond".encode()}).status_code == 200
    assert running.http.get("/health").status_code == 200
    for path in ("/v1/models", "/v1/models/tpo", "/metrics"):
        assert running.http.get(path).status_code == 401
    for header in ("Bearer firs", "Bearer first2", "Basic first", "first", "Bearer \xff"):
        response = running.post(BODY, headers={"authorization": header.encode("latin-1")})
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


def test_an_app_needs_a_policy_and_keys_that_are_not_empty():
    with pytest.raises(ConfigurationError, match="empty"):
        create_app({"one": scripted_policy()}, number_reward(), api_keys=[" "])
    with pytest.raises(ConfigurationError, match="no policy"):
        create_app({}, number_reward())


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_when_the_server_ends_gets_an_answer(serve, hanging, chat_openai, stream):
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


async def asked(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post("/v1/chat/completions", json=BODY)


async def silent(app, waiting=None):
    """The status for a client that sends the head of a request and no body; sets `waiting` when the app wants it."""
    messages = []

    async def receive():
        if waiting is not None:
            waiting.set()
        await asyncio.Event().wait()

    async def send(message):
        messages.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return messages[0]["status"]


async def test_who_sends_no_body_holds_no_slot():
    app = create_app({"one": scripted_policy()}, number_reward(), limits=Limits(max_concurrency=1))
    waiting = asyncio.Event()
    client = asyncio.create_task(silent(app, waiting))
    await waiting.wait()
    assert (await asked(app)).status_code == 200
    assert not client.done()
    client.cancel()


async def test_a_body_that_does_not_arrive_is_not_waited_for():
    app = create_app({"one": scripted_policy()}, number_reward(), limits=Limits(max_body_seconds=0.05))
    assert await silent(app) == 408


def test_one_app_serves_one_event_loop_after_another():
    app = create_app({"one": scripted_policy()}, number_reward())
    assert [asyncio.run(asked(app)).status_code for _ in range(3)] == [200] * 3
    app.state.slots.closing.set()
    assert asyncio.run(asked(app)).status_code == 503


def test_an_event_reaches_every_loop():
    event, ended = SharedEvent(), []

    async def wait():
        await event.wait_async()
        ended.append(True)

    loops = [threading.Thread(target=asyncio.run, args=(wait(),)) for _ in range(3)]
    for loop in loops:
        loop.start()
    left = asyncio.new_event_loop()
    waiting = left.create_task(wait())
    left.run_until_complete(asyncio.sleep(0))
    waiting.cancel()
    left.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    left.close()
    event.set()
    for loop in loops:
        loop.join(10)
    asyncio.run(wait())
    assert (ended, event.is_set()) == ([True] * 4, True)


async def test_an_event_that_fails_is_an_error_and_does_not_count_as_come():
    async def fails():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await cancel_on(fails(), asyncio.sleep(60))
