"""Where the points and lines of the chart stand: rewards by step, and who was revised from whom.

Across, a place is in percent of the width, so that text keeps its size on a phone; down, it is in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tpo_graph.report.document import DrawnCandidate, RunDocument

HEIGHT = 300
_TOP, _BOTTOM = 26, 22
_SPREAD = 0.72  # of a column's width, for its points
_NARROWEST_COLUMN, _NARROWEST_POINT = 44, 7  # pixels


class Tick(NamedTuple):
    """A value of the axis, and how far down it stands."""

    value: float
    y: float


@dataclass(frozen=True)
class Point:
    """A scored candidate: its place in the list of candidates, and where it stands."""

    index: int
    candidate: DrawnCandidate
    x: float
    y: float


@dataclass(frozen=True)
class Edge:
    """A line from a candidate to one that was revised from it."""

    parent: Point
    child: Point
    to_answer: bool


@dataclass(frozen=True)
class Column:
    """A step: its middle, its edges, and how far down the mean of its candidates stands."""

    step: int
    x: float
    left: float
    right: float
    mean_y: float | None


@dataclass(frozen=True)
class Chart:
    """All that the picture is made of."""

    columns: list[Column]
    ticks: list[Tick]
    points: list[Point]
    edges: list[Edge]
    narrowest: int


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values that cover `low` to `high`, a power of ten or 2 or 5 times one apart.

    Examples:
        >>> nice_ticks(0.3, 2.7)
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
        >>> nice_ticks(-40.0, 15.0)
        [-40.0, -30.0, -20.0, -10.0, 0.0, 10.0, 20.0]

    Args:
        low: the lowest value.
        high: the highest value, at least `low`.
        most: about how many steps at most.
    """
    if low == high:
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = high / most - low / most
    if not math.isfinite(high - low) or rough < abs(high) * 1e-12 or rough < 1e-300:
        return [low, high]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


def height_of(value: float, low: float, high: float) -> float:
    """How far down a reward stands, in pixels; `high` is at the top."""
    half = high / 2 - low / 2  # the whole may be more than a float can hold
    share = (value / 2 - low / 2) / half if half else 0.5
    return round(_TOP + (1 - share) * (HEIGHT - _TOP - _BOTTOM), 1)


def spread(count: int) -> list[float]:
    """Where `count` points stand in a column of width 1, around its middle at 0.

    Examples:
        >>> spread(1), spread(3)
        ([0.0], [-0.24, 0.0, 0.24])
    """
    return [round((place - (count - 1) / 2) / count * _SPREAD, 4) for place in range(count)]


def draw(run: RunDocument) -> Chart | None:
    """The chart of a run; None where nothing was scored."""
    scored = [(i, c, c.reward) for i, c in enumerate(run.candidates) if c.reward is not None]
    if not scored:
        return None
    ticks = nice_ticks(min(reward for *_, reward in scored), max(reward for *_, reward in scored))
    low, high = ticks[0], ticks[-1]
    # steps that there are, whatever their numbers
    steps = sorted({candidate.step for _, candidate, _ in scored} | {record.step for record in run.trajectory})
    width = 100 / len(steps)
    means = {record.step: record.mean_reward for record in run.trajectory}
    columns: list[Column] = []
    points: list[Point] = []
    widest = 0
    for place, step in enumerate(steps):
        middle = (place + 0.5) * width
        mean = means.get(step)
        columns.append(
            Column(
                step,
                round(middle, 3),
                round(middle - width * 0.42, 3),
                round(middle + width * 0.42, 3),
                # one that the file has and that its rewards can't have is not drawn outside
                height_of(mean, low, high) if mean is not None and low <= mean <= high else None,
            )
        )
        mine = [entry for entry in scored if entry[1].step == step]
        widest = max(widest, len(mine))
        for offset, (index, candidate, reward) in zip(spread(len(mine)), mine, strict=True):
            points.append(Point(index, candidate, round(middle + offset * width, 3), height_of(reward, low, high)))
    return Chart(
        columns=columns,
        ticks=[Tick(value, height_of(value, low, high)) for value in ticks],
        points=points,
        edges=_edges(run, points),
        narrowest=len(steps) * max(_NARROWEST_COLUMN, widest * _NARROWEST_POINT),
    )


def _edges(run: RunDocument, points: Sequence[Point]) -> list[Edge]:
    by_id = {point.candidate.id: point for point in reversed(points)}
    answer = run.by_id.get(run.best.id) if run.best else None
    line: Sequence[DrawnCandidate] = run.line_of_descent(answer) if answer else []
    kept = {candidate.id for candidate in line}
    edges = []
    for point in points:
        parent = run.parent(point.candidate)
        if parent is not None and parent.id in by_id:
            edges.append(Edge(by_id[parent.id], point, point.candidate.id in kept))
    # the answer's own line is drawn over the others
    return sorted(edges, key=lambda edge: edge.to_answer)
