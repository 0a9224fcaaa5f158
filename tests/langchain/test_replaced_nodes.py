"""Nodes of ones own inside a chat model: what the call asks for holds for them too, and what can't work is refused."""

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from tests.langchain.test_tools import look_up
from tests.langchain.tool_policy import calling, tool_policy
from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import ConfigurationError
from tpo_graph.graph.build import make_nodes
from tpo_graph.graph.state import TPOState
from tpo_graph.human.nodes import human_nodes
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.testing import ScriptedChatModel


def asking_a_person(policy):
    return ChatTPO(policy=policy, reward=number_reward(), n=2, depth=1, nodes=human_nodes(policy))


def test_a_node_that_asks_a_person_is_refused():
    with pytest.raises(ConfigurationError, match="as a node of your graph"):
        asking_a_person(scripted_policy()).invoke("q")


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_in_a_graph_it_does_not_interrupt_that_one(way):
    policy = scripted_policy()
    model = asking_a_person(policy)
    builder = StateGraph(MessagesState)
    if way == "invoke":
        builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    else:

        async def ask(state):
            return {"messages": [await model.ainvoke(state["messages"])]}

        builder.add_node("model", ask)
    builder.add_edge(START, "model")
    graph = builder.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(ConfigurationError, match="as a node of your graph"):
        await graph.ainvoke({"messages": "q"}, config)
    assert len(policy.requests) == 2


def test_a_node_may_be_a_graph_of_many_steps():
    score = StateGraph(TPOState)
    before = START
    for place in range(8):
        score.add_node(f"step {place}", lambda state: {})
        score.add_edge(before, f"step {place}")
        before = f"step {place}"

    def scored(state):
        return {
            "cache": [{**candidate, "reward": float(candidate["text"].split()[-1])} for candidate in state["pending"]]
        }

    score.add_node("score", scored)
    score.add_edge(before, "score")
    model = ChatTPO(policy=scripted_policy(), reward=number_reward(), n=2, depth=0, nodes={"score": score.compile()})
    assert model.invoke("q").text == "cand 1"


def all_nodes(policy):
    """Nodes that were made elsewhere, with the default settings."""
    return make_nodes(policy, number_reward())


def test_candidates_end_at_the_stop_texts():
    policy = ScriptedChatModel(lambda messages, number: f"hello {number} STOP 0")
    model = ChatTPO(policy=policy, reward=number_reward(), n=2, mode="bon", nodes=all_nodes(policy))
    assert model.invoke("q", stop=["STOP"]).text == "hello 1"


def test_the_first_reply_has_the_tools():
    policy = tool_policy(calling(word="tree"))
    model = ChatTPO(policy=policy, reward=number_reward(), nodes=all_nodes(policy)).bind_tools([look_up])
    assert model.invoke("q").tool_calls[0]["args"] == {"word": "tree"}
    assert policy.knobs[0]["tools"][0]["function"]["name"] == "look_up"


def test_a_text_is_a_candidate_beside_those_of_ones_own():
    policy = tool_policy("draft 9")
    model = ChatTPO(policy=policy, reward=number_reward(), n=2, mode="bon", nodes=all_nodes(policy))
    assert model.bind_tools([look_up]).invoke("q").text == "draft 9"
    assert len(policy.requests) == 2
