"""The loop's decisions as tables: pair, convergence, stop reason."""

import pytest

from tpo_graph import TPOSettings
from tpo_graph.selection import critique_failed, has_converged, is_tie, preference_pair, stop_reason
from tpo_graph.types import FailureRecord, PhaseUsage, ScoredCandidate, StepRecord


def cache(*rewards):
    return [
        ScoredCandidate(id=str(place), step=0, text=f"t{place}", truncated=False, reward=reward)
        for place, reward in enumerate(rewards)
    ]


def trajectory(*best, worst=-9.0, candidates=5, requests=7):
    return [
        StepRecord(
            step=step,
            best_id="0",
            best_reward=reward,
            worst_reward=worst,
            mean_reward=0.0,
            candidates=candidates,
            failures=0,
            requests=requests if step else requests - 2,
            input_tokens=0,
            output_tokens=0,
            seconds=0.0,
            loss="",
            gradient="",
        )
        for step, reward in enumerate(best)
    ]


def used(requests=0, tokens=0, seconds=0.0):
    half = tokens // 2
    return {
        "sample": PhaseUsage(requests=requests, input_tokens=half, output_tokens=tokens - half, seconds=0.0),
        "score": PhaseUsage(requests=0, input_tokens=0, output_tokens=0, seconds=seconds),
    }


def failed(phase, reason="request_failed", step=1):
    return FailureRecord(phase=phase, step=step, reason=reason, detail="", text="")


@pytest.mark.parametrize(
    ("rewards", "best", "worst"),
    [
        ([1.0], 0, 0),
        ([1.0, 2.0, 0.0], 1, 2),
        ([1.0, 1.0, 1.0], 0, 0),
        ([0.0, 2.0, 2.0, 0.0], 1, 0),
        ([-1.0, -3.0, -3.0], 0, 1),
        ([0.0, -0.0], 0, 0),
        ([1e308, -1e308], 0, 1),
    ],
)
def test_best_and_worst_ties_to_the_earliest(rewards, best, worst):
    pair = preference_pair(cache(*rewards))
    assert (pair["best"]["id"], pair["worst"]["id"]) == (str(best), str(worst))


@pytest.mark.parametrize(
    ("rewards", "tie"), [([1.0], True), ([0.0, 0.0, 0.0], True), ([0.0, 1.0], False), ([1.0, 1.0, 0.5], False)]
)
def test_a_tie_is_when_all_rewards_are_equal_or_there_is_one_candidate(rewards, tie):
    assert is_tie(preference_pair(cache(*rewards))) is tie


def test_candidates_of_one_reward_that_a_person_told_apart_are_no_tie():
    best, worst = cache(1.0, 1.0)
    assert not is_tie({"best": best, "worst": worst})


def test_an_empty_cache_has_no_pair():
    with pytest.raises(ValueError, match="empty cache"):
        preference_pair([])


@pytest.mark.parametrize(
    ("best", "tolerance", "patience", "converged"),
    [
        ([1.0], 0.1, 1, False),
        ([1.0, 1.05], 0.1, 1, True),
        ([1.0, 1.2], 0.1, 1, False),
        ([1.0, 1.05], 0.1, 2, False),
        ([1.0, 1.05, 1.1], 0.1, 2, True),
        ([1.0, 1.2, 1.25], 0.1, 2, False),
        ([1.0, 1.2, 1.25, 1.3], 0.1, 2, True),
        ([1.0, 1.0], 0.0, 1, False),
        ([1.0, 1.5], 0.5, 1, False),
        ([-5.0, -5.0], 1e-9, 1, True),
    ],
)
def test_convergence(best, tolerance, patience, converged):
    assert has_converged(trajectory(*best), tolerance=tolerance, patience=patience) is converged


@pytest.mark.parametrize(
    ("best", "settings", "usage", "reason"),
    [
        ([1.0], {}, used(), None),
        ([1.0, 2.0], {}, used(), None),
        ([1.0, 2.0, 3.0], {}, used(), "depth"),
        ([1.0], {"depth": 0}, used(), "depth"),
        ([1.0], {"mode": "bon"}, used(), "bon"),
        ([1.0], {"mode": "bon", "depth": 0, "target_reward": 0.0}, used(), "bon"),
        ([1.0], {"target_reward": 1.0}, used(), "target"),
        ([1.0], {"target_reward": 1.1}, used(), None),
        ([1.0, 2.0, 3.0], {"target_reward": 3.0}, used(), "target"),
        ([1.0], {"target_reward": 0.0}, used(), "target"),
        ([-9.0], {}, used(), None),
        ([-9.0], {"depth": 0}, used(), "depth"),
        ([1.0, 1.0], {"tolerance": 0.1}, used(), "converged"),
        ([1.0, 1.0], {"tolerance": 0.1, "patience": 2}, used(), None),
        ([1.0, 1.0, 1.0], {"tolerance": 0.1}, used(), "depth"),
        ([1.0], {"budget_tokens": 100}, used(tokens=99), None),
        ([1.0], {"budget_tokens": 100}, used(tokens=100), "budget"),
        ([1.0], {"budget_seconds": 2.0}, used(seconds=1.9), None),
        ([1.0], {"budget_seconds": 2.0}, used(seconds=2.0), "budget"),
        ([1.0], {"budget_requests": 12}, used(requests=5), None),
        ([1.0], {"budget_requests": 11}, used(requests=5), "budget"),
        ([1.0, 2.0], {"budget_requests": 19}, used(requests=12), None),
        ([1.0, 2.0], {"budget_requests": 18}, used(requests=12), "budget"),
        ([1.0, 2.0, 3.0], {"budget_requests": 1}, used(requests=19), "depth"),
    ],
)
def test_stop_reason(best, settings, usage, reason):
    assert stop_reason(trajectory(*best), TPOSettings(**settings), usage) == reason


@pytest.mark.parametrize(
    ("requests", "reason"), [([1, 3], None), ([1, 5], None), ([0, 7], "budget"), ([5, 7], "budget")]
)
def test_what_a_step_asked_for_twice_is_not_expected_of_the_next(requests, reason):
    records = trajectory(1.0, 2.0)
    for record, asked in zip(records, requests, strict=True):
        record["requests"] = asked
    assert stop_reason(records, TPOSettings(budget_requests=12), used(requests=9)) == reason


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([], "updates_failed"),
        ([failed("update", "no_tags", step=2)], "updates_failed"),
        ([failed("update", "no_tags", step=2), failed("update", step=2)], "updates_failed"),
        ([failed("update", step=2)], "policy_failed"),
        ([failed("loss", step=2)], "policy_failed"),
        ([failed("gradient", "empty", step=2)], "policy_failed"),
        ([failed("score", "scoring_failed", step=2)], "reward_failed"),
        ([failed("score", "not_finite", step=2)], "updates_failed"),
        ([failed("loss", step=0)], "updates_failed"),
    ],
)
def test_the_second_lost_step_in_a_row_ends_the_run_for_its_own_reason(failures, reason):
    earlier = [failed("score", "scoring_failed", step=1)]
    records = lost(1, 2)
    assert stop_reason(records[:2], TPOSettings(depth=9), used(), failures=earlier) is None
    assert stop_reason(records, TPOSettings(depth=9), used(), failures=earlier + failures) == reason


def lost(*steps, of=2):
    """A trajectory in which these steps added no candidate."""
    records = trajectory(*[1.0] * (of + 1))
    for step in steps:
        records[step]["candidates"] = 0
    return records


@pytest.mark.parametrize(
    ("steps", "of", "settings", "reason"),
    [
        ((1,), 1, {"depth": 2}, None),
        ((1,), 1, {"depth": 1}, "policy_failed"),  # every step was lost
        ((2,), 2, {"depth": 2}, "depth"),
        ((1, 2), 2, {"depth": 2}, "policy_failed"),
        ((1, 3), 3, {"depth": 9}, None),
        ((2, 3), 3, {"depth": 9}, "policy_failed"),
        ((1,), 1, {"depth": 9, "tolerance": 0.1}, None),  # a lost step says nothing of what a step would gain
        ((1, 3), 3, {"depth": 9, "tolerance": 0.1}, "converged"),
        ((1,), 1, {"depth": 9, "budget_requests": 1}, "budget"),
    ],
)
def test_one_lost_step_is_not_the_end(steps, of, settings, reason):
    failures = [failed("loss", step=step) for step in steps]
    assert stop_reason(lost(*steps, of=of), TPOSettings(**settings), used(requests=1), failures=failures) == reason


def test_a_step_after_one_that_was_lost_early_takes_as_many_requests_as_any():
    records = lost(1)[:2]
    records[1]["requests"] = 1  # the loss failed
    assert stop_reason(records, TPOSettings(budget_requests=12), used(requests=6)) == "budget"


@pytest.mark.parametrize(
    ("highest", "settings", "reason"),
    [
        (1.0, {}, "target"),
        (1.5, {}, None),
        (None, {}, None),
        (1.5, {"target_reward": 1.0}, "target"),
        (1.0, {"target_reward": 2.0}, "target"),
        (1.0, {"depth": 0}, "target"),
        (1.0, {"mode": "bon"}, "bon"),
    ],
)
def test_the_highest_reward_is_a_target(highest, settings, reason):
    assert stop_reason(trajectory(1.0), TPOSettings(**settings), used(), highest_reward=highest) == reason


@pytest.mark.parametrize(
    ("failures", "lost"),
    [
        ([], False),
        ([failed("loss")], True),
        ([failed("gradient")], True),
        ([failed("update")], False),
        ([failed("loss", step=2)], False),
    ],
)
def test_a_step_is_lost_with_its_loss_or_gradient(failures, lost):
    assert critique_failed(failures, 1) is lost
