"""The compiled graph as a node of other people's graphs."""

from dataclasses import dataclass
from typing import Annotated

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from typing_extensions import TypedDict

from tests.tpo_script import number_reward, phases_asked, scripted_policy
from tpo_graph import ConfigurationError, create_tpo_graph
from tpo_graph.langchain.chat_model import ChatTPO

ASKED = {"messages": [("user", "q")]}


class Parent(MessagesState):
    """A parent with keys that the inner state has as well, and means something else by."""

    step: Annotated[int, lambda left, right: left + right]
    answer: list[str]
    usage: str


def parent(tpo, *, schema=MessagesState, context_schema=None, **compile_options):
    def greet(state):
        return {"messages": [HumanMessage("again: q")]}

    builder = StateGraph(schema, context_schema=context_schema)
    builder.add_node("greet", greet)
    builder.add_node("tpo", tpo)
    builder.add_edge(START, "greet")
    builder.add_edge("greet", "tpo")
    return builder.compile(**compile_options)


def inner(policy=None, **options):
    return create_tpo_graph(policy or scripted_policy(), number_reward(), **options)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_answer_is_added_to_the_parents_messages(way):
    policy = scripted_policy()
    graph = parent(inner(policy))
    state = graph.invoke(ASKED) if way == "invoke" else await graph.ainvoke(ASKED)
    assert [message.text for message in policy.requests[0]] == ["q", "again: q"]
    assert [message.text for message in state["messages"]] == ["q", "again: q", "rev 18"]
    assert set(state) == {"messages"}


async def test_messages_are_streamed_without_drafts():
    graph = parent(inner())
    parts = [part async for part in graph.astream(ASKED, stream_mode="messages", subgraphs=True)]
    texts = [message.text for _, (message, _) in parts if message.type != "human"]
    assert set(texts) == {"rev 18"}


def test_two_of_them_one_after_the_other():
    builder = StateGraph(MessagesState)
    builder.add_node("first", inner())
    builder.add_node("ask", lambda state: {"messages": [HumanMessage("and?")]})
    builder.add_node("second", inner(scripted_policy(sample=lambda number: f"other {number}"), nodes=None))
    builder.add_edge(START, "first")
    builder.add_edge("first", "ask")
    builder.add_edge("ask", "second")
    state = builder.compile().invoke(ASKED, {"recursion_limit": 100})
    assert [message.type for message in state["messages"]] == ["human", "ai", "human", "ai"]


def test_a_thread_of_the_parent_goes_on():
    graph = parent(inner(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    graph.invoke(ASKED, config)
    state = graph.invoke(ASKED, config)
    assert [message.type for message in state["messages"]] == ["human", "human", "ai"] * 2


@dataclass
class Tenant:
    name: str
    n: int = 3


class TenantDict(TypedDict):
    name: str


@pytest.mark.parametrize(
    ("schema", "context"),
    [(Tenant, Tenant("me")), (TenantDict, {"name": "me"}), (None, None)],
    ids=["dataclass", "dict", "none"],
)
async def test_a_context_of_the_parents_own_is_not_read(schema, context):
    policy = scripted_policy()
    graph = parent(inner(policy), context_schema=schema)
    state = await graph.ainvoke(ASKED, context=context)
    assert state["messages"][-1].text == "rev 18"
    assert phases_asked(policy).count("sample") == 5


def test_settings_in_a_context_of_the_parents_own_count():
    class WithSettings(TypedDict, total=False):
        name: str
        n: int
        mode: str

    policy = scripted_policy()
    parent(inner(policy), context_schema=WithSettings).invoke(ASKED, context={"name": "me", "n": 2, "mode": "bon"})
    assert len(policy.requests) == 2


def test_settings_in_the_parents_config_count():
    policy = scripted_policy()
    parent(inner(policy)).invoke(ASKED, {"configurable": {"n": 2, "mode": "bon"}})
    assert len(policy.requests) == 2


def test_a_chat_model_never_reads_the_context_or_the_config_of_the_graph_around_it():
    class WithSettings(TypedDict, total=False):
        n: int
        mode: str

    policy = scripted_policy()
    model = ChatTPO(policy=policy, reward=number_reward(), n=4, depth=0)

    def ask(state):
        return {"messages": [model.invoke(state["messages"])]}

    config = {"configurable": {"mode": "fast", "sample_temperature": 9}}
    parent(ask, context_schema=WithSettings).invoke(ASKED, config, context={"n": 2, "mode": "tpo"})
    assert len(policy.requests) == 4


def test_a_wrong_setting_in_the_parents_context_is_named():
    with pytest.raises(ConfigurationError, match="n=0"):
        parent(inner(), context_schema=dict).invoke(ASKED, context={"n": 0})


def test_keys_of_the_same_name_keep_the_parents_meaning():
    """A parent that has `step`, `answer` or `usage` too calls the graph in a node of its own."""
    tpo = inner()

    def ask(state):
        result = tpo.invoke({"messages": state["messages"]}, {"recursion_limit": 100})
        return {"messages": [result["messages"][-1]], "answer": [result["answer"]], "step": 1}

    state = parent(ask, schema=Parent).invoke({**ASKED, "step": 10, "usage": "mine"})
    assert (state["step"], state["answer"], state["usage"]) == (11, ["rev 18"], "mine")
