"""A person in the loop: after each scoring you pick best and worst or stop; and you edit what the critic writes.

The graph stops at an interrupt and goes on from its checkpoint, so that the answer may come days later and from another
process; here it comes from the terminal.

Run it with:  python examples/human_in_the_loop.py [a name of load_policy]
"""

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from offline_models import chosen_models

from tpo_graph import TPOSettings, create_tpo_graph
from tpo_graph.human import human_nodes

policy, reward = chosen_models()
settings = TPOSettings(n=3, depth=1)
nodes = human_nodes(policy, settings=settings, edit_critique=True)
graph = create_tpo_graph(policy, reward, settings=settings, nodes=nodes, checkpointer=InMemorySaver())
thread: RunnableConfig = {"configurable": {"thread_id": "mine"}}

result = graph.invoke({"query": "Why does warmth make you feel tired?"}, thread)
while "__interrupt__" in result:
    asked = result["__interrupt__"][0].value
    if asked["kind"] == "tpo_choice":
        for candidate in asked["candidates"]:
            print(f"{candidate['id']}  reward {candidate['reward']:+.2f}  {candidate['text']}")
        print(asked["problem"] or asked["question"])
        print("An id picks the best; or JSON with best, worst, critique, stop; or ok.")
    else:
        print(f"critique: {asked['critique']}")
        print(asked["problem"] or asked["question"])
        print("A text takes its place; ok keeps it.")
    result = graph.invoke(Command(resume=input("> ")), thread)

print(f"{result['stop_reason']}: {result['answer']}")
