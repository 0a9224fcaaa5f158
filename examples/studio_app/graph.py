"""An app of your own for LangGraph Studio: nodes of yours, and between them the whole loop with all its knobs.

Open it with `langgraph dev` in this folder. Policy, prompts and settings are chosen in Studio; the reward model is the
function in `house_style.py`, which `langgraph.json` names, until you choose another.
"""

from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from typing_extensions import TypedDict

from tpo_graph.studio import StudioSettings, create_studio_graph

RULES = "You answer letters of a library's readers. Greet them, answer in at most eighty words, promise nothing."


class Letter(TypedDict):
    """What comes in."""

    letter: str


class Office(MessagesState):
    """The run: the conversation that TPO sees, and what goes out."""

    letter: str
    reply: str


def open_letter(state: Letter) -> dict[str, Any]:
    """The letter, behind the rules of the house."""
    # by its id the message of an earlier letter in the thread is replaced
    return {"messages": [SystemMessage(RULES, id="rules"), HumanMessage(state["letter"])]}


def sign(state: Office) -> dict[str, Any]:
    """The answer, signed."""
    return {"reply": f"{state['messages'][-1].text}\n\nYour library"}


builder = StateGraph(Office, context_schema=StudioSettings, input_schema=Letter)
builder.add_node("open_letter", open_letter)
builder.add_node("tpo", create_studio_graph())
builder.add_node("sign", sign)
builder.add_edge(START, "open_letter")
builder.add_edge("open_letter", "tpo")
builder.add_edge("tpo", "sign")
builder.add_edge("sign", END)
graph = builder.compile(name="letters")
