"""with_structured_output: what is not valid is no candidate, the best valid answer is returned parsed."""

import json
from typing import Annotated

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import ChatMessage, SystemMessage
from langgraph.types import Command, Overwrite
from pydantic import BaseModel, Field, field_validator
from pydantic.v1 import BaseModel as OldBaseModel
from typing_extensions import TypedDict

from tests.langchain.tool_policy import tool_policy
from tests.tpo_script import phase_of, phases_asked
from tpo_graph import ConfigurationError, RewardError
from tpo_graph.graph.build import make_nodes
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.langchain.schema import AnswerSchema
from tpo_graph.testing import ScriptedChatModel, TableReward


class Joke(BaseModel):
    """A joke."""

    setup: str
    score: int = Field(ge=0)

    @field_validator("setup")
    @classmethod
    def _ends_with_a_question(cls, value):
        if not value.endswith("?"):
            raise ValueError("no question")
        return value


class JokeDict(TypedDict):
    """A joke."""

    setup: Annotated[str, ..., "question"]
    score: Annotated[int, ..., "how good"]


class OldJoke(OldBaseModel):
    """A joke."""

    setup: str
    score: int


JOKE_SCHEMA = {
    "type": "object",
    "properties": {"setup": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["setup", "score"],
}


LONG = "no json, and longer than any that is, so that a reward for length takes it"


def joke(score, setup="Why?"):
    return json.dumps({"setup": setup, "score": score})


def json_reward():
    return TableReward(lambda text: float(AnswerSchema.of(OldJoke).parse(text).score))


def playing(*samples, revision=None):
    """A policy that draws these texts and revises to `revision`."""

    def script(messages, number):
        phase = phase_of(messages[-1].text)
        if phase == "update":
            return f"<revised_response>{revision}</revised_response>"
        return samples[number] if phase == "sample" else phase

    return ScriptedChatModel(script)


def structured(policy, schema=Joke, *, n=3, depth=0, **options):
    return ChatTPO(policy=policy, reward=json_reward(), n=n, depth=depth).with_structured_output(schema, **options)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (Joke, Joke(setup="Why?", score=5)),
        (OldJoke, OldJoke(setup="Why?", score=5)),
        (JokeDict, {"setup": "Why?", "score": 5}),
        (Joke.model_json_schema(), {"setup": "Why?", "score": 5}),
        (
            {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]},
            {"setup": "Why?", "score": 5},
        ),
    ],
    ids=["pydantic", "pydantic v1", "TypedDict", "JSON schema", "JSON schema without a title"],
)
def test_the_best_valid_answer_is_returned_parsed(schema, value):
    policy = playing("no json 9", joke(5), joke("many"))
    assert structured(policy, schema).invoke("q") == value


def test_what_a_class_checks_itself_counts():
    assert structured(playing(joke(1), joke(8, setup="Well."), joke(-3))).invoke("q").score == 1


def test_a_code_fence_around_it_is_taken_off():
    assert structured(playing(f"```json\n{joke(4)}\n```", joke(1), joke(2))).invoke("q").score == 4


def test_revisions_are_held_to_the_schema_too():
    good = structured(playing(joke(1), joke(2), revision=joke(9)), n=2, depth=1)
    assert good.invoke("q").score == 9
    bad = structured(playing(joke(1), joke(2), revision="no json"), n=2, depth=1)
    assert bad.invoke("q").score == 2


@pytest.mark.parametrize("way", ["ainvoke", "stream", "astream"])
async def test_other_ways_to_call_it(way):
    model = structured(playing(joke(1), joke(2), joke(3)))
    if way == "ainvoke":
        assert (await model.ainvoke("q")).score == 3
    elif way == "stream":
        assert list(model.stream("q"))[-1].score == 3
    else:
        assert [chunk async for chunk in model.astream("q")][-1].score == 3


def test_when_nothing_is_valid_the_parser_says_why():
    with pytest.raises(OutputParserException, match="not valid"):
        structured(playing("one", "two", "three")).invoke("q")


def test_include_raw_returns_the_message_and_the_error():
    found = structured(playing(joke(1), joke(2), joke(3)), include_raw=True).invoke("q")
    assert (found["parsed"].score, found["parsing_error"]) == (3, None)
    assert found["raw"].response_metadata["tpo"]["reward"] == 3.0
    failed = structured(playing("one", "two", "three"), include_raw=True).invoke("q")
    assert (failed["raw"].text, failed["parsed"]) == ("one", None)
    assert isinstance(failed["parsing_error"], OutputParserException)
    assert failed["raw"].usage_metadata["output_tokens"] == 3


def test_a_failing_reward_model_is_not_taken_for_invalid_answers():
    model = ChatTPO(policy=playing(joke(1), joke(2)), reward=TableReward({}), n=2).with_structured_output(Joke)
    with pytest.raises(RewardError, match="no reward"):
        model.invoke("q")


def test_every_phase_is_told_the_schema():
    policy = playing(joke(1), joke(2), revision=joke(3))
    structured(policy, n=2, depth=1).invoke("Tell a joke.")
    shown = dict(zip(phases_asked(policy), policy.requests, strict=True))
    for phase in ("sample", "loss", "update"):
        assert "Tell a joke.\n\nAnswer with JSON alone" in shown[phase][-1].text
        assert '"setup"' in shown[phase][-1].text


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"method": "json_schema", "strict": True}, {"type": "json_schema", "strict": True}),
        ({"method": "json_schema"}, {"type": "json_schema", "strict": None}),
        ({"method": "json_mode"}, {"type": "json_object", "strict": None}),
        ({"method": "function_calling"}, None),
        ({}, None),
    ],
)
def test_the_response_format_goes_with_the_first_sampling_alone(options, sent):
    policy = playing(joke(1), joke(2), revision=joke(3))
    structured(policy, n=2, depth=1, **options).invoke("q")
    for phase, knobs in zip(phases_asked(policy), policy.knobs, strict=True):
        response_format = knobs.get("response_format")
        if phase != "sample" or sent is None:
            assert response_format is None
        else:
            assert (response_format["type"], response_format.get("json_schema", {}).get("strict")) == (
                sent["type"],
                sent["strict"],
            )


def test_an_openai_compatible_policy_gets_the_schema_by_itself(chat_server, chat_openai):
    server = chat_server(answer=lambda request, number: joke(number))
    structured(chat_openai(server), mode="bon").invoke("q")
    (body,) = server.bodies
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["setup", "score"]


def test_an_answer_that_was_cut_is_no_candidate_and_the_others_are(chat_server, chat_openai):
    texts = ['{"setup": "Wh', joke(1), joke(2)]
    server = chat_server(
        answer=lambda request, number: texts[number],
        finish_reason=lambda text: "stop" if text.endswith("}") else "length",
    )
    assert structured(chat_openai(server), mode="bon").invoke("q").score == 2
    assert server.asked_n == [3]


def test_when_all_were_cut_the_parser_says_why(chat_server, chat_openai):
    server = chat_server(answer=lambda request, number: '{"setup": "Wh', finish_reason="length")
    with pytest.raises(OutputParserException, match="not valid"):
        structured(chat_openai(server), mode="bon").invoke("q")


def test_a_response_format_of_the_call_is_understood():
    policy = playing("no json", joke(2))
    model = ChatTPO(policy=policy, reward=json_reward(), n=2, depth=0)
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "joke", "description": "Fun.", "schema": OldJoke.schema()},
    }
    assert json.loads(model.invoke("q", response_format=response_format).text)["score"] == 2
    sent = policy.knobs[0]["response_format"]["json_schema"]
    assert (sent["name"], sent["description"], sent["schema"]["title"]) == ("joke", "Fun.", "OldJoke")


def test_any_json_object_is_valid_for_json_object():
    model = ChatTPO(policy=playing("[1]", '{"score": 1, "setup": ""}'), reward=json_reward(), n=2, depth=0)
    assert model.invoke("q", response_format={"type": "json_object"}).text.startswith("{")


def test_with_tools_beside_it():
    policy = tool_policy(joke(7), "no json")
    model = ChatTPO(policy=policy, reward=json_reward(), n=2, depth=0)
    tools = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    assert model.with_structured_output(Joke, **tools).invoke("q").score == 7


@pytest.mark.parametrize(
    ("schema", "method", "message"),
    [(3, None, "is not a schema"), ({"a": 1}, None, "is not a schema"), (Joke, "xml", "Unknown method 'xml'")],
)
def test_a_wrong_schema_or_method_is_refused(schema, method, message):
    with pytest.raises(ConfigurationError, match=message):
        structured(playing(), schema, method=method)


@pytest.mark.parametrize("text", ["NaN", '{"setup": "Why?", "score": NaN}', '{"setup": "Why?"', "", "[" * 100_000])
def test_what_is_no_json_is_not_accepted(text):
    assert not AnswerSchema.of(JokeDict).accepts(text)


def test_a_schema_without_properties_is_kept_whole():
    policy = playing("[1]", '["a", "b"]')
    model = ChatTPO(policy=policy, reward=TableReward(lambda text: -float(len(text))), n=2, depth=0)
    schema = {"title": "Words", "type": "array", "items": {"type": "string"}}
    assert model.with_structured_output(schema).invoke("q") == ["a", "b"]


def taking_all(state):
    """A score node that knows nothing of schemas."""
    scored = [{**candidate, "reward": float(len(candidate["text"]))} for candidate in state["pending"]]
    return {"cache": scored, "pending": []}


def drawing(*texts):
    def sample(state):
        pending = [{"id": f"0-{at}", "step": 0, "text": text, "truncated": False} for at, text in enumerate(texts)]
        return {"pending": pending, "cache": Overwrite([]), "trajectory": Overwrite([]), "step": 0}

    return sample


async def drawing_by_command(state):
    return Command(update=drawing(LONG, joke(4))(state))


@pytest.mark.parametrize(
    "nodes",
    [
        {"score": taking_all},
        {"sample": drawing(LONG, joke(4)), "score": taking_all},
        {"sample": drawing_by_command},
        {"update": lambda state: {"pending": []}, "score": taking_all},
        make_nodes(playing(LONG, joke(4)), json_reward()),
    ],
    ids=["score", "sample", "a command", "update", "all of them"],
)
def test_it_holds_with_nodes_of_ones_own(nodes):
    policy = playing(LONG, joke(4))
    model = ChatTPO(policy=policy, reward=json_reward(), n=2, depth=0, nodes=nodes)
    assert model.with_structured_output(Joke).invoke("q").score == 4


def test_revisions_of_ones_own_are_held_to_it_too():
    def update(state):
        return {"pending": [{"id": "x", "step": state["step"] + 1, "text": LONG, "truncated": False}], "step": 1}

    nodes = {"update": update, "score": taking_all}
    model = ChatTPO(policy=playing(joke(4), joke(50)), reward=json_reward(), n=2, depth=1, nodes=nodes)
    found = model.with_structured_output(Joke, include_raw=True).invoke("q")
    assert found["parsed"].score == 50
    assert found["raw"].response_metadata["tpo"]["stop_reason"] == "updates_failed"


def test_a_title_with_blanks_becomes_a_name_that_providers_take():
    schema = {**JOKE_SCHEMA, "title": "A good joke", "description": "Fun."}
    sent = AnswerSchema.of(schema, method="json_schema").policy_arguments(None)["response_format"]["json_schema"]
    assert (sent["name"], sent["schema"]) == ("A_good_joke", schema)


def test_the_schema_is_in_the_last_message_of_the_user_whatever_its_class():
    asked = [ChatMessage("Tell me.", role="user"), SystemMessage("Be brief.")]
    shown = AnswerSchema.of(JOKE_SCHEMA).instruct(asked)
    assert [len(message.text) > 20 for message in shown] == [True, False]
