"""Every field of a request reaches the policy, or is refused by name."""

import json

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.servers import ChatServer
from tests.serving.conftest import served
from tests.tpo_script import number_reward, phase_of, scripted_policy
from tpo_graph.serving import create_app

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODY = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}


@pytest.fixture
def behind(chat_server) -> ChatServer:
    return chat_server()


@pytest.fixture
def running(serve, behind, chat_openai):
    return serve(chat_openai(behind))


@pytest.fixture(scope="module")
def shared():
    """One server for the many requests that never reach a policy."""
    with ChatServer() as behind:
        policy = ChatOpenAI(model="scripted", base_url=behind.url, api_key="key", max_retries=0)
        with served(create_app({"scripted": policy}, number_reward())) as running:
            yield running, behind


@pytest.fixture(scope="module")
def scripted():
    """One server for the many requests that are served alike."""
    with served(create_app({"scripted": scripted_policy()}, number_reward())) as running:
        yield running


def test_knobs_reach_the_phases_that_write_answers(running, behind):
    running.chat(temperature=0.25, top_p=0.5, max_completion_tokens=77, seed=3, model="tpo-d1-n2")
    told = {phase_of(request.text): request.body for request in behind.requests}
    assert set(told) == {"sample", "loss", "gradient", "update"}
    for phase, body in told.items():
        writes = phase in ("sample", "update")
        assert (body["temperature"] == 0.25, body["top_p"] == 0.5) == (writes, writes)
        assert (body.get("max_completion_tokens", body.get("max_tokens")) == 77) == writes
        assert isinstance(body["seed"], int)
    assert told["sample"]["seed"] == 3
    assert told["sample"]["n"] == 2


def test_the_settings_of_a_phase_say_it_more_precisely(running, behind):
    running.chat(temperature=0.25, extra_body={"tpo": {"sample_temperature": 1.5}})
    assert behind.bodies[0]["temperature"] == 1.5
    assert behind.bodies[-1]["temperature"] == 0.25


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
        ("logit_bias", {"17": -100.0}),
        ("reasoning_effort", "low"),
        ("verbosity", "low"),
        ("service_tier", "flex"),
        ("user", "someone"),
        ("safety_identifier", "someone"),
        ("prompt_cache_key", "key"),
        ("store", False),
    ],
)
def test_what_is_openais_own_reaches_an_openai_policy(running, behind, field, value):
    assert running.post({**BODY, field: value}).status_code == 200
    assert behind.bodies[0][field] == value


def test_the_same_is_refused_where_it_would_be_lost(serve):
    policy = scripted_policy()
    response = serve(policy).post({**BODY, "logit_bias": {"17": 1}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logit_bias")
    assert policy.requests == []


def test_stop_texts_end_the_answer(serve, chat_server, chat_openai):
    behind = chat_server(answer=lambda request, number: "one 1 END two 2")
    running = serve(chat_openai(behind))
    assert running.chat(stop="END", model="bon-1").choices[0].message.content == "one 1"
    assert running.chat(stop=["END", "two"], model="bon-1").choices[0].message.content == "one 1"
    assert [body["stop"] for body in behind.bodies] == [["END"], ["END", "two"]]


def test_the_conversation_reaches_the_policy_as_it_came(running, behind):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0=", "detail": "low"}}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    wrong = {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call, wrong]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "no JSON"}]},
        {"role": "assistant", "content": "A cat.", "refusal": None, "annotations": [], "tpo": {"reward": 1.0}},
        {"role": "user", "content": "Sure?"},
    ]
    running.chat(messages=messages, model="bon-1")
    came = behind.bodies[0]["messages"]
    kept = [
        {name: value for name, value in each.items() if name not in ("refusal", "annotations", "tpo")}
        for each in messages
    ]
    assert came == kept


def test_an_answer_can_be_sent_back_as_it_was_given(running, behind):
    first = running.chat(model="bon-1").choices[0].message
    messages = [{"role": "user", "content": "q"}, first, {"role": "user", "content": "more"}]
    running.chat(messages=messages, model="bon-1")
    assert behind.bodies[-1]["messages"][1] == {"role": "assistant", "content": "cand 0"}


REFUSED = [
    ({"n": 2}, "n", "unsupported_value"),
    ({"logprobs": True}, "logprobs", "unsupported_value"),
    ({"top_logprobs": 3}, "top_logprobs", "unsupported_value"),
    ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_value"),
    ({"prediction": {"type": "content"}}, "prediction", "unsupported_value"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_value"),
    ({"metadata": {"a": "b"}}, "metadata", "unsupported_value"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_value"),
    ({"function_call": "auto"}, "function_call", "unsupported_value"),
    ({"top_k": 5}, "top_k", "unknown_parameter"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": "0.5"}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "invalid_value",
    ),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "invalid_value"),
    ({"tools": [TOOL, {"type": "custom"}]}, "tools[1]", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "invalid_value"),
    ({"response_format": {"type": "grammar"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "unknown_parameter"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
    (
        {"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}},
        "response_format",
        "invalid_value",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "x": 1}}},
        "response_format.json_schema.x",
        "unknown_parameter",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "strin", "properties": {}}},
            }
        },
        "response_format",
        "invalid_value",
    ),
    ({"messages": []}, "messages", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "owner", "content": "q"}]},
        "messages[1].role",
        "invalid_value",
    ),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0]", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "invalid_value"),
    (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0]",
        "invalid_value",
    ),
    ({"messages": [{"role": "assistant", "content": "", "refusal": "no"}]}, "messages[0].refusal", "invalid_value"),
    ({"messages": [{"role": "user", "content": "q", "cache": 1}]}, "messages[0].cache", "unknown_parameter"),
    ({"messages": [{"role": "tool", "content": "q"}]}, "messages[0]", "invalid_value"),
    (
        {"messages": [{"role": "assistant", "content": "q", "tool_calls": [{"id": "1"}]}]},
        "messages[0]",
        "invalid_value",
    ),
    ({"tpo": {"depth": -1}}, "tpo.depth", "invalid_value"),
    ({"tpo": {"temprature": 1}}, "tpo.temprature", "invalid_value"),
    ({"tpo": {"temperature": 1}}, "tpo.temperature", "invalid_value"),
    ({"tpo": {"n": 5}}, "tpo.n", "invalid_value"),
    ({"tpo": {"mode": "tpo"}}, "tpo.mode", "invalid_value"),
    ({"seed": 1, "tpo": {"seed": 2}}, "tpo.seed", "invalid_value"),
    ({"tpo": 5}, "tpo", "invalid_value"),
    ({"model": "bon-65"}, "tpo.n", "invalid_value"),
    ({"model": "tpo-d21"}, "tpo.depth", "invalid_value"),
]


@pytest.mark.parametrize(
    ("change", "param", "code"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_not_served_is_refused_by_name(shared, change, param, code):
    running, behind = shared
    response = running.post({**BODY, **change})
    told = response.json()["error"]
    assert (response.status_code, told["param"], told["code"]) == (400, param, code)
    assert told["type"] == "invalid_request_error"
    assert param.rpartition(".")[2].partition("[")[0] in told["message"]
    assert behind.requests == []


NOTHING = [{"n": 1}, {"n": None}, {"logprobs": False}, {"top_logprobs": 0}, {"modalities": ["text"]}, {"tools": None}]
NOTHING += [{"tools": []}, {"tool_choice": "none"}, {"unheard_of": None}, {"stream_options": None}, {"stop": []}]
NOTHING += [{"response_format": {"type": "text"}}, {"tpo": {}}, {"tpo": {"n": 1}}, {"tpo": None}]


@pytest.mark.parametrize("change", NOTHING, ids=str)
def test_what_asks_for_nothing_is_served(scripted, change):
    assert scripted.post({**BODY, **change}).status_code == 200


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_is_missing_is_named(shared, missing):
    running, _ = shared
    told = running.post({name: value for name, value in BODY.items() if name != missing}).json()["error"]
    assert (told["param"], told["code"]) == (missing, "missing_required_parameter")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_what_is_no_json_is_refused(shared, body):
    running, _ = shared
    response = running.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(("escaped", "status"), [(rb"\ud83d\ude00", 200), (rb"\ud83d", 400), (rb"\uDE00", 400)])
def test_half_a_character_is_no_text(shared, escaped, status):
    running, _ = shared
    body = b'{"model": "bon-2", "messages": [{"role": "user", "content": "%b"}]}' % escaped
    response = running.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status


def test_a_page_can_not_make_a_browser_ask(running, behind):
    response = running.http.post(
        "/v1/chat/completions", content=json.dumps(BODY), headers={"content-type": "text/plain"}
    )
    assert (response.status_code, behind.requests) == (415, [])


def test_the_client_raises_what_the_server_says(running):
    with pytest.raises(openai.BadRequestError, match=r"n=3 is not served.*tpo-d2-n8") as caught:
        running.chat(n=3)
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_value")
