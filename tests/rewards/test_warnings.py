"""Warnings about a run whose reward rises without its answers getting better."""

import pytest

from tpo_graph.rewards.warnings import overoptimization_warnings, rank_correlation, repetition
from tpo_graph.types import ScoredCandidate, StepRecord


def candidate(number, text, reward, *, truncated=False, step=0):
    return ScoredCandidate(id=f"{step}-{number}", step=step, text=text, truncated=truncated, reward=reward)


def record(step, best_id, best_reward):
    return StepRecord(
        step=step,
        best_id=best_id,
        best_reward=best_reward,
        worst_reward=0.0,
        mean_reward=0.0,
        candidates=1,
        failures=0,
        requests=1,
        input_tokens=1,
        output_tokens=1,
        seconds=0.0,
        loss="",
        gradient="",
    )


def kinds(cache, trajectory=(), **options):
    return [warning["kind"] for warning in overoptimization_warnings(cache, trajectory, **options)]


def text(length):
    """A text without repetition."""
    return " ".join(f"word{place}" for place in range(length))


CALM = [candidate(n, text(5 + n * 7 % 11), float(n)) for n in range(11)]


def test_nothing_to_warn_about():
    assert overoptimization_warnings([], []) == []
    assert kinds(CALM) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_reward_that_goes_with_length(sign):
    cache = [candidate(n, text(5 + n), sign * float(n)) for n in range(12)]
    (warning,) = overoptimization_warnings(cache, [])
    assert warning["kind"] == "length_correlation"
    assert warning["value"] == sign
    assert warning["threshold"] == 0.7
    assert ("longer" if sign > 0 else "shorter") in warning["message"]


def test_few_candidates_correlate_by_chance():
    assert kinds([candidate(n, text(5 + n), float(n)) for n in range(9)]) == []
    same = [candidate(n, text(5 + n % 5), float(n % 5)) for n in range(20)]
    assert kinds(same) == ["duplicate_candidates"]


def test_texts_that_come_back():
    cache = [candidate(n, ["a b", "a b", "c"][n % 3], 1.0) for n in range(6)]
    (warning,) = overoptimization_warnings(cache, [])
    assert warning["kind"] == "duplicate_candidates"
    assert warning["value"] == pytest.approx(4 / 6)
    assert warning["message"].startswith("4 of 6 candidates")


@pytest.mark.parametrize("loop", ["and so it goes on, ", "我们一起来跳舞吧。", "\nI agree.\n"])
def test_an_answer_that_says_the_same_again(loop):
    assert kinds([candidate(0, loop * 20, 2.0), candidate(1, text(30), 1.0)]) == ["repetitive_answer"]
    assert kinds([candidate(0, loop * 20, 1.0), candidate(1, text(30), 2.0)]) == []


def test_repetition_of_short_and_plain_texts():
    assert repetition("") == 0.0
    assert repetition("no no no no") == 0.0
    assert repetition(text(200)) == 0.0
    assert 0.45 < repetition(text(50) + " " + text(50)) < 0.55


def test_candidates_that_were_cut():
    cache = [candidate(n, text(5 + n), 1.0, truncated=n < 2) for n in range(6)]
    assert kinds(cache) == ["truncated_candidates", "truncated_answer"]
    assert kinds([candidate(n, text(5 + n), 1.0, truncated=n == 3) for n in range(6)]) == []


RISING = [record(0, "0-0", 1.0), record(1, "0-1", 2.0), record(2, "0-2", 3.0)]
THREE = [candidate(n, text(5 + n), float(n + 1)) for n in range(3)]


@pytest.mark.parametrize(
    ("second", "warned"),
    [
        ({"0-0": 3.0, "0-1": 2.0, "0-2": 1.0}, True),
        ({"0-0": 3.0, "0-2": 1.0}, True),
        ({"0-0": 1.0, "0-1": 2.0, "0-2": 3.0}, False),
        ({"0-0": 1.0, "0-1": 1.0, "0-2": 1.0}, False),
        ({"0-0": 1.05, "0-1": 9.0, "0-2": 1.0}, False),
        ({"0-0": 1.0}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_second_scorer_that_falls(second, warned):
    assert kinds(THREE, RISING, second_rewards=second) == (["second_scorer_falls"] if warned else [])


def test_a_second_scorer_may_fall_while_the_first_stands():
    standing = [record(0, "0-0", 1.0), record(1, "0-1", 1.0)]
    assert kinds(THREE, standing, second_rewards={"0-0": 3.0, "0-1": 1.0}) == []


@pytest.mark.parametrize(
    ("left", "right", "correlation"),
    [
        ([1, 2, 3, 4], [1, 4, 9, 16], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.948683),
        ([1, 1, 1], [1, 2, 3], 0.0),
        ([1], [1], 0.0),
        ([], [], 0.0),
    ],
)
def test_rank_correlation(left, right, correlation):
    assert rank_correlation(left, right) == pytest.approx(correlation, abs=1e-6)


def test_warnings_are_plain_values():
    for warning in overoptimization_warnings(THREE, RISING, second_rewards={"0-0": 3.0, "0-2": 1.0}):
        assert {name: type(value) for name, value in warning.items()} == {
            "kind": str,
            "message": str,
            "value": float,
            "threshold": float,
        }
