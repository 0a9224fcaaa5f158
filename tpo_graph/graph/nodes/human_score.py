"""score with a person: the reward is what they say."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.state import TPOState
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, PersonChoice, ScoredCandidate

__all__ = ["PersonReward", "human_score_node"]


class PersonReward:
    """Takes the reward model's place where `human_score_node` does the scoring; it has no reward of its own."""

    async def score(self, messages: Sequence[object], responses: Sequence[str]) -> list[float]:
        """Never gives one: a person is asked by a node, which can wait for days.

        Raises:
            RewardError: always.
        """
        del messages
        raise RewardError(
            f"A person scores {len(responses)} responses, and nobody was asked.",
            hint='Put the node in its place: nodes={"score": human_score_node()}.',
        )


def human_score_node() -> NodeBody:
    """A `score` that stops the graph and asks a person; needs a checkpointer.

    Use it as `create_tpo_graph(policy, PersonReward(), nodes={"score": human_score_node()}, checkpointer=...)`. The run
    goes on by `Command(resume=...)` with one of:

    - `{"ratings": {"0-0": 7, "0-1": 3.5}}`: a number for each new candidate, on a scale of the person's own;
    - `{"best": "0-0", "worst": "0-1"}`: a pick among the new candidates and the best so far; `worst` may be left out.
      A best candidate is then one above all before it, a worst one is one below, and the others are 0.

    An answer that can't be understood brings the interrupt again, with what was wrong. Texts that the cache has keep
    their reward; when there is nothing new to score, nobody is asked.
    """

    async def human_score(
        state: TPOState,
        runtime: Runtime[TPOSettings],  # noqa: ARG001  # all nodes are called alike
    ) -> dict[str, Any]:  # Any: a partial state
        cache, pending = state["cache"], state["pending"]
        known = {candidate["text"]: candidate["reward"] for candidate in cache}
        new = list({each["text"]: each for each in reversed(pending) if each["text"] not in known}.values())[::-1]
        rewards = {**known, **(_ask(new, cache) if new else {})}
        scored = [ScoredCandidate(**candidate, reward=rewards[candidate["text"]]) for candidate in pending]
        choices = _decided(state["step"], new, cache, rewards)
        return {"cache": scored, "pending": [], "choices": choices, "usage": {"score": no_usage()}}

    return human_score


def _decided(
    step: int, new: Sequence[Candidate], cache: Sequence[ScoredCandidate], rewards: Mapping[str, float]
) -> list[PersonChoice]:
    """What the rewards say of the new candidates and the best so far: the highest was chosen over the lowest."""
    texts = [each["text"] for each in new]
    if not texts:
        return []
    worst = min(texts, key=lambda text: rewards[text])
    best = max([*(each["text"] for each in cache), *texts], key=lambda text: rewards[text])
    told_apart = rewards[best] > rewards[worst]
    return [PersonChoice(step=step, best=best, worst=worst, critique="")] if told_apart else []


def _ask(new: Sequence[Candidate], cache: Sequence[ScoredCandidate]) -> Mapping[str, float]:
    """Rewards by text."""
    best = max(cache, key=lambda candidate: candidate["reward"], default=None)
    problem = ""
    while True:
        answer = interrupt(
            {
                "kind": "tpo_rating",
                "question": "How good is each candidate? Rate all of them, or pick the best (and the worst).",
                "problem": problem,
                "candidates": [{name: each[name] for name in ("id", "step", "text")} for each in new],
                "best_so_far": best and {name: best[name] for name in ("id", "step", "reward", "text")},
                "answer": {"ratings": {each["id"]: "a number" for each in new}, "best": "an id", "worst": "an id"},
            }
        )
        try:
            return _rewards(answer, new, cache, best)
        except ConfigurationError as error:
            problem = str(error)


def _rewards(
    answer: object, new: Sequence[Candidate], cache: Sequence[ScoredCandidate], best: ScoredCandidate | None
) -> Mapping[str, float]:
    if isinstance(answer, str):
        text = answer.strip()
        try:
            answer = json.loads(text) if text.startswith("{") else {"best": text}
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"This is not valid JSON: {error}.") from error
    if not isinstance(answer, Mapping) or not answer.keys() <= {"ratings", "best", "worst"} or not answer:
        raise ConfigurationError(f"The answer is {answer!r}; give either ratings, or best and maybe worst.")
    if "ratings" in answer:
        if len(answer) > 1:
            raise ConfigurationError("Give either ratings or a pick, not both.")
        return _ratings(answer["ratings"], new)
    return _picked(answer.get("best"), answer.get("worst"), new, cache, best)


def _ratings(ratings: object, new: Sequence[Candidate]) -> Mapping[str, float]:
    ids = [each["id"] for each in new]
    if not isinstance(ratings, Mapping) or set(ratings) != set(ids):
        raise ConfigurationError(f"ratings={ratings!r}: a number is needed for each of {', '.join(ids)}.")
    for name, value in ratings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigurationError(f"The rating of {name!r} is {value!r}, which is no finite number.")
    return {each["text"]: float(ratings[each["id"]]) for each in new}


def _picked(
    chosen: object,
    rejected: object,
    new: Sequence[Candidate],
    cache: Sequence[ScoredCandidate],
    best: ScoredCandidate | None,
) -> Mapping[str, float]:
    ids = [each["id"] for each in new]
    choices = [*ids, *([best["id"]] if best else [])]
    if chosen not in choices:
        raise ConfigurationError(f"best={chosen!r} is no candidate; candidates are {', '.join(choices)}.")
    if rejected is not None and rejected not in ids:
        raise ConfigurationError(f"worst={rejected!r} is no new candidate; new are {', '.join(ids)}.")
    if chosen == rejected:
        raise ConfigurationError(f"{chosen!r} can't be both best and worst.")
    rewards = [candidate["reward"] for candidate in cache]
    values = {chosen: max([0.0, *rewards]) + 1, rejected: min([0.0, *rewards]) - 1}
    return {each["text"]: values.get(each["id"], 0.0) for each in new}
