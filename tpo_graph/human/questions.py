"""What a person is asked after scoring, and what they may answer. Plain values both, as Studio sends them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.state import TPOState
from tpo_graph.types import PreferencePair, ScoredCandidate, StopReason

GO_ON = ("", "ok", "yes", "go on", "continue")
"""Words that accept what is shown."""

_LAST = "This is the last choice: the best becomes the answer."
_FORM = {
    "best": "an id; leave out to accept the one above",
    "worst": "an id; leave out to accept the one above",
    "critique": "why the best is better and what it lacks; leave out to let the critic say",
    "stop": "true ends the run with the best as the answer",
}


@dataclass(frozen=True)
class HumanChoice:
    """What a person decided.

    Attributes:
        best: id of the candidate that is to be improved, or that is the answer.
        worst: id of the one that it is compared with.
        critique: the textual loss in the person's words; "" leaves it to the critic.
        stop: the run ends here.
        picked: they named one of the two, and did not just accept what was proposed.
    """

    best: str
    worst: str
    critique: str = ""
    stop: bool = False
    picked: bool = False


def standing_pair(state: TPOState) -> PreferencePair:
    """Best and worst by reward, as far as no person has decided otherwise.

    What a person chose stands until a new candidate has a higher (for the worst: a lower) reward. Where nobody chose,
    this is the best and the worst of the whole cache.
    """
    step = state["step"]
    new = [candidate for candidate in state["cache"] if candidate["step"] == step]
    kept = [(state["best"], state["worst"])] if step > 0 else []
    return PreferencePair(
        best=max([*(best for best, _ in kept), *new], key=_reward),
        worst=min([*(worst for _, worst in kept), *new], key=_reward),
    )


def choice_question(
    state: TPOState, proposed: PreferencePair, *, ends: StopReason | None, takes_critique: bool, problem: str
) -> dict[str, Any]:  # Any: JSON
    """The value of the interrupt: the candidates, the best one first, and how to answer."""
    what = _LAST if ends else "The best is improved next."
    if ends == "no_preference":
        what = "Their rewards are equal: tell two apart, or the run ends."
    form = {name: text for name, text in _FORM.items() if name != "critique" or takes_critique}
    return {
        "kind": "tpo_choice",
        "question": f"Which candidate is best, and which is worst? {what}",
        "problem": problem,
        "step": state["step"],
        "best": proposed["best"]["id"],
        "worst": proposed["worst"]["id"],
        "ends": ends,
        "candidates": [
            {name: candidate[name] for name in ("id", "step", "reward", "text")}
            for candidate in sorted(state["cache"], key=_reward, reverse=True)
        ],
        "answer": form,
    }


def parse_choice(
    answer: object, proposed: PreferencePair, cache: Sequence[ScoredCandidate], *, takes_critique: bool
) -> HumanChoice:
    """What a person decided, from what came back.

    Args:
        answer: an object with any of `best`, `worst`, `critique` and `stop`, also as JSON text; or a word: `ok`,
            `stop`, or the id of the best.
        proposed: what stands where the answer says nothing.
        cache: the candidates to choose from.
        takes_critique: whether the graph has a use for a critique.

    Raises:
        ConfigurationError: the answer can't be understood; the message says why and is shown to the person.
    """
    told = _as_mapping(answer)
    allowed = [name for name in _FORM if name != "critique" or takes_critique]
    if unknown := [str(name) for name in told if name not in allowed]:
        raise ConfigurationError(f"Unknown: {', '.join(unknown)}; allowed: {', '.join(allowed)}.")
    ids = [candidate["id"] for candidate in cache]
    for name in ("best", "worst"):
        if told.get(name) is not None and told[name] not in ids:
            raise ConfigurationError(f"{name}={told[name]!r} is no candidate; candidates are {', '.join(ids)}.")
    critique, stop = told.get("critique") or "", told.get("stop") or False
    if not isinstance(critique, str):
        raise ConfigurationError(f"critique={critique!r} is not a text.")
    if not isinstance(stop, bool):
        raise ConfigurationError(f"stop={stop!r} is neither true nor false.")
    picked = bool(told.get("best") or told.get("worst"))
    best = told.get("best") or proposed["best"]["id"]
    worst = told.get("worst") or proposed["worst"]["id"]
    if best == worst and len(ids) > 1 and picked:
        if told.get("worst"):
            raise ConfigurationError(f"{best!r} can't be both best and worst.")
        # the one proposed as worst was picked as best: the lowest of the others takes its place
        worst = min((each for each in cache if each["id"] != best), key=_reward)["id"]
    return HumanChoice(best, worst, critique.strip(), stop, picked)


def _as_mapping(answer: object) -> Mapping[str, Any]:  # Any: JSON
    if isinstance(answer, str):
        text = answer.strip()
        if text.lower() in GO_ON:
            return {}
        if text.lower() == "stop":
            return {"stop": True}
        if not text.startswith("{"):
            return {"best": text}
        try:
            answer = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"This is not valid JSON: {error}.") from error
    if answer is None or answer is True:
        return {}
    if not isinstance(answer, Mapping):
        raise ConfigurationError(f"The answer is {answer!r}; an object with {', '.join(_FORM)} was expected.")
    return answer


def _reward(candidate: ScoredCandidate) -> float:
    return candidate["reward"]
