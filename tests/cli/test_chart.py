"""The chart of rewards by step."""

import math

import pytest

from tpo_graph.cli.display import ASCII_MARKS, ChartRow, reward_chart


def lines(*rows: ChartRow, width: int = 80) -> list[str]:
    return [line.plain.rstrip() for line in reward_chart(rows, width=width, marks=ASCII_MARKS)]


def test_no_rows_no_chart():
    assert lines() == []


def test_best_worst_and_mean_stand_where_they_belong():
    head, first, second, _ = lines(ChartRow(0, 0.0, (-1.0, 0.0)), ChartRow(1, 1.0, (0.5, 1.0)))
    assert head.split() == ["rewards", "-1.000", "+1.000", "best", "mean", "worst"]
    assert first[9] == "o"  # the lowest of all is at the left edge
    assert first.split()[-3:] == ["+0.000", "-0.500", "-1.000"]
    assert second.index("*") == 9 + 47 - 1  # the highest of all is at the right edge
    assert second.index("o") < second.index("|") < second.index("*")


def test_a_step_without_candidates_keeps_the_best():
    *_, last, _ = lines(ChartRow(0, 1.0, (0.0, 1.0)), ChartRow(1, 1.0, ()))
    assert last.endswith("no candidates")
    assert "*" in last
    assert "o " not in last[9:56]


def test_equal_rewards_stand_in_the_middle():
    _, row, _ = lines(ChartRow(0, 2.0, (2.0, 2.0)))
    assert row.index("*") == 9 + 23


@pytest.mark.parametrize("value", [1e-300, 1e300, math.ulp(1.0), -1.7e308])
def test_any_finite_rewards(value):
    assert len(lines(ChartRow(0, abs(value), (value, abs(value), 0.0)))) == 3


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width):
    rows = [ChartRow(step, 12345.678, (-12345.678, 0.0)) for step in range(12)]
    assert max(len(line) for line in lines(*rows, width=width)) <= width
