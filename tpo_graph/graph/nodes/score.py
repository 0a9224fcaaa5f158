"""score: the reward model's number for every pending candidate."""

import math
from collections.abc import Mapping, Sequence

from langgraph.runtime import Runtime

from tpo_graph.accounting import Stopwatch
from tpo_graph.errors import RewardError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import effective_settings, failure
from tpo_graph.graph.second_opinion import second_opinion
from tpo_graph.graph.state import TPOState
from tpo_graph.rewards.base import RewardModel, RunContext, RunExtremes, run_scores
from tpo_graph.rewards.warnings import with_truncated_inputs
from tpo_graph.selection import preference_pair
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureRecord, PartialState, ScoredCandidate


def score_node(
    reward_model: RewardModel, *, settings: TPOSettings | None = None, second_reward: RewardModel | None = None
) -> AsyncNode:
    """The node that scores what is pending and puts it into the cache, R(x, v_i) (TPO paper, section 3).

    Equal texts are scored once in a run. A reward that is not a finite number makes no candidate; it is recorded.

    Args:
        reward_model: R.
        settings: defaults for every run; None reads the `TPO_*` variables.
        second_reward: scores the candidates of step 0 and each step's best, for a warning alone: candidates are
            selected by R. Its failures are warnings.
    """
    defaults = TPOSettings.load() if settings is None else settings

    async def score(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        pending, step = state["pending"], state["step"]
        chosen = effective_settings(defaults, runtime)
        if not pending:
            return {}
        run = _run(state, pending, chosen.preference)
        report = run.report
        second = state.get("second_rewards", {}) if step else {}
        with Stopwatch() as watch:
            try:
                rewards = await _rewards(reward_model, state, pending, run)
                scored, failures = _split(pending, rewards, report.reasons)
                if not scored and step == 0:
                    raise RewardError(f"No candidate has a finite reward: {_why(pending, rewards, report.reasons)}.")
            except RewardError as error:
                if step == 0 or chosen.on_failure == "raise":
                    error.unscored = error.unscored or list(pending)
                    error.usage = report.used
                    raise
                scored = []
                failures = [failure("score", step, "scoring_failed", str(error), each["text"]) for each in pending]
            warnings = state.get("warnings", [])
            if cut := len(report.truncated & {each["text"] for each in pending}):
                warnings = with_truncated_inputs(warnings, cut)
            if second_reward is not None and scored:
                second, warnings = await second_opinion(
                    second_reward, state, scored, run, known=second, warnings=warnings
                )
        report.used["seconds"] = watch.seconds
        return {
            "cache": scored,
            "failures": failures,
            "pending": [],
            "usage": {"score": report.used},
            "second_rewards": second,
            "warnings": warnings,
        }

    return AsyncNode(score)


def _run(state: TPOState, pending: Sequence[Candidate], preference: str) -> RunContext:
    """What the reward model is told of the run."""
    cache = state["cache"]
    # the texts of step 0, those without a reward too: a resumed run then goes on with the scale that it had
    first = [candidate["text"] for candidate in cache if candidate["step"] == 0]
    first += [lost["text"] for lost in state.get("failures", []) if (lost["phase"], lost["step"]) == ("score", 0)]
    extremes = None
    if cache:
        pair = preference_pair(cache)
        best, worst = pair["best"], pair["worst"]
        extremes = RunExtremes(best["text"], best["reward"], worst["text"], worst["reward"])
    anchors = tuple(dict.fromkeys(first or [each["text"] for each in pending]))
    return RunContext(anchors=anchors, preference=preference, extremes=extremes)


async def _rewards(
    model: RewardModel, state: TPOState, pending: Sequence[Candidate], run: RunContext
) -> Mapping[str, float]:
    """Rewards by text; only texts that were not scored before are scored."""
    known = {candidate["text"]: candidate["reward"] for candidate in state["cache"]}
    for lost in state.get("failures", []):
        if lost["reason"] == "not_finite":
            known[lost["text"]] = math.nan
            run.report.reasons[lost["text"]] = lost["detail"]
    texts = list(dict.fromkeys(each["text"] for each in pending if each["text"] not in known))
    if not texts:
        return known
    rewards = await run_scores(model, list(state["messages"]), texts, run)
    return known | dict(zip(texts, rewards, strict=True))


def _split(
    pending: Sequence[Candidate], rewards: Mapping[str, float], reasons: Mapping[str, str]
) -> tuple[list[ScoredCandidate], list[FailureRecord]]:
    scored: list[ScoredCandidate] = []
    failures: list[FailureRecord] = []
    for candidate in pending:
        reward = rewards[candidate["text"]]
        if math.isfinite(reward):
            scored.append(ScoredCandidate(**candidate, reward=reward))
        else:
            detail = reasons.get(candidate["text"], str(reward))
            failures.append(failure("score", candidate["step"], "not_finite", detail, candidate["text"]))
    return scored, failures


def _why(pending: Sequence[Candidate], rewards: Mapping[str, float], reasons: Mapping[str, str]) -> str:
    """What stands in the place of rewards, each once."""
    texts = dict.fromkeys(each["text"] for each in pending)
    return "; ".join(dict.fromkeys(reasons.get(text, str(rewards[text])).rstrip(".") for text in texts))
