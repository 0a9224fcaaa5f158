"""What a person is asked, and what they may reply: plain values both, as LangGraph Studio sends them.

There are three questions: which candidates are best and worst, how good each one is, and whether a critique stays. An
interrupt shows the question; a reply that can't be understood brings the same question again, with the reason.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from langgraph.types import interrupt

from tpo_graph._storable import storable
from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.state import TPOState
from tpo_graph.selection import is_tie
from tpo_graph.types import Candidate, JSONObject, PreferencePair, ScoredCandidate, StopReason

T = TypeVar("T")

_ACCEPTING = ("", "ok", "yes", "go on", "continue")

_CHOICE = {
    "best": "an id; leave out to accept the one above",
    "worst": "an id; leave out to accept the one above",
    "critique": "why the best is better and what it lacks; leave out to let the critic say",
    "stop": "true ends the run with the best as the answer",
}
_CRITIQUE = {
    "critique": "another text in place of the critic's; leave out to keep it",
    "gradient": "your own advice on how to improve the best one; leave out to let the critic write it",
}


@dataclass(frozen=True)
class HumanChoice:
    """What a person decided after scoring.

    Attributes:
        best: id of the candidate that is to be improved, or that is the answer.
        worst: id of the one that it is compared with.
        critique: the textual loss in the person's words; "" leaves it to the critic.
        stop: the run ends here.
        picked: the person named one of the two, and did not just accept what was proposed.
    """

    best: str
    worst: str
    critique: str = ""
    stop: bool = False
    picked: bool = False


def ask_choice(
    state: TPOState, proposed: PreferencePair, *, ends: StopReason | None, takes_critique: bool
) -> HumanChoice:
    """Ask which candidate is best and which is worst.

    Args:
        state: the state after scoring.
        proposed: the pair that stands where the reply names none.
        ends: why the run would end now; None when it goes on.
        takes_critique: whether the graph has a use for a critique.
    """
    fields = {name: text for name, text in _CHOICE.items() if name != "critique" or takes_critique}
    effect = "This is the last choice: the best becomes the answer." if ends else "The best is improved next."
    if not ends and is_tie(proposed) and len(state["cache"]) > 1:
        effect = "Their rewards are equal: tell two apart, or the best is improved without a comparison."
    question = {
        "kind": "tpo_choice",
        "question": f"Which candidate is best, and which is worst? {effect}",
        "problem": "",
        "step": state["step"],
        "best": proposed["best"]["id"],
        "worst": proposed["worst"]["id"],
        "ends": ends,
        "candidates": [
            {name: candidate[name] for name in ("id", "step", "reward", "text")}
            for candidate in sorted(state["cache"], key=_reward, reverse=True)
        ],
        "answer": fields,
    }
    return _ask(question, lambda reply: _read_choice(_as_object(reply, fields, "best"), proposed, state["cache"]))


def ask_rewards(new: Sequence[Candidate], cache: Sequence[ScoredCandidate]) -> Mapping[str, float]:
    """Ask how good each new candidate is.

    Args:
        new: candidates whose texts are not in the cache, at least one.
        cache: the scored candidates of the run.

    Returns:
        A reward for each new text.
    """
    best = max(cache, key=_reward, default=None)
    question = {
        "kind": "tpo_rating",
        "question": "How good is each candidate? Rate all of them, or pick the best (and the worst).",
        "problem": "",
        "candidates": [{name: candidate[name] for name in ("id", "step", "text")} for candidate in new],
        "best_so_far": best and {name: best[name] for name in ("id", "step", "reward", "text")},
        "answer": {"ratings": {candidate["id"]: "a number" for candidate in new}, "best": "an id", "worst": "an id"},
    }
    ids = [candidate["id"] for candidate in new]
    choices = [*ids, *([best["id"]] if best else [])]

    def read(reply: object) -> Mapping[str, float]:
        answer = _as_object(reply, ("ratings", "best", "worst"), "best")
        if not answer:
            raise ConfigurationError(f"The answer is {reply!r}; give either ratings, or best and maybe worst.")
        if "ratings" in answer:
            if len(answer) > 1:
                raise ConfigurationError("Give either ratings or a pick, not both.")
            ratings = answer["ratings"]
            if not isinstance(ratings, Mapping) or set(ratings) != set(ids):
                raise ConfigurationError(f"ratings={ratings!r}: a number is needed for each of {', '.join(ids)}.")
            for name, value in ratings.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ConfigurationError(f"The rating of {name!r} is {value!r}, which is not a finite number.")
            values = {name: float(value) for name, value in ratings.items()}
        else:
            chosen, rejected = answer.get("best"), answer.get("worst")
            _check_id("best", chosen, choices)
            if rejected is not None:
                _check_id("worst", rejected, ids)
            if chosen == rejected:
                raise ConfigurationError(f"{chosen!r} can't be both best and worst.")
            rewards = [0.0, *(candidate["reward"] for candidate in cache)]
            values = {str(chosen): max(rewards) + 1, str(rejected): min(rewards) - 1}
        return {candidate["text"]: values.get(candidate["id"], 0.0) for candidate in new}

    return _ask(question, read)


def ask_critique(state: TPOState) -> Mapping[str, str]:
    """Show what the critic wrote, to be kept or written anew.

    Returns:
        The texts that the person wrote, by `critique` and `gradient`; empty when the critic's stay. Advice that came
        back beside another critique is meant to stay, and is among them.
    """
    shown = {"critique": state["loss"], "gradient": state.get("gradient", "")}
    question = {
        "kind": "tpo_critique",
        "question": "This is what the critic wrote of the best candidate. Keep it, or write it anew.",
        "problem": "",
        "step": state["step"],
        "best": {name: state["best"][name] for name in ("id", "step", "reward", "text")},
        **shown,
        "answer": _CRITIQUE,
    }

    def read(reply: object) -> Mapping[str, str]:
        if isinstance(reply, str) and reply.strip().lower() == "stop":
            raise ConfigurationError("The run can be stopped at the next choice; answer ok, or a text to go on with.")
        answer = _as_object(reply, _CRITIQUE, "critique")
        for name, value in answer.items():
            if value is not None and not isinstance(value, str):
                raise ConfigurationError(f"{name}={value!r} is not a text.")
        texts = {name: (answer.get(name) or "").strip() for name in _CRITIQUE}
        changed = {name: text for name, text in texts.items() if text and text != shown[name]}
        return {**changed, "gradient": texts["gradient"]} if changed and texts["gradient"] else changed

    return _ask(question, read)


def standing_pair(state: TPOState) -> PreferencePair:
    """Best and worst by reward, except where a person has decided otherwise.

    What a person chose stands until a new candidate has a higher (for the worst: a lower) reward. Where nobody chose,
    this is the best and the worst of the whole cache.
    """
    step = state["step"]
    new = [candidate for candidate in state["cache"] if candidate["step"] == step]
    standing = [(state["best"], state["worst"])] if step > 0 else []
    return PreferencePair(
        best=max([*(best for best, _ in standing), *new], key=_reward),
        worst=min([*(worst for _, worst in standing), *new], key=_reward),
    )


def _ask(question: JSONObject, read: Callable[[object], T]) -> T:
    """Interrupt the run until the reply can be understood."""
    while True:
        reply = storable(interrupt(question))
        try:
            return read(reply)
        except ConfigurationError as error:
            question = {**question, "problem": str(error)}


def _as_object(reply: object, allowed: Sequence[str] | Mapping[str, str], word: str) -> JSONObject:
    """A reply as an object: it may be JSON text, a word that accepts what is shown, or the value of one field.

    Args:
        reply: what the run was resumed with.
        allowed: names of the fields.
        word: the field that any other text is the value of.

    Raises:
        ConfigurationError: it is neither; the message is shown to the person.
    """
    fields = ", ".join(allowed)
    if isinstance(reply, str):
        text = reply.strip()
        if text.lower() in _ACCEPTING:
            return {}
        if text.lower() == "stop" and "stop" in allowed:
            return {"stop": True}
        if not text.startswith("{"):
            return {word: text}
        try:
            reply = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"This is not valid JSON: {error}.") from error
        except RecursionError as error:
            raise ConfigurationError("This is nested too deep.") from error
    if reply is None or reply is True:
        return {}
    if not isinstance(reply, Mapping):
        raise ConfigurationError(f"The answer is {reply!r}; an object with {fields} was expected.")
    if unknown := [str(name) for name in reply if name not in allowed]:
        raise ConfigurationError(f"Unknown: {', '.join(unknown)}; allowed: {fields}.")
    return dict(reply)


def _read_choice(answer: JSONObject, proposed: PreferencePair, cache: Sequence[ScoredCandidate]) -> HumanChoice:
    ids = [candidate["id"] for candidate in cache]
    for name in ("best", "worst"):
        if answer.get(name) is not None:
            _check_id(name, answer[name], ids)
    critique, stop = answer.get("critique") or "", answer.get("stop") or False
    if not isinstance(critique, str):
        raise ConfigurationError(f"critique={critique!r} is not a text.")
    if not isinstance(stop, bool):
        raise ConfigurationError(f"stop={stop!r} is neither true nor false.")
    picked = bool(answer.get("best") or answer.get("worst"))
    best = answer.get("best") or proposed["best"]["id"]
    worst = answer.get("worst") or proposed["worst"]["id"]
    if best == worst and len(ids) > 1 and picked:
        if answer.get("worst"):
            raise ConfigurationError(f"{best!r} can't be both best and worst.")
        # the one proposed as worst was picked as best: the lowest of the others takes its place
        worst = min((candidate for candidate in cache if candidate["id"] != best), key=_reward)["id"]
    return HumanChoice(best, worst, critique.strip(), stop, picked)


def _check_id(field: str, value: object, ids: Sequence[str]) -> None:
    if value not in ids:
        raise ConfigurationError(f"{field}={value!r} is not a candidate to choose; these are: {', '.join(ids)}.")


def _reward(candidate: ScoredCandidate) -> float:
    return candidate["reward"]
