"""The TPO graph as a node of your own graph: it reads and adds messages, and can be watched from outside.

A parent whose state has keys that the TPO graph has too (`query`, `step`, `usage`, ...) calls it in a node of its own.

Run it with:  python examples/subgraph.py [a name of load_policy]
"""

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langgraph.graph import START, MessagesState, StateGraph
from offline_models import chosen_models

from tpo_graph import TPOSettings, create_tpo_graph


def set_the_tone(state: MessagesState) -> dict[str, list[SystemMessage]]:
    """Something of your own that happens first."""
    del state  # the tone is the same for every conversation
    return {"messages": [SystemMessage("Answer for a ten-year-old.")]}


policy, reward = chosen_models()
tpo = create_tpo_graph(policy, reward, settings=TPOSettings(n=3, depth=1))

builder = StateGraph(MessagesState)
builder.add_node("set_the_tone", set_the_tone)
builder.add_node("tpo", tpo)
builder.add_edge(START, "set_the_tone")
builder.add_edge("set_the_tone", "tpo")
graph = builder.compile()

question: AnyMessage = HumanMessage("Why does warmth make you feel tired?")
updates: Iterator[Any] = graph.stream({"messages": [question]}, stream_mode="updates", subgraphs=True)
for namespace, update in updates:
    for node, values in update.items():
        print("  " * len(namespace) + node)
        if not namespace and node == "tpo":
            print(values["messages"][-1].text)


class Ticket(MessagesState):
    """A state with keys of its own, two of which the TPO graph would take for its own."""

    query: str
    step: int


def answer(state: Ticket) -> dict[str, list[AnyMessage]]:
    """Hand over the conversation alone, and take the answer alone."""
    result = tpo.invoke({"messages": state["messages"]})
    return {"messages": result["messages"][-1:]}


tickets = StateGraph(Ticket)
tickets.add_node("answer", answer)
tickets.add_edge(START, "answer")
ticket = tickets.compile().invoke({"messages": [question], "query": "ticket 17", "step": 3})
print(f"{ticket['query']}, step {ticket['step']}: {ticket['messages'][-1].text}")
