"""Functions as reward models: how they are called, what they may return, and how they are named."""

import asyncio
import math
import threading
from collections.abc import Sequence

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage

from tpo_graph import ChatTPO, ConfigurationError, RewardError, create_tpo_graph
from tpo_graph.graph.nodes.score import score_node
from tpo_graph.rewards import Part, WatchedReward, WeightedSum
from tpo_graph.rewards.base import RunContext, query_references, score_responses
from tpo_graph.rewards.functions import FunctionReward, find_style, load_function
from tpo_graph.testing import ScriptedChatModel, TableReward

QUERY = [HumanMessage("How much is 6 x 7?", additional_kwargs={"reference": "42", "level": 3})]


def by_name_one(response): ...
def by_name_many(responses): ...
def by_type_one(x: str): ...
def by_type_many(x: list[str]): ...
def type_beats_name(response: Sequence[str]): ...
def with_default(response, limit=10): ...
def conversation_one(messages, response): ...
def conversation_many(conversation, answers): ...
def trl_text(prompts, completions: list[str], **columns): ...
def trl_literal(prompts, completions, **columns): ...
def trl_chat(completions: list[list[dict[str, str]]], **kwargs): ...


class Callable_:
    def __call__(self, responses): ...


@pytest.mark.parametrize(
    ("function", "style"),
    [
        (by_name_one, "response"),
        (by_name_many, "responses"),
        (by_type_one, "response"),
        (by_type_many, "responses"),
        (type_beats_name, "responses"),
        (with_default, "response"),
        (conversation_one, "messages_response"),
        (conversation_many, "messages_responses"),
        (lambda query, response: 1.0, "query_response"),
        (lambda question, answers: [1.0], "query_responses"),
        (trl_text, "trl"),
        (trl_literal, "trl"),
        (trl_chat, "trl_chat"),
        (Callable_(), "responses"),
    ],
)
def test_style_is_found_from_the_signature(function, style):
    assert find_style(function) == style


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 1.0, "don't show how to call it"),
        (len, "don't show how to call it"),
        (lambda: 1.0, "don't show how to call it"),
        (lambda response, other: 1.0, "response, other"),
        (lambda prompts, completions, reference: [1.0], "TRL's signature"),
        (lambda completions, **columns: [1.0], "TRL's signature"),
        (max, "no signature"),
    ],
)
def test_an_unclear_signature_is_an_error_that_lists_the_styles(function, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        FunctionReward(function)
    assert "style=" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"style": "batch"}, "allowed: response, responses"), ({"max_concurrency": 0}, "at least 1")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FunctionReward(len, **arguments)
    with pytest.raises(ConfigurationError, match="something to call"):
        FunctionReward(3, style="response")


async def one(response):
    await asyncio.sleep(0)
    return float(len(response))


async def many(messages, responses):
    return [len(messages[-1].text) + len(response) for response in responses]


def returns_awaitable(responses):
    async def later():
        return [2 for _ in responses]

    return later()


@pytest.mark.parametrize(
    ("function", "style", "expected"),
    [
        (len, "response", [1.0, 3.0]),
        (lambda r: len(r) > 2, "response", [0.0, 1.0]),
        (one, None, [1.0, 3.0]),
        (many, None, [19.0, 21.0]),
        (lambda messages, response: len(messages), None, [1.0, 1.0]),
        (lambda query, response: len(query), None, [18.0, 18.0]),
        (lambda query, responses: [len(query)] * 2, None, [18.0, 18.0]),
        (lambda responses: (len(response) for response in responses), None, [1.0, 3.0]),
        (returns_awaitable, None, [2.0, 2.0]),
    ],
)
async def test_every_convention_gives_one_float_a_response(function, style, expected):
    scores = await FunctionReward(function, style=style).score(QUERY, ["a", "bcd"])
    assert scores == expected
    assert {type(score) for score in scores} == {float}


async def test_nothing_to_score_is_not_asked():
    assert await FunctionReward(lambda responses: 1 / 0).score(QUERY, []) == []


async def test_trl_gets_texts_and_the_columns_of_the_query():
    seen = {}

    def rewards(prompts, completions, reference, **columns):
        seen.update(prompts=prompts, completions=completions, reference=reference, columns=columns)
        return [1.0, None]

    scores = (await score_responses(FunctionReward(rewards, style="trl"), QUERY, ["a", "b"], RunContext())).scores
    assert scores == [1.0, None]
    assert seen == {
        "prompts": ["How much is 6 x 7?"] * 2,
        "completions": ["a", "b"],
        "reference": ["42", "42"],
        "columns": {"level": [3, 3]},
    }


async def test_trl_chat_gets_messages():
    def rewards(prompts, completions: list[list[dict]], **columns):
        assert prompts == [[{"role": "user", "content": "How much is 6 x 7?"}]] * 2
        return [float(len(completion[0]["content"])) for completion in completions]

    assert await FunctionReward(rewards).score(QUERY, ["a", "bcd"]) == [1.0, 3.0]


async def test_roles_of_other_apis():
    """A developer message is a system message, and a chat message of the user's holds query and columns."""
    user = ChatMessage("How much is 6 x 7?", role="user", additional_kwargs={"reference": "42"})
    messages = [ChatMessage("Be brief.", role="developer"), user]

    def rewards(prompts, completions: list[list[dict]], reference):
        assert prompts == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": user.text}]]
        return [float(reference == ["42"])]

    assert await FunctionReward(rewards).score(messages, ["a"]) == [1.0]
    assert await FunctionReward(lambda query, response: query == user.text).score(messages, ["a"]) == [1.0]


async def test_trl_names_a_missing_column():
    reward = FunctionReward(lambda completions, solution: [1.0], style="trl")
    with pytest.raises(RewardError, match="needs solution") as caught:
        await reward.score(QUERY, ["a"])
    assert "additional_kwargs" in caught.value.hint


async def test_none_is_not_applicable_and_alone_no_score():
    reward = FunctionReward(lambda response: None if response == "a" else math.nan, style="response")
    none, nan = (await score_responses(reward, QUERY, ["a", "b"], RunContext())).scores
    assert none is None
    assert math.isnan(nan)
    assert all(map(math.isnan, await reward.score(QUERY, ["a", "b"])))


async def fails_async(response):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("function", "style", "message"),
    [
        (lambda r: 1 / 0, "response", "'<lambda>' failed: ZeroDivisionError: division by zero"),
        (fails_async, None, "'fails_async' failed: KeyError: 'x'"),
        (lambda responses: [1.0], None, "returned 1 rewards for 2 responses"),
        (lambda responses: 1.0, None, "TypeError"),
        (lambda r: "good", "response", "could not convert"),
        (lambda r: next(iter("")), "response", "it raised StopIteration"),
    ],
)
async def test_failures_name_the_function(function, style, message):
    with pytest.raises(RewardError, match=message):
        await FunctionReward(function, style=style).score(QUERY, ["a", "b"])


async def test_a_sync_function_does_not_block_the_event_loop():
    released = threading.Event()
    reward = FunctionReward(lambda response: released.wait(5), style="response")
    scoring = asyncio.create_task(reward.score(QUERY, ["a"]))
    await asyncio.sleep(0)
    released.set()
    assert await scoring == [1.0]


async def test_async_calls_are_concurrent_up_to_the_limit():
    running, most = 0, 0

    async def slow(response: str):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return 1.0

    await FunctionReward(slow, max_concurrency=3).score(QUERY, list("abcdefgh"))
    assert most == 3


@pytest.mark.parametrize(
    ("messages", "references"),
    [
        (QUERY, ["42"]),
        ([HumanMessage("?", additional_kwargs={"reference": ["1/2", 0.5]})], ["1/2", "0.5"]),
        ([*QUERY, AIMessage("42"), HumanMessage("And 6 x 8?")], []),
        ([HumanMessage("?")], []),
        ([], []),
    ],
)
def test_reference_is_that_of_the_last_user_message(messages, references):
    assert query_references(messages) == references


@pytest.mark.parametrize("reference", [{"a": 1}, [True], [["4"]]])
def test_a_reference_of_another_kind_is_an_error(reference):
    with pytest.raises(RewardError, match="The reference of the query is"):
        query_references([HumanMessage("?", additional_kwargs={"reference": reference})])


def test_a_reference_does_not_reach_the_policy():
    from langchain_core.messages import convert_to_messages
    from langchain_openai import ChatOpenAI

    (message,) = convert_to_messages([{"role": "user", "content": "6 x 7?", "reference": "42"}])
    assert query_references([message]) == ["42"]
    payload = ChatOpenAI(model="m", api_key="none")._get_request_payload([message])
    assert payload["messages"] == [{"role": "user", "content": "6 x 7?"}]


async def brevity(response):
    return -float(len(response))


def test_a_plain_function_is_a_reward_model():
    for function in (brevity, lambda messages, responses: [-len(response) for response in responses]):
        graph = create_tpo_graph(ScriptedChatModel(["long", "a"]), function)
        assert graph.invoke({"query": "q"}, context={"mode": "bon", "n": 2})["answer"] == "a"
    candidate = {"id": "0-0", "step": 0, "text": "long", "truncated": False}
    state = {"query": "q", "messages": QUERY, "pending": [candidate], "step": 0, "cache": []}
    scored = asyncio.run(score_node(brevity)(state))
    assert [candidate["reward"] for candidate in scored["cache"]] == [-4.0]
    chat = ChatTPO(policy=ScriptedChatModel(["long", "a"]), reward=brevity, n=2, mode="bon")
    assert chat.invoke("q").text == "a"
    combination = WeightedSum({"brief": Part(brevity, scale="raw"), "same": Part(lambda response: 1.0, scale="raw")})
    watched = WatchedReward(combination, brevity)
    assert asyncio.run(watched.score(QUERY, ["abc"])) == [-2.0]


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        (lambda x, y: 1.0, r"\(x, y\) don't show how to call it", "FunctionReward(function, style=...)"),
        (TableReward, "class 'TableReward' is neither", "an object of the class"),
        (ScriptedChatModel([]), "'ScriptedChatModel' is neither", "JudgeReward(model)"),
        (7, "'int' is neither", "load_reward"),
    ],
)
def test_what_is_no_reward_model(model, message, hint):
    with pytest.raises(ConfigurationError, match=message) as caught:
        create_tpo_graph(ScriptedChatModel([]), model)
    assert hint in caught.value.hint


FILE = """
from tpo_graph.testing import ScriptedChatModel, TableReward
def brevity(response, weight=1.0):
    return -weight * len(response)
table = TableReward({}, default=2.0)
class Own:
    def __init__(self, value=5.0):
        self.value = value
    async def score(self, messages, responses):
        return [self.value for _ in responses]
"""


async def test_functions_and_reward_models_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_for_test.py").write_text(FILE)
    file = f"{tmp_path}/my_rewards_for_test.py"
    assert await load_function(f"{file}:brevity").score(QUERY, ["ab"]) == [-2.0]
    assert isinstance(load_function(f"{file}:table"), TableReward)
    assert await load_function(f"{file}:Own", value=7.0).score(QUERY, ["a"]) == [7.0]
    with pytest.raises(ConfigurationError, match=r"Own' can't be made: TypeError: .*'colour'"):
        load_function(f"{file}:Own", colour="red")
    monkeypatch.chdir(tmp_path)
    assert load_function("my_rewards_for_test:brevity", style="response").style == "response"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function", "names no function"),
        ("no_such_module_at_all:f", "no module 'no_such_module_at_all'"),
        ("math:no_such", "has nothing named 'no_such'"),
        ("no_such_file.py:f", "There is no file"),
        ("math:pi", "something to call"),
        ("broken.py:f", "can't be imported: NameError"),
        ("needs.py:f", "can't be imported: ModuleNotFoundError"),
    ],
)
def test_names_that_lead_nowhere(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("undefined_name")
    (tmp_path / "needs.py").write_text("import no_such_module_at_all")
    with pytest.raises(ConfigurationError, match=message):
        load_function(name)
