"""The TPO graph as a node of your own graph: it reads and adds messages, and can be watched from outside.

Run it with:  python examples/subgraph.py [a name of load_policy]
"""

from langchain_core.messages import SystemMessage
from langgraph.graph import START, MessagesState, StateGraph
from offline_models import chosen_models

from tpo_graph import TPOSettings, create_tpo_graph


def set_the_tone(_: MessagesState) -> dict[str, list[SystemMessage]]:
    """Something of your own that happens first."""
    return {"messages": [SystemMessage("Answer for a ten-year-old.")]}


policy, reward = chosen_models()
tpo = create_tpo_graph(policy, reward, settings=TPOSettings(n=3, depth=1))

builder = StateGraph(MessagesState)
builder.add_node("set_the_tone", set_the_tone)
builder.add_node("tpo", tpo)
builder.add_edge(START, "set_the_tone")
builder.add_edge("set_the_tone", "tpo")
graph = builder.compile()

asked = {"messages": [("user", "Why does warmth make you feel tired?")]}
for namespace, update in graph.stream(asked, stream_mode="updates", subgraphs=True):
    for node, values in update.items():
        print("  " * len(namespace) + node)
        if not namespace and node == "tpo":
            print(values["messages"][-1].text)
