"""gradient with a person before it: they see what the critic wrote, and keep it or write it anew."""

import json
from collections.abc import Mapping
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.human_choice import GO_ON
from tpo_graph.graph.state import TPOState
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PersonChoice

__all__ = ["human_critique_node"]

_FORM = {
    "critique": "another text in place of the critic's; leave out to keep it",
    "gradient": "your own advice on how to improve the best one; leave out to let the critic write it",
}


def human_critique_node(gradient: NodeBody) -> NodeBody:
    """A `gradient` that stops the graph before it works and shows the critic's text; needs a checkpointer.

    The run goes on by `Command(resume=...)` with "ok", a text that takes the place of the critique, or an object with
    `critique`, `gradient` or both. The advice is then made of the new critique: with `fuse_critique`, where the critic
    has given it already, that is one request more. A critique that the person wrote themselves at `select` is not
    shown to them again.

    It stands before `gradient` and not behind the critic in `loss`, because a node that waits is run again from its
    beginning, and would ask the critic again.

    Args:
        gradient: the node that follows.
    """

    async def human_critique(state: TPOState, runtime: Runtime[TPOSettings]) -> Any:  # Any: a partial state
        edited = {} if not state.get("loss") or _is_their_own(state) else _ask(state)
        if not edited:
            return await gradient(state, runtime)
        # advice on another critique is none on this one
        texts = {"loss": edited.get("critique", state["loss"]), "gradient": edited.get("gradient", "")}
        written = "\n".join(text for name, text in edited.items() if text != _shown(state)[name])
        choice = PersonChoice(step=state["step"], best=state["best"]["text"], worst="", critique=written)
        rest = {} if texts["gradient"] else await gradient({**state, **texts}, runtime)
        return {**texts, "choices": [choice], **(rest or {})}

    return human_critique


def _is_their_own(state: TPOState) -> bool:
    mine = [each["critique"] for each in state.get("choices") or [] if each["step"] == state["step"]]
    return state["loss"] in mine


def _shown(state: TPOState) -> Mapping[str, str]:
    return {"critique": state["loss"], "gradient": state.get("gradient", "")}


def _ask(state: TPOState) -> Mapping[str, str]:
    """What the person wrote in place of the critic's texts, by name."""
    problem = ""
    while True:
        question: dict[str, Any] = {  # Any: JSON
            "kind": "tpo_critique",
            "question": "This is what the critic wrote of the best candidate. Keep it, or write it anew.",
            "problem": problem,
            "step": state["step"],
            "best": {name: state["best"][name] for name in ("id", "step", "reward", "text")},
            **_shown(state),
            "answer": _FORM,
        }
        try:
            return _edited(interrupt(question), state)
        except ConfigurationError as error:
            problem = str(error)


def _edited(answer: object, state: TPOState) -> Mapping[str, str]:
    if isinstance(answer, str):
        text = answer.strip()
        if text.lower() == "stop":
            raise ConfigurationError("The run can be stopped at the next choice; answer ok, or a text to go on with.")
        try:
            answer = json.loads(text) if text.startswith("{") else {} if text.lower() in GO_ON else {"critique": text}
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"This is not valid JSON: {error}.") from error
    if answer is None or answer is True:
        answer = {}
    if not isinstance(answer, Mapping) or not answer.keys() <= _FORM.keys():
        raise ConfigurationError(f"The answer is {answer!r}; answer ok, a text, or an object with {', '.join(_FORM)}.")
    for name, value in answer.items():
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{name}={value!r} is not a text.")
    told = {name: (answer.get(name) or "").strip() for name in _FORM}
    changed = {name: text for name, text in told.items() if text and text != _shown(state)[name]}
    # who sends both texts back and changed the critique alone means the advice to stay
    return {**changed, "gradient": told["gradient"]} if changed and told["gradient"] else changed
