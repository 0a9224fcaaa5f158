"""Decisions of the loop, as pure functions: which candidates are best and worst, and whether the run is over."""

import itertools
from collections.abc import Sequence

from tpo_graph.accounting import total
from tpo_graph.settings import TPOSettings
from tpo_graph.types import FailureRecord, PreferencePair, ScoredCandidate, StepRecord, StopReason, Usage


def preference_pair(cache: Sequence[ScoredCandidate]) -> PreferencePair:
    """The best and the worst candidate of the cache; ties go to the earliest (TPO paper, section 3).

    Raises:
        ValueError: the cache is empty.
    """
    if not cache:
        raise ValueError("a pair can't be selected from an empty cache")
    # max and min keep the first of equals
    return PreferencePair(
        best=max(cache, key=lambda candidate: candidate["reward"]),
        worst=min(cache, key=lambda candidate: candidate["reward"]),
    )


def is_tie(pair: PreferencePair) -> bool:
    """Whether best and worst are one candidate: all rewards are equal, or there is no other.

    The next step is then written as a revision of the best, because there is nothing to compare it with. Two
    candidates of the same reward are a pair once a person has told them apart.
    """
    return pair["best"]["id"] == pair["worst"]["id"]


def has_converged(trajectory: Sequence[StepRecord], *, tolerance: float, patience: int) -> bool:
    """Whether the best reward gained less than `tolerance` in each of the last `patience` steps with candidates."""
    best = [record["best_reward"] for record in trajectory if record["candidates"]][-patience - 1 :]
    if tolerance <= 0 or len(best) <= patience:
        return False
    return all(after - before < tolerance for before, after in itertools.pairwise(best))


def critique_failed(failures: Sequence[FailureRecord], step: int) -> bool:
    """Whether loss or gradient of `step` failed, so that there is nothing to revise by."""
    return any(failure["step"] == step and failure["phase"] in ("loss", "gradient") for failure in failures)


def fits_budget(settings: TPOSettings, usage: Usage, requests: int) -> bool:
    """Whether `requests` more stay within the budget, of which tokens and seconds must not be used up yet."""
    used = total(usage)
    limits = settings.budget_requests, settings.budget_tokens, settings.budget_seconds
    spent = used["requests"] + requests - 1, used["input_tokens"] + used["output_tokens"], used["seconds"]
    return all(limit is None or value < limit for limit, value in zip(limits, spent, strict=True))


def stop_reason(  # noqa: PLR0911  # one return for each reason, in the order in which they count
    trajectory: Sequence[StepRecord],
    settings: TPOSettings,
    usage: Usage,
    *,
    failures: Sequence[FailureRecord] = (),
    highest_reward: float | None = None,
) -> StopReason | None:
    """Why the run is over after the last record of the trajectory, or None when it goes on.

    A step that added no candidate is lost. One is not the end; two in a row are, and so is the depth where every step
    was lost.

    Args:
        trajectory: one record a step, at least one.
        settings: the settings of this call.
        usage: what the run has used so far.
        failures: what could not be used so far.
        highest_reward: the highest reward that the reward model can give; None where it is not known.
    """
    last = trajectory[-1]
    step = last["step"]
    if settings.mode == "bon":
        return "bon"
    if any((failure["step"], failure["reason"]) == (step, "out_of_time") for failure in failures):
        return "budget"
    lost = [record["candidates"] == 0 for record in trajectory if record["step"] > 0]
    if lost and all(lost[-2:]) and (len(lost) > 1 or step >= settings.depth):
        return _reason_of_lost_step(failures, step)
    if any(goal is not None and last["best_reward"] >= goal for goal in (settings.target_reward, highest_reward)):
        return "target"
    if step >= settings.depth:
        return "depth"
    if has_converged(trajectory, tolerance=settings.tolerance, patience=settings.patience):
        return "converged"
    # what the cheapest step took, as some had to ask twice; before the first one: loss, gradient, and a draw of N
    steps = [
        record["requests"] + (2 if record["step"] == 0 else 0)
        for record in trajectory
        if record["requests"] > 0 and record["candidates"] > 0
    ]
    return None if fits_budget(settings, usage, min(steps, default=3)) else "budget"


def _reason_of_lost_step(failures: Sequence[FailureRecord], step: int) -> StopReason:
    mine = [failure for failure in failures if failure["step"] == step]
    if any(failure["reason"] == "scoring_failed" for failure in mine):
        return "reward_failed"
    if critique_failed(mine, step):
        return "policy_failed"
    unusable = [failure for failure in mine if failure["reason"] != "request_failed"]
    return "updates_failed" if unusable or not mine else "policy_failed"
