"""score: the reward model's number for every pending candidate."""

import math
from collections.abc import Mapping, Sequence

from langgraph.runtime import Runtime

from tpo_graph.accounting import Stopwatch, no_usage
from tpo_graph.errors import BudgetError, RewardError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import effective_settings, failure, seconds_left
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.retries import before_deadline, limited
from tpo_graph.rewards.base import (
    RewardModel,
    RunContext,
    RunExtremes,
    Scoring,
    highest_reward,
    score_responses,
    usage_of,
)
from tpo_graph.rewards.functions import RewardFunction, as_reward_model
from tpo_graph.rewards.warnings import scoring_warnings
from tpo_graph.selection import preference_pair
from tpo_graph.settings import TPOSettings
from tpo_graph.types import (
    Candidate,
    FailureReason,
    FailureRecord,
    PartialState,
    ScoredCandidate,
    Usage,
    scored_candidate,
)

_GRACE = 0.1  # seconds; requests end by themselves before, and leave the scores that are there


def score_node(reward_model: RewardModel | RewardFunction, *, settings: TPOSettings | None = None) -> AsyncNode:
    """The node that scores what is pending and puts it into the cache, R(x, v_i) (TPO paper, section 3).

    Equal texts are scored once in a run. A reward that is not a finite number makes no candidate; it is recorded.

    Args:
        reward_model: R; a function too. What a second reward model that watches (`WatchedReward`) reports becomes
            `second_rewards` and `warnings`.
        settings: defaults for every run; None reads the `TPO_*` variables.
    """
    defaults = TPOSettings.load() if settings is None else settings
    reward = as_reward_model(reward_model)
    highest = highest_reward(reward)

    async def score(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        pending, step = state["pending"], state["step"]
        chosen = effective_settings(defaults, runtime)
        if not pending:
            return {}
        run = _run_context(state, pending, chosen.preference)
        # what was scored before is not scored again, also where that gave no number
        rewards: dict[str, float | None] = {candidate["text"]: candidate["reward"] for candidate in state["cache"]}
        reasons = {
            record["text"]: record["detail"] for record in state.get("failures", []) if record["reason"] == "not_finite"
        }
        rewards |= dict.fromkeys(reasons, math.nan)
        texts = list(dict.fromkeys(candidate["text"] for candidate in pending))
        new = [text for text in texts if text not in rewards]
        scoring = Scoring([])
        scored: list[ScoredCandidate] = []
        used: Usage = state.get("usage", {})
        left = seconds_left(chosen, used) if step else None  # without a score there is nothing to end with
        if left is not None:
            # so that what arrived at the last moment is not lost to a reward model that is quick
            left = max(left, 2 * used.get("score", no_usage())["seconds"])
        with Stopwatch() as watch, limited(chosen, left) as limits:
            try:
                scoring = await before_deadline(
                    lambda: score_responses(reward, list(state["messages"]), new, run), grace=_GRACE
                )
                usage = scoring.usage
                rewards |= dict(zip(new, scoring.scores, strict=True))
                reasons |= scoring.reasons
                scored, failures = _split(pending, rewards, reasons)
                if not scored and step == 0:
                    why = "; ".join(dict.fromkeys(record["detail"].rstrip(".") for record in failures))
                    raise RewardError(f"No candidate has a finite reward: {why}.", usage=usage)
            except (RewardError, BudgetError) as error:
                usage = usage_of(error)
                is_late = limits.is_over
                if isinstance(error, RewardError) and not is_late and (step == 0 or chosen.on_failure == "raise"):
                    error.unscored = error.unscored or list(pending)
                    error.usage = usage
                    raise
                reason: FailureReason = "out_of_time" if is_late else "scoring_failed"
                failures = [failure("score", step, reason, str(error), candidate["text"]) for candidate in pending]
        second = scoring.second.rewards if scoring.second else {}
        second_by_id = {
            candidate["id"]: second[candidate["text"]] for candidate in scored if candidate["text"] in second
        }
        return {
            "cache": scored,
            "failures": failures,
            "pending": [],
            "usage": {"score": {**usage, "seconds": watch.seconds}},
            "highest_reward": highest,
            "second_rewards": (state.get("second_rewards", {}) if step else {}) | second_by_id,
            "warnings": scoring_warnings(state.get("warnings", []), scoring, texts),
        }

    return AsyncNode(score)


def _run_context(state: TPOState, pending: Sequence[Candidate], preference: str) -> RunContext:
    """The run as a reward model sees it."""
    cache = state["cache"]
    # the texts of step 0, those without a reward too: a resumed run then goes on with the scale that it had
    first = [candidate["text"] for candidate in cache if candidate["step"] == 0]
    failures = state.get("failures", [])
    first += [record["text"] for record in failures if (record["phase"], record["step"]) == ("score", 0)]
    extremes = None
    if cache:
        pair = preference_pair(cache)
        best, worst = pair["best"], pair["worst"]
        extremes = RunExtremes(best["text"], best["reward"], worst["text"], worst["reward"])
    anchors = tuple(dict.fromkeys(first or [candidate["text"] for candidate in pending]))
    return RunContext(anchors=anchors, preference=preference, extremes=extremes)


def _split(
    pending: Sequence[Candidate], rewards: Mapping[str, float | None], reasons: Mapping[str, str]
) -> tuple[list[ScoredCandidate], list[FailureRecord]]:
    """The candidates with a finite reward, and records of the others."""
    scored: list[ScoredCandidate] = []
    failures: list[FailureRecord] = []
    for candidate in pending:
        text, reward = candidate["text"], rewards[candidate["text"]]
        if reward is not None and math.isfinite(reward):
            scored.append(scored_candidate(candidate, reward))
        else:
            detail = reasons.get(text, "The reward does not apply to it." if reward is None else str(reward))
            failures.append(failure("score", candidate["step"], "not_finite", detail, text))
    return scored, failures
