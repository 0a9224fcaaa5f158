"""A preference that lasts: what a person chose becomes a sentence that they confirm, stored for the next question.

Run it with:  python examples/preference_memory.py [a name of load_policy]
"""

from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt
from offline_models import chosen_models

from tpo_graph import TPOSettings, create_tpo_graph
from tpo_graph.human import human_nodes

policy, reward = chosen_models()
settings = TPOSettings(n=3, depth=1)
tpo = create_tpo_graph(policy, reward, settings=settings, nodes=human_nodes(policy, settings=settings))
NAMESPACE = ("preferences", "ada")  # in an application: the id of the user who is logged in


class State(MessagesState):
    """A conversation, what the person decided in the last run, and the sentence about it."""

    choices: list[dict[str, Any]]
    sentence: str


def stored(runtime: Runtime) -> str:
    """The sentence that is stored for this person."""
    item = runtime.store.get(NAMESPACE, "preference") if runtime.store else None
    return str(item.value["text"]) if item else ""


def answer(state: State, runtime: Runtime) -> dict[str, Any]:
    """Run the TPO loop with the stored preference; the person is asked inside it."""
    result = tpo.invoke({"messages": state["messages"]}, context=TPOSettings(preference=stored(runtime)))
    return {"messages": result["messages"][-1:], "choices": result["choices"]}


def word(state: State) -> dict[str, Any]:
    """Let the policy put the choices into one sentence."""
    if not state["choices"]:
        return {"sentence": ""}  # accepting a proposal says nothing about a preference
    shown = "\n\n".join(f"Chosen: {choice['best']}\nInstead of: {choice['worst']}" for choice in state["choices"])
    request = f"{shown}\n\nSay in one sentence what this person prefers in an answer."
    return {"sentence": policy.invoke([HumanMessage(request)]).text.strip()}


def keep(state: State, runtime: Runtime) -> None:
    """Store the sentence once the person has confirmed or reworded it."""
    # a node of its own, because a node that interrupts runs again from its beginning
    # when it is resumed, and the policy would be asked twice
    if not state["sentence"]:
        return
    reply = interrupt({"question": f"Remember this? {state['sentence']!r} (ok, your own words, or nothing)"})
    text = state["sentence"] if reply == "ok" else reply
    if text and runtime.store:
        runtime.store.put(NAMESPACE, "preference", {"text": text})


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_node("word", word)
builder.add_node("keep", keep)
builder.add_edge(START, "answer")
builder.add_edge("answer", "word")
builder.add_edge("word", "keep")
store = InMemoryStore()  # langgraph.store.sqlite and langgraph.store.postgres have stores that outlive the process
graph = builder.compile(checkpointer=InMemorySaver(), store=store)


def ask(question: str, thread: str, replies: list[Any]) -> dict[str, Any]:
    """One question, with the replies of the person in the order in which they are asked."""
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    result: dict[str, Any] = graph.invoke({"messages": [HumanMessage(question)], "choices": [], "sentence": ""}, config)
    for reply in replies:
        print(f"{result['__interrupt__'][0].value['question']}\n> {reply}")
        result = graph.invoke(Command(resume=reply), config)
    return result


ask("Why does warmth make you feel tired?", "1", [{"best": "0-1", "stop": True}, "Answer in a few words."])
remembered = store.get(NAMESPACE, "preference")
print("stored:", remembered.value["text"] if remembered else "nothing")
result = ask("Why is the sky blue?", "2", ["ok", "ok"])
print(result["messages"][-1].text)
