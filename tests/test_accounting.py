"""Requests, tokens, seconds and FLOPs."""

import time

import pytest

from tpo_graph.accounting import Stopwatch, add_usage, no_usage, total
from tpo_graph.types import PhaseUsage


def used(requests, asked, wrote, seconds):
    return PhaseUsage(requests=requests, input_tokens=asked, output_tokens=wrote, seconds=seconds)


def test_usage_adds_up_phase_by_phase():
    left, right = {"sample": used(1, 10, 20, 0.5)}, {"sample": used(2, 1, 2, 0.25), "loss": used(1, 5, 6, 1.0)}
    assert add_usage(left, right) == {"sample": used(3, 11, 22, 0.75), "loss": used(1, 5, 6, 1.0)}
    assert (left, right["sample"]) == ({"sample": used(1, 10, 20, 0.5)}, used(2, 1, 2, 0.25))


@pytest.mark.parametrize(("left", "right"), [(None, None), ({}, None), (None, {}), ({}, {})])
def test_nothing_and_nothing_is_nothing(left, right):
    assert add_usage(left, right) == {}
    assert total({}) == no_usage()


def test_the_total_of_all_phases():
    assert total({"sample": used(1, 10, 20, 0.5), "loss": used(1, 5, 6, 1.0)}) == used(2, 15, 26, 1.5)


def test_a_stopwatch_stops_when_its_block_fails():
    watch = Stopwatch()
    with pytest.raises(KeyError), watch:
        time.sleep(0.01)
        raise KeyError
    assert 0.01 <= watch.seconds < 5
