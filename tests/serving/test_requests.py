"""Every field of a request reaches the policy, or is refused by name."""

import json

import openai
import pytest

from tests.tpo_script import phase_of, scripted_policy
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.requests import ChatRequest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
OTHER_TOOL = {"type": "function", "function": {"name": "g"}}
BODY = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}


def parsed(change):
    return ChatRequest.parse(json.dumps({**BODY, **change}).encode())


def answer_format(**fields):
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


def message(**fields):
    return {"messages": [{"role": "user", "content": "q", **fields}]}


UNSUPPORTED = ["n", "logprobs", "top_logprobs", "modalities", "audio", "prediction", "web_search_options", "metadata"]


@pytest.mark.parametrize("field", [*UNSUPPORTED, "functions", "function_call"])
@pytest.mark.parametrize("value", [5, True], ids=str)
def test_what_no_answer_could_have_is_refused_by_name(field, value):
    with pytest.raises(RequestRefusedError, match=f"{field}={value} is not served: ") as caught:
        parsed({field: value})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, field, "unsupported_value")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"top_k": 5}, "top_k", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "0.5"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_value"),
        ({"tpo": 5}, "tpo", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", "invalid_value"),
        ({"tools": [TOOL, {"type": "custom"}]}, "tools[1]", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": OTHER_TOOL}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "unknown_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
            "response_format",
            "invalid_value",
        ),
        (answer_format(schema={}), "response_format.json_schema.name", "missing_required_parameter"),
        (answer_format(name="a"), "response_format.json_schema.schema", "missing_required_parameter"),
        (answer_format(name="", schema={}), "response_format.json_schema.name", "invalid_value"),
        (answer_format(name="a", schema={}, x=1), "response_format.json_schema.x", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        (message(role="owner"), "messages[0].role", "invalid_value"),
        (message(cache=1), "messages[0].cache", "unknown_parameter"),
        (message(role="assistant", refusal="no"), "messages[0].refusal", "invalid_value"),
        (message(content=5), "messages[0]", "invalid_value"),
        (message(content=None), "messages[0]", "invalid_value"),
        (message(content=[{"type": "video_url"}]), "messages[0]", "invalid_value"),
        (message(content=[{"type": "image_url"}]), "messages[0]", "invalid_value"),
        (message(role="system", content=[{"type": "image_url", "image_url": {}}]), "messages[0]", "invalid_value"),
        (message(role="tool"), "messages[0]", "invalid_value"),
        (message(role="tool", tool_call_id="1", name="f"), "messages[0]", "invalid_value"),
        (message(tool_calls=[{"id": "1", "function": {"name": "f", "arguments": ""}}]), "messages[0]", "invalid_value"),
        (message(role="assistant", tool_calls=[{"id": "1"}]), "messages[0]", "invalid_value"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_by_name(change, param, code):
    with pytest.raises(RequestRefusedError) as caught:
        parsed(change)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert param.rpartition(".")[2].partition("[")[0] in caught.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_refused(body):
    with pytest.raises(RequestRefusedError) as caught:
        ChatRequest.parse(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("escaped", "text"), [(rb"\ud83d\ude00", "\N{GRINNING FACE}"), (rb"a\ud83d", "a\ufffd"), (rb"\uDE00b", "\ufffdb")]
)
def test_half_a_surrogate_pair_is_repaired_as_in_completions(escaped, text):
    body = b'{"model": "bon-2", "messages": [{"role": "user", "content": "%b"}], "stop": "%b"}' % (escaped, escaped)
    request = ChatRequest.parse(body)
    assert (request.messages[0].content, request.stop) == (text, [text])


@pytest.fixture
def behind(chat_server):
    return chat_server()


@pytest.fixture
def running(serve, behind, chat_openai):
    return serve(chat_openai(behind))


def test_a_refusal_as_the_client_sees_it(running, behind):
    with pytest.raises(openai.BadRequestError, match=r"n=3 is not served.*tpo-d2-n8") as caught:
        running.chat(n=3)
    error = caught.value
    assert (error.param, error.code, error.type) == ("n", "unsupported_value", "invalid_request_error")
    assert running.post({"model": "bon-1"}).json()["error"]["param"] == "messages"
    assert behind.requests == []


def test_a_page_can_not_make_a_browser_ask(running, behind):
    response = running.http.post(
        "/v1/chat/completions", content=json.dumps(BODY), headers={"content-type": "text/plain"}
    )
    assert (response.status_code, behind.requests) == (415, [])


def test_knobs_reach_the_phases_that_write_answers(running, behind):
    running.chat(temperature=0.25, top_p=0.5, max_completion_tokens=77, seed=3, model="tpo-d1-n2")
    bodies = {phase_of(request.text): request.body for request in behind.requests}
    assert set(bodies) == {"sample", "loss", "gradient", "update"}
    for phase, body in bodies.items():
        writes = phase in ("sample", "update")
        assert (body["temperature"] == 0.25, body["top_p"] == 0.5) == (writes, writes)
        assert (body.get("max_completion_tokens", body.get("max_tokens")) == 77) == writes
        assert isinstance(body["seed"], int)
    assert bodies["sample"]["seed"] == 3
    assert bodies["sample"]["n"] == 2


def test_the_settings_of_a_phase_are_more_precise(running, behind):
    running.chat(temperature=0.25, extra_body={"tpo": {"sample_temperature": 1.5}})
    assert behind.bodies[0]["temperature"] == 1.5
    assert behind.bodies[-1]["temperature"] == 0.25


def test_fields_of_openai_reach_an_openai_policy(running, behind):
    fields = {
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"17": -100.0},
        "reasoning_effort": "low",
        "verbosity": "low",
        "service_tier": "flex",
        "user": "someone",
        "safety_identifier": "someone",
        "prompt_cache_key": "key",
        "store": False,
    }
    assert running.post({**BODY, **fields}).status_code == 200
    assert behind.bodies[0].items() >= fields.items()


def test_stop_texts_end_the_answer(serve, chat_server, chat_openai):
    behind = chat_server(answer=lambda request, number: "one 1 END two 2")
    running = serve(chat_openai(behind))
    assert running.chat(stop="END", model="bon-1").choices[0].message.content == "one 1"
    assert running.chat(stop=["END", "two"], model="bon-1").choices[0].message.content == "one 1"
    assert [body["stop"] for body in behind.bodies] == [["END"], ["END", "two"]]


def test_the_conversation_reaches_the_policy_as_it_came(running, behind):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0=", "detail": "low"}}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    invalid = {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call, invalid]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "not JSON"}]},
        {"role": "assistant", "content": "A cat.", "refusal": None, "annotations": [], "tpo": {"reward": 1.0}},
        {"role": "user", "content": "Sure?"},
    ]
    running.chat(messages=messages, model="bon-1")
    messages[5] = {"role": "assistant", "content": "A cat."}
    assert behind.bodies[0]["messages"] == messages


def test_an_answer_can_be_sent_back_as_it_came(running, behind):
    first = running.chat(model="bon-1").choices[0].message
    messages = [{"role": "user", "content": "q"}, first, {"role": "user", "content": "more"}]
    running.chat(messages=messages, model="bon-1")
    assert behind.bodies[-1]["messages"][1] == {"role": "assistant", "content": "cand 0"}


def test_the_seed_reaches_a_first_reply_with_tools(serve):
    policy = scripted_policy()
    assert serve(policy).post({**BODY, "model": "bon-2", "seed": 7, "tools": [TOOL]}).status_code == 200
    assert [knobs["seed"] for knobs in policy.knobs] == [7, 8]
