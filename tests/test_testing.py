"""The fault server does what it says: each fault as a client gets it, rates, seeds, strictness, statistics."""

import asyncio
import json
import ssl
import time
from collections import Counter

import httpx
import openai
import pytest

from tpo_graph import ConfigurationError
from tpo_graph.testing import FAULT_KINDS, ErrorAnswer, FaultServer, TableReward, marked_reward

TLS = ssl.create_default_context()  # else each request makes one, which takes most of its time
HELLO = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}


def ask(server: FaultServer, timeout: float = 5, **fields) -> httpx.Response:
    return httpx.post(f"{server.url}/chat/completions", json=HELLO | fields, timeout=timeout, verify=TLS)


def choice(server: FaultServer, **fields) -> dict:
    return ask(server, **fields).json()["choices"][0]


@pytest.fixture
def start():
    servers = []

    def start(*answer, **options) -> FaultServer:
        servers.append(FaultServer(*answer, **options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_a_whole_answer_is_read_by_openais_client(start):
    server = start(lambda request, number: f"text {number}")
    with openai.OpenAI(base_url=server.url, api_key="any") as client:
        (model,) = client.models.list().data
        answer = client.chat.completions.create(**HELLO | {"model": model.id}, n=3)
        parts = list(client.chat.completions.create(**HELLO, stream=True))
    assert [choice.message.content for choice in answer.choices] == ["text 0", "text 1", "text 2"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 6)
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "text 3"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 529])
def test_a_status_comes_with_words_that_fit(start, status):
    answer = ask(start(script=[str(status)]))
    assert answer.status_code == status
    assert answer.json()["error"]["message"] in FAULT_KINDS[str(status)]
    assert "retry-after" not in answer.headers


def test_errors_have_many_shapes(start):
    shapes = ["mistral", "detail", "string", "list", "text", "html", "empty"]
    server = start(script=[ErrorAnswer(422, "n is too large", shape, param="n") for shape in shapes])
    mistral, detail, string, many, text, page, empty = (ask(server) for _ in shapes)
    assert mistral.json()["object"] == "error"
    assert mistral.json()["message"]["detail"] == detail.json()["detail"]
    assert detail.json()["detail"][0] == {"type": "value_error", "loc": ["body", "n"], "msg": "n is too large"}
    assert string.json() == {"error": "n is too large"}
    assert many.json()[0]["error"]["message"] == text.text == "n is too large"
    assert (page.headers["content-type"].split(";")[0], "n is too large" in page.text) == ("text/html", True)
    assert empty.content == b""
    assert server.statuses == [422] * 7


def test_retry_after_is_sent_where_it_is_asked_for(start):
    server = start(script=["429_retry_after", ErrorAnswer(503, retry_after=0.5)])
    assert [ask(server).headers["retry-after"] for _ in range(2)] == ["1", "0.5"]


@pytest.mark.parametrize("kind", ["half_json", "empty_body", "html", "sse", "invalid_utf8"])
def test_a_200_that_is_no_json(start, kind):
    answer = ask(start(script=[kind]))
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"line 1 column|codec can't decode"):
        json.loads(answer.content)


def test_a_200_that_is_json_and_no_completion(start):
    server = start(script=["error_429", "error_500", "no_choices", "null_choices"])
    limited, failed, none, null = (ask(server) for _ in range(4))
    assert (limited.json()["error"]["code"], failed.json()["error"]["code"]) == (429, 500)
    assert (none.json()["choices"], null.json()["choices"]) == ([], None)
    assert server.statuses == [200] * 4


def test_connections_that_break(start):
    server = start(script=["disconnect", "cut_off"])
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        ask(server)
    with httpx.stream("POST", f"{server.url}/chat/completions", json=HELLO) as answer:
        assert answer.status_code == 200
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            answer.read()
    assert server.statuses == [None, 200]


def test_a_hang_and_a_trickle_have_no_end(start):
    server = start(script=["hang", "trickle"], trickle=0.02)
    with pytest.raises(httpx.ReadTimeout):
        ask(server, timeout=0.1)

    async def wait() -> None:
        async with httpx.AsyncClient(timeout=0.1, verify=TLS) as client, asyncio.timeout(0.4):
            await client.post(f"{server.url}/chat/completions", json=HELLO)

    with pytest.raises(TimeoutError):  # no single read takes so long
        asyncio.run(wait())
    while server.disconnected < 2:
        time.sleep(0.01)
    assert server.in_flight == 0


def test_completions_that_are_no_answers(start):
    kinds = ["empty_text", "null_text", "content_filter", "refusal", "tool_call"]
    server = start(lambda request, number: "0123456789", script=list(kinds))
    empty, null, cut, refused, called = (choice(server) for _ in kinds)
    assert (empty["message"]["content"], null["message"]["content"]) == ("", None)
    assert (cut["message"]["content"], cut["finish_reason"]) == ("01234", "content_filter")
    assert (refused["message"]["content"], "can't help" in refused["message"]["refusal"]) == (None, True)
    assert (called["message"]["tool_calls"][0]["function"]["name"], called["finish_reason"]) == (
        "look_up",
        "tool_calls",
    )


def test_thinking_in_the_text(start):
    kinds = ["thinking", "thinking_end_alone", "unfinished_thinking"]
    server = start(lambda request, number: "answer", script=list(kinds))
    whole, bare, unfinished = (choice(server) for _ in kinds)
    assert whole["message"]["content"].startswith("<think>") and "<revised_response>" in whole["message"]["content"]
    assert bare["message"]["content"].partition("</think>")[2].strip() == "answer"
    assert "<think>" not in bare["message"]["content"]
    assert "</think>" not in unfinished["message"]["content"] and unfinished["finish_reason"] == "length"


def test_fewer_completions_than_asked_for(start):
    server = start(script=["fewer", "fewer"])
    assert [len(ask(server, n=n).json()["choices"]) for n in (5, 1)] == [2, 1]
    assert server.injected == {"fewer": 1}  # of one there are no fewer


def test_the_same_seed_has_the_same_faults_at_the_rates_that_were_given(start):
    def drawn(seed: int, order) -> dict[int, str | None]:
        server = start(faults={"502": 0.2, "no_choices": 0.05}, seed=seed)
        with httpx.Client(verify=TLS) as client:
            answers = [client.post(f"{server.url}/chat/completions", json=HELLO | {"seed": key}) for key in order]
        faults = [request.fault for request in server.requests]
        assert server.injected == Counter(filter(None, faults))
        assert [answer.status_code for answer in answers] == [502 if fault == "502" else 200 for fault in faults]
        assert 50 <= server.injected["502"] <= 110 and 8 <= server.injected["no_choices"] <= 36
        return {request.body["seed"]: request.fault for request in server.requests}

    first = drawn(1, range(400))
    assert drawn(1, range(399, -1, -1)) == first
    assert drawn(2, range(400)) != first


def test_a_fault_is_drawn_anew_for_each_try(start):
    server = start(faults={"500": 0.5})
    statuses = [ask(server).status_code for _ in range(30)]
    assert 5 < statuses.count(200) < 25
    assert [request.attempt for request in server.requests] == list(range(1, 31))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_k": 4}, "top_k"),
        ({"n": 0}, "is not a number from"),
        ({"n": "many"}, "is not a number from"),
        ({"temperature": 2.5}, "is not a number from"),
        ({"messages": []}, "must not be empty"),
        ({"messages": [{"role": "person", "content": "x"}]}, "'person'"),
        ({"messages": [{"role": "user", "content": ""}]}, "content must not be empty"),
    ],
)
def test_a_strict_server_refuses_what_openai_does(start, fields, words):
    answer = ask(start(), **fields)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert ask(start(strict=False), **fields | {"n": 1}).status_code == 200


def test_a_body_that_is_no_json_is_refused(start):
    server = start()
    answer = httpx.post(f"{server.url}/chat/completions", content=b'{"model": ', verify=TLS)
    assert answer.status_code == 400 and "parse the JSON body" in answer.json()["error"]["message"]


def test_what_a_server_can_be_told_to_refuse_or_to_ignore(start):
    server = start(
        lambda request, number: "one two three",
        most_n=2,
        refused_fields=["logprobs"],
        ignored_fields=["max_completion_tokens"],
        roles=("user", "assistant"),
        alternating=True,
        api_key="secret",
    )
    messages = [{"role": role, "content": "x"} for role in ("system", "user", "user")]

    def told(**fields) -> str | dict:
        headers = {"Authorization": f"Bearer {fields.pop('key', 'secret')}"}
        body = HELLO | fields
        answer = httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, verify=TLS).json()
        return answer["error"]["message"] if "error" in answer else answer["choices"][0]

    assert told(key="wrong") == "Incorrect API key provided"
    assert "'logprobs'" in told(logprobs=True)
    assert told(n=3) == "Only n = 1 is supported"
    assert told(messages=messages) == "System role not supported"
    assert "alternate" in told(messages=messages[1:])
    assert told(max_completion_tokens=1)["message"]["content"] == "one two three"
    capped = told(max_tokens=2)
    assert (capped["message"]["content"], capped["finish_reason"]) == ("one two", "length")
    assert told(stop=["two"])["message"]["content"] == "one "


def test_a_cap_on_n_may_be_silent(start):
    assert len(ask(start(most_n=2, beyond_most_n="fewer"), n=5).json()["choices"]) == 2


def test_idle_connections_are_closed(start):
    server = start(keep_alive=0.05)
    with httpx.Client(verify=TLS) as client:
        for _ in range(2):
            client.post(f"{server.url}/chat/completions", json=HELLO)
            time.sleep(0.3)
    assert len({request.peer for request in server.requests}) == 2


def test_latency_is_that_of_the_longest_completion(start):
    server = start(lambda request, number: "a b c d", first_token=0.1, per_token=0.05)
    began = time.perf_counter()
    ask(server, n=4)
    assert 0.3 <= time.perf_counter() - began < 1


def test_texts_depend_on_the_request_and_revisions_are_in_the_tags_of_the_prompt(start):
    server = start()
    candidates = [row["message"]["content"] for row in ask(server, n=2).json()["choices"]]
    assert candidates[0] != candidates[1]
    assert candidates == [row["message"]["content"] for row in ask(start(), n=2).json()["choices"]]
    rewards = asyncio.run(TableReward(marked_reward).score([], candidates))
    prompt = f"<best>{candidates[0]}</best>"
    critique, revision = (
        choice(server, messages=[{"role": "user", "content": f"{prompt}\n{rest}"}])["message"]["content"]
        for rest in ("What is good in it?", "Put it between <<new>> and <</new>>.")
    )
    assert "[reward" not in critique and rewards[0] == marked_reward(candidates[0])
    assert revision.startswith("<<new>>") and revision.endswith("]<</new>>")


def test_statistics_tell_requests_by_n_status_fault_and_tries(start):
    server = start(script=["502", None, None])
    for n in (5, 5, 1):
        ask(server, n=n)
    assert server.statistics() == {
        "requests": 3,
        "by_n": {1: 1, 5: 2},
        "by_status": {"502": 1, "200": 2},
        "faults": {"502": 1},
        "bodies_by_tries": {1: 1, 2: 1},
        "most_in_flight": 1,
        "disconnected": 0,
    }


def test_unknown_faults_and_impossible_rates_are_refused():
    with pytest.raises(ConfigurationError, match=r"no fault 'half_jso'. Did you mean 'half_json'"):
        FaultServer(faults={"half_jso": 0.1})
    with pytest.raises(ConfigurationError, match="must be 0 to 1 together"):
        FaultServer(faults={"500": 0.6, "hang": 0.6})


def test_every_named_fault_can_be_served(start):
    for kind in FAULT_KINDS.keys() - {"hang", "trickle", "disconnect", "cut_off"}:
        ask(start(script=[kind]), n=2)
