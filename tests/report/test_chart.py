"""The chart: ticks, heights, and places of points."""

import math
from itertools import pairwise

import pytest

from tests.report.conftest import candidate, document, record
from tpo_graph.report import RunDocument
from tpo_graph.report.chart import HEIGHT, draw, height_of, nice_ticks, spread


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.0, 1.0, [0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]),
        (0.0, 0.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (-3e6, 7e6, [-4e6, -2e6, 0.0, 2e6, 4e6, 6e6, 8e6]),
        (-1e308, 1.7e308, [-1e308, 1.7e308]),
        (0.0, 5e-324, [0.0, 5e-324]),
        (1.0, 1.0 + 2**-52, [1.0, 1.0 + 2**-52]),
    ],
)
def test_ticks(low, high, ticks):
    assert nice_ticks(low, high) == ticks


def test_heights():
    assert [height_of(value, -1.0, 1.0) for value in (-1.0, 0.0, 1.0)] == [HEIGHT - 22, (HEIGHT + 4) / 2, 26.0]
    assert height_of(0.0, -1.7e308, 1.7e308) == (HEIGHT + 4) / 2
    assert height_of(2.0, 2.0, 2.0) == (HEIGHT + 4) / 2


def test_points_of_a_step_stand_side_by_side_inside_its_column():
    assert spread(2) == [-0.18, 0.18]
    for count in (1, 7, 1000):
        places = spread(count)
        assert places == sorted(places) and sum(places) == pytest.approx(0)
        assert max(map(abs, places)) < 0.36


def test_every_scored_candidate_is_a_point_and_every_revision_a_line():
    chart = draw(RunDocument.model_validate(document(unscored=[candidate("2-1", "late")])))
    assert [column.x for column in chart.columns] == [16.667, 50.0, 83.333]
    assert [point.candidate.id for point in chart.points] == ["0-0", "0-1", "1-0", "1-1", "2-0"]
    by_id = {point.candidate.id: point for point in chart.points}
    assert by_id["1-0"].y < by_id["2-0"].y < by_id["0-1"].y < by_id["1-1"].y < by_id["0-0"].y
    assert {(edge.parent.candidate.id, edge.child.candidate.id): edge.to_answer for edge in chart.edges} == {
        ("0-1", "1-0"): True,
        ("0-1", "1-1"): False,
        ("1-0", "2-0"): False,
    }


def test_numbers_of_steps_are_names_and_no_distances():
    cache = [candidate("0-0", "a", 1.0), candidate("1-0", "b", 2.0, step=10**12)]
    chart = draw(RunDocument.model_validate(document(cache=cache, trajectory=[record(0, "0-0", 1.0, 1.0)])))
    assert [(column.step, column.x) for column in chart.columns] == [(0, 25.0), (10**12, 75.0)]


def test_nothing_scored_is_no_chart():
    assert draw(RunDocument.model_validate(document(cache=[], trajectory=[]))) is None


def test_any_rewards_stay_inside():
    for rewards in ([1e308, -1e308], [5e-324, 0.0], [-7.0, -7.0], [1e-9, 3e7]):
        cache = [candidate(f"0-{place}", "x", reward) for place, reward in enumerate(rewards)]
        chart = draw(RunDocument.model_validate(document(cache=cache, trajectory=[], best=None)))
        assert all(0 < point.y < HEIGHT and math.isfinite(point.y) for point in chart.points)
        assert all(one.y >= other.y for one, other in pairwise(chart.ticks))
