"""Tool calls come back untouched, and answers have the format that was asked for."""

import json

import openai
import pydantic
import pytest

from tests.langchain.tool_policy import calling, tool_policy
from tests.tpo_script import phase_of, scripted_policy
from tpo_graph.testing import TableReward

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "strict": True, "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


class Answer(pydantic.BaseModel):
    value: int


def test_a_tool_call_comes_back(serve):
    policy = tool_policy(calling(what="x"))
    answer = serve(policy).chat(tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    call = choice.message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call-1", "look_up", {"what": "x"})
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    asked = policy.knobs[0]
    assert (asked["tools"], asked["tool_choice"], asked["parallel_tool_calls"]) == ([TOOL], "auto", False)


def test_a_streamed_tool_call(serve):
    client = serve(tool_policy(calling(what="x"))).client
    messages, options = [{"role": "user", "content": "q"}], {"include_usage": True}
    with client.chat.completions.stream(model="tpo", messages=messages, tools=[TOOL], stream_options=options) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"what": "x"}
    assert answer.usage.total_tokens == 10


def test_a_text_beside_tools_is_optimised(serve):
    answer = serve(tool_policy("cand 0")).chat(tools=[TOOL])
    assert (answer.choices[0].message.content, answer.tpo["reward"]) == ("rev 5", 5.0)


def test_tools_and_format_together_reach_an_openai_policy(serve, chat_server, chat_openai):
    behind = chat_server(answer=lambda request, number: f'{{"value": {number}}}')
    choice = {"type": "function", "function": {"name": "look_up"}}
    reward = TableReward(lambda text: float(json.loads(text)["value"]))
    running = serve(chat_openai(behind), reward)
    answer = running.chat(model="bon-3", tools=[TOOL], tool_choice=choice, response_format=FORMAT)
    assert json.loads(answer.choices[0].message.content) == {"value": 2}
    assert phase_of(behind.requests[0].text) == "sample"
    body = behind.bodies[0]
    assert (body["tools"], body["tool_choice"], body["response_format"]["type"]) == ([TOOL], choice, "json_schema")


def test_the_best_valid_answer_is_returned_parsed(serve, chat_server, chat_openai):
    texts = ["no JSON 9", '{"value": 3}', '{"value": 5}', '{"value": "7"}']
    behind = chat_server(answer=lambda request, number: texts[number])
    running = serve(chat_openai(behind), TableReward(lambda text: float("".join(c for c in text if c.isdigit()))))
    messages = [{"role": "user", "content": "q"}]
    answer = running.client.chat.completions.parse(model="bon-4", messages=messages, response_format=Answer)
    assert answer.choices[0].message.parsed == Answer(value=5)
    sent = behind.bodies[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    assert sent["json_schema"]["schema"]["properties"]["value"]["type"] == "integer"


def test_json_mode(serve, chat_server, chat_openai):
    behind = chat_server(answer=lambda request, number: ["[1]", '{"a": 2}'][number])
    running = serve(chat_openai(behind), TableReward(lambda text: 1.0))
    answer = running.chat(model="bon-2", response_format={"type": "json_object"})
    assert answer.choices[0].message.content == '{"a": 2}'
    assert behind.bodies[0]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("stream", [False, True])
def test_no_valid_answer_is_an_error(serve, stream):
    with pytest.raises(openai.APIStatusError, match="None of the candidates is valid") as caught:
        serve(scripted_policy()).chat(model="bon-2", response_format=FORMAT, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (502, "policy_failed")


def test_name_and_description_of_a_format_reach_the_policy(serve, chat_server, chat_openai):
    behind = chat_server(answer=lambda request, number: '{"value": 1}')
    json_schema = {"name": "the_answer", "description": "With a number.", "schema": {**SCHEMA, "title": "An answer"}}
    running = serve(chat_openai(behind), TableReward(lambda text: 1.0))
    running.chat(model="bon-1", response_format={"type": "json_schema", "json_schema": json_schema})
    sent = behind.bodies[0]["response_format"]["json_schema"]
    assert (sent["name"], sent["schema"]["description"]) == ("the_answer", "With a number.")
