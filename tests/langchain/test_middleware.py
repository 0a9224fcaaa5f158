"""TPOMiddleware in an agent: final answers are optimised in place, tool calls are left alone."""

import asyncio

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from tests.fresh_process import run_script
from tests.langchain.tool_policy import calling, tool_policy
from tests.tpo_script import number_reward, phases_asked, scripted_policy
from tpo_graph import ConfigurationError, TPOSettings
from tpo_graph.langchain.middleware import TPOMiddleware
from tpo_graph.rewards import WatchedReward
from tpo_graph.testing import TableReward

ASKED = {"messages": [("user", "q")]}


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"meaning of {word}"


def agent(policy, *beside, before=(), tools=(look_up,), middleware=None, options=(), **more):
    tpo = middleware or TPOMiddleware(reward=number_reward(), **{"n": 2, "depth": 1, **dict(options)})
    return create_agent(policy, list(tools), middleware=[*before, tpo, *beside], **more)


def run(way, graph, asked=ASKED, config=None):
    return graph.invoke(asked, config) if way == "invoke" else asyncio.run(graph.ainvoke(asked, config))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_final_answer_is_optimised_and_a_tool_call_is_not(way):
    policy = tool_policy(calling(word="tree"), "draft 1")
    state = run(way, agent(policy))
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][1].tool_calls[0]["args"] == {"word": "tree"}
    assert state["messages"][-1].text == "rev 6"
    # the tool call, the draft, one more candidate, loss, gradient, two revisions
    assert len(policy.requests) == 7


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_the_state_has_the_trajectory(way):
    state = run(way, agent(tool_policy("draft 2")))
    assert (state["tpo"]["reward"], state["tpo"]["stop_reason"]) == (5.0, "depth")
    assert [record["best_reward"] for record in state["tpo"]["trajectory"]] == [2.0, 5.0]
    assert state["messages"][-1].response_metadata["tpo"] == state["tpo"]


def test_a_second_reward_model_watches():
    reward = WatchedReward(number_reward(), TableReward({}))
    middleware = TPOMiddleware(reward=reward, n=2, depth=1)
    state = agent(tool_policy("draft 2"), middleware=middleware).invoke(ASKED)
    assert [warning["kind"] for warning in state["tpo"]["warnings"]] == ["second_scorer_failed"]


def test_the_draft_is_a_candidate():
    state = agent(tool_policy("draft 99")).invoke(ASKED)
    assert state["messages"][-1].text == "draft 99"


def test_usage_is_that_of_the_draft_and_of_all_others():
    policy = tool_policy("draft 9")
    message = agent(policy).invoke(ASKED)["messages"][-1]
    asked = sum(len(message.text.split()) for messages in policy.requests for message in messages)
    assert message.usage_metadata["input_tokens"] == asked
    assert message.usage_metadata["output_tokens"] == 2 + 2 + 2 + 3 + 2 * 2


def test_candidates_see_the_system_prompt_and_have_the_tools():
    policy = tool_policy("draft 9")
    agent(policy, system_prompt="Be kind.").invoke(ASKED)
    for messages, knobs in zip(policy.requests[:2], policy.knobs[:2], strict=True):
        assert [message.text for message in messages] == ["Be kind.", "q"]
        assert knobs["tools"][0]["function"]["name"] == "look_up"


def test_only_answers_that_are_worth_it():
    seen = []

    def when(message, request):
        seen.append((message.text, request.messages[-1].text))
        return "99" not in message.text

    policy = tool_policy("draft 99")
    state = agent(policy, options={"when": when}).invoke(ASKED)
    assert (state["messages"][-1].text, state["tpo"], len(policy.requests)) == ("draft 99", None, 1)
    assert seen == [("draft 99", "q")]


def test_a_thread_remembers_the_record_of_its_latest_answer():
    policy = tool_policy(*["draft 9", "cand 1"], "draft 99")
    graph = agent(
        policy, options={"depth": 0, "when": lambda message, _: "99" not in message.text}, checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "t"}}
    assert graph.invoke(ASKED, config)["tpo"]["reward"] == 9.0
    assert graph.invoke(ASKED, config)["tpo"] is None


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("last", ["empty", "a wrong call", "a structured response"])
def test_the_record_of_an_earlier_answer_is_not_that_of_a_turn_that_ends_in_another_way(way, last):
    class Weather(BaseModel):
        sky: str

    wrong = {"name": "look_up", "args": "{", "id": "1", "error": "no JSON", "type": "invalid_tool_call"}
    ends = {
        "empty": AIMessage(""),
        "a wrong call": AIMessage("", invalid_tool_calls=[wrong]),
        "a structured response": calling("Weather", sky="blue"),
    }
    options = {"options": {"depth": 0, "n": 1}, "checkpointer": InMemorySaver()}
    if last == "a structured response":
        options["response_format"] = ToolStrategy(Weather)
    policy = tool_policy("draft 9", calling(word="tree"), ends[last])
    graph = agent(policy, **options)
    config = {"configurable": {"thread_id": "t"}}
    assert run(way, graph, config=config)["tpo"]["reward"] == 9.0
    state = run(way, graph, config=config)
    assert (state["tpo"], len(policy.requests)) == (None, 3)
    assert state["messages"][-1].text == "" or state["structured_response"] == Weather(sky="blue")


def test_the_draft_counts_for_the_budget():
    """One draft, one more candidate, and four requests a step."""
    for most, least in ((6, 6), (9, 6), (10, 10)):
        policy = tool_policy("draft 9")
        state = agent(policy, options={"depth": 9, "budget_requests": most}).invoke(ASKED)
        assert least <= len(policy.requests) <= most
        assert state["tpo"]["stop_reason"] == "budget"


def test_the_id_is_the_one_that_was_streamed():
    graph = agent(tool_policy("draft 9"))
    parts = list(graph.stream(ASKED, stream_mode=["messages", "values"]))
    streamed = {part[0].id for mode, part in parts if mode == "messages"}
    assert streamed == {parts[-1][1]["messages"][-1].id}


def text_of(parts):
    return [message.text for message, _ in parts if message.type in ("ai", "AIMessageChunk") and message.text]


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("subgraphs", [False, True])
def test_the_draft_is_not_streamed_and_the_answer_is(way, subgraphs):
    graph = agent(tool_policy(calling(word="tree"), "draft 9"), options={"depth": 0, "n": 3})

    async def collect():
        return [part async for part in graph.astream(ASKED, stream_mode="messages", subgraphs=subgraphs)]

    if way == "stream":
        parts = list(graph.stream(ASKED, stream_mode="messages", subgraphs=subgraphs))
    else:
        parts = asyncio.run(collect())
    parts = [part for _, part in parts] if subgraphs else parts
    assert text_of(parts) == ["draft ", "9"]
    calls = [message.tool_calls for message, _ in parts if getattr(message, "tool_calls", None)]
    assert len(calls) == 1


async def test_steps_are_in_the_custom_stream():
    parts = [part async for part in agent(tool_policy("draft 9")).astream(ASKED, stream_mode="custom")]
    assert [part["tpo_step"]["step"] for part in parts if "tpo_step" in part] == [0, 1]


def test_a_policy_of_its_own():
    model, policy = tool_policy("draft 9"), scripted_policy()
    state = agent(model, options={"policy": policy}).invoke(ASKED)
    assert (len(model.requests), phases_asked(policy)) == (1, ["sample", "loss", "gradient", "update", "update"])
    assert state["messages"][-1].response_metadata["model_name"] == "tpo/ScriptedChatModel"


def test_the_name_of_the_agent_stays_on_its_message():
    assert agent(tool_policy("draft 9"), name="helper").invoke(ASKED)["messages"][-1].name == "helper"


def test_a_failing_run_leaves_the_draft():
    policy = tool_policy("draft 9", *[ValueError("busy")] * 3)
    state = agent(policy, options={"n": 2, "max_retries": 0}).invoke(ASKED)
    assert (state["messages"][-1].text, state["tpo"]["stop_reason"]) == ("draft 9", "policy_failed")


class Says(AgentMiddleware):
    """Adds a word to the system message of every request."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    @property
    def name(self):
        return f"Says {self.word}"

    def wrap_model_call(self, request, handler):
        before = request.system_message.text if request.system_message else ""
        return handler(request.override(system_message=SystemMessage(f"{before}{self.word}")))


def test_order_decides_who_sees_the_changes_of_other_middleware():
    policy = tool_policy("draft 9")
    agent(policy, Says("after"), before=[Says("before")], options={"depth": 0}).invoke(ASKED)
    draft, candidate = policy.requests
    assert (draft[0].text, candidate[0].text) == ("beforeafter", "before")


def test_behind_a_fallback_the_other_model_is_the_policy():
    broken, other = tool_policy(ValueError("no")), tool_policy("draft 9")
    state = agent(broken, before=[ModelFallbackMiddleware(other)]).invoke(ASKED)
    assert state["messages"][-1].text == "draft 9"
    assert (len(broken.requests), len(other.requests)) == (1, 6)


def test_before_a_fallback_the_draft_is_the_other_models():
    broken, other = tool_policy(ValueError("no")), tool_policy("draft 9")
    state = agent(broken, ModelFallbackMiddleware(other)).invoke(ASKED)
    assert state["messages"][-1].text == "draft 9"
    assert (len(broken.requests), len(other.requests)) == (6, 1)


@pytest.mark.parametrize("place", ["before", "after"])
def test_beside_retries(place):
    policy = tool_policy(ValueError("no"), "draft 9")
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0)
    graph = agent(policy, before=[retry]) if place == "before" else agent(policy, retry)
    state = graph.invoke(ASKED)
    assert (state["messages"][-1].text, state["tpo"]["stop_reason"]) == ("draft 9", "depth")


def test_settings_reach_the_run():
    settings = TPOSettings(mode="bon", n=4)
    policy = tool_policy("draft 9")
    agent(policy, middleware=TPOMiddleware(reward=number_reward(), settings=settings)).invoke(ASKED)
    assert len(policy.requests) == 4


def test_wrong_arguments_are_refused_when_it_is_made():
    with pytest.raises(ConfigurationError, match="does not take 'deph'"):
        TPOMiddleware(reward=number_reward(), deph=2)


@pytest.mark.subprocess
def test_without_langchain_the_import_says_what_to_install():
    script = """
        import sys

        sys.modules["langchain"] = None
        sys.modules["langchain.agents.middleware"] = None
        try:
            import tpo_graph.langchain.middleware
        except ImportError as error:
            print(type(error).__name__, "pip install '.[langchain]'" in str(error))
        import tpo_graph.langchain.chat_model
    """
    ended = run_script(script)
    assert ended.stdout == "MissingDependencyError True\n", ended.stderr


def test_agents_that_share_a_middleware_keep_their_own_models():
    first, second = tool_policy("draft 9"), tool_policy("draft 8")
    tpo = TPOMiddleware(reward=number_reward(), n=2, depth=0)
    for policy, text in [(first, "draft 9"), (second, "draft 8")]:
        assert create_agent(policy, middleware=[tpo]).invoke(ASKED)["messages"][-1].text == text
    assert (len(first.requests), len(second.requests)) == (2, 2)
