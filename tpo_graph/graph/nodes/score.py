"""score: the reward model's number for every pending candidate."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.runtime import Runtime

from tpo_graph.accounting import Stopwatch, no_usage
from tpo_graph.errors import RewardError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.phase import effective_settings, failure
from tpo_graph.graph.state import TPOState
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.parts import RunContext, run_scores
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureRecord, PhaseUsage, ScoredCandidate

__all__ = ["score_node"]


def score_node(reward_model: RewardModel, settings: TPOSettings) -> NodeBody:
    """The node that scores what is pending and puts it into the cache, R(x, v_i) (TPO paper, section 3).

    Equal texts are scored once in a run. A reward that is not a finite number makes no candidate; it is recorded.
    """

    async def score(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        pending, step = state["pending"], state["step"]
        chosen = effective_settings(settings, runtime)
        used = no_usage()
        if not pending:
            return {}
        with Stopwatch() as watch:
            try:
                rewards, used = await _rewards(reward_model, state, pending, chosen.preference)
                scored, failures = _split(pending, rewards)
                if not scored and step == 0:
                    raise RewardError(f"No candidate has a finite reward: {list(rewards.values())}.", unscored=pending)
            except RewardError as error:
                if step == 0 or chosen.on_failure == "raise":
                    error.unscored = error.unscored or list(pending)
                    raise
                scored = []
                failures = [failure("score", step, "scoring_failed", str(error), each["text"]) for each in pending]
        used["seconds"] = watch.seconds
        return {"cache": scored, "failures": failures, "pending": [], "usage": {"score": used}}

    return score


async def _rewards(
    model: RewardModel, state: TPOState, pending: Sequence[Candidate], preference: str
) -> tuple[Mapping[str, float], PhaseUsage]:
    """Rewards by text, and their cost; only texts that the cache does not have are scored."""
    known = {candidate["text"]: candidate["reward"] for candidate in state["cache"]}
    texts = list(dict.fromkeys(each["text"] for each in pending if each["text"] not in known))
    if not texts:
        return known, no_usage()
    # the texts of step 0, those without a reward too: a resumed run then goes on with the scale that it had
    first = [candidate["text"] for candidate in state["cache"] if candidate["step"] == 0]
    first += [lost["text"] for lost in state.get("failures", []) if (lost["phase"], lost["step"]) == ("score", 0)]
    run = RunContext(anchors=tuple(first or texts), preference=preference)
    rewards, used = await run_scores(model, list(state["messages"]), texts, run)
    return known | dict(zip(texts, rewards, strict=True)), used


def _split(
    pending: Sequence[Candidate], rewards: Mapping[str, float]
) -> tuple[list[ScoredCandidate], list[FailureRecord]]:
    scored: list[ScoredCandidate] = []
    failures: list[FailureRecord] = []
    for candidate in pending:
        reward = rewards[candidate["text"]]
        if math.isfinite(reward):
            scored.append(ScoredCandidate(**candidate, reward=reward))
        else:
            failures.append(failure("score", candidate["step"], "not_finite", str(reward), candidate["text"]))
    return scored, failures
