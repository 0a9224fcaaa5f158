"""A preference that lasts: what you chose is put into a sentence, shown to you, kept, and used for the next question.

Run it with:  python examples/preference_memory.py [a name of load_policy]
"""

from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command
from offline_models import chosen_models

from tpo_graph import TPOSettings
from tpo_graph.graph.preference_learning import create_memory_graph

policy, reward = chosen_models()
store = InMemoryStore()  # langgraph.store.sqlite and .postgres have lasting ones
graph = create_memory_graph(
    policy, reward, settings=TPOSettings(n=3, depth=1), checkpointer=InMemorySaver(), store=store
)


def ask(question: str, thread: str, answers: list[str]) -> dict[str, Any]:
    """One run of user ada, who gives these answers when she is asked."""
    config = {"configurable": {"thread_id": thread, "user_id": "ada"}}
    result: dict[str, Any] = graph.invoke({"query": question}, config)
    for answer in answers:
        asked = result["__interrupt__"][0].value
        print(f"{asked['question']}\n> {answer}")
        result = graph.invoke(Command(resume=answer), config)
    return result


# she takes the second draft, and no other, and words what is kept herself
ask("Why does warmth make you feel tired?", "1", ['{"best": "0-1", "stop": true}', "Answer in a few words."])
print("kept:", [item.value["text"] for item in store.search(("tpo_graph", "preferences", "ada"))])
# who only says ok has told nothing about themselves, and there is nothing to keep
result = ask("Why is the sky blue?", "2", ["ok", "ok"])
print(f"{result['stop_reason']}: {result['answer']}")
