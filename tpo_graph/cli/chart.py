"""Rewards by step as a small chart: a line a step, on one scale."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from tpo_graph.cli.story import reward

__all__ = ["ASCII_MARKS", "UNICODE_MARKS", "ChartRow", "Marks", "reward_chart"]

_LABEL = 9
_FEWEST, _MOST = 20, 72  # columns of the drawing


@dataclass(frozen=True)
class Marks:
    """The characters that a chart is drawn with."""

    best: str
    candidate: str
    mean: str
    line: str


UNICODE_MARKS = Marks(best="◆", candidate="•", mean="┼", line="─")
ASCII_MARKS = Marks(best="*", candidate="o", mean="|", line="-")


@dataclass(frozen=True)
class ChartRow:
    """One step.

    Attributes:
        step: its number.
        best_so_far: the best reward of the run after it.
        rewards: those of its candidates; may be empty.
    """

    step: int
    best_so_far: float
    rewards: tuple[float, ...]


def reward_chart(rows: Sequence[ChartRow], *, width: int, marks: Marks = UNICODE_MARKS) -> list[Text]:
    """The lines of the chart, with a head and a legend; none when there are no rows.

    Args:
        rows: one for each step.
        width: columns of the terminal; 80 or more look best.
        marks: what to draw with.
    """
    if not rows:
        return []
    values = [value for row in rows for value in (*row.rewards, row.best_so_far)]
    low, high = min(values), max(values)
    column = 2 + max(6, *(len(reward(value)) for value in values))
    names = ("best", "mean", "worst") if width - _LABEL - 3 * column >= _FEWEST else ()
    columns = min(_MOST, max(_FEWEST, width - _LABEL - len(names) * column))
    scale = reward(high).rjust(columns - len(reward(low))) if high > low else ""
    head = Text.assemble(("rewards".ljust(_LABEL), "bold"), (f"{reward(low)}{scale}".ljust(columns), "dim"))
    head.append("".join(name.rjust(column) for name in names), "dim")
    lines = [head]
    for row in rows:
        lines.append(Text.assemble(f"step {row.step}".ljust(_LABEL), *_cells(row, low, high, columns, marks)))
        if names:
            lines[-1].append(_numbers(row, column))
    legend = Text(" " * _LABEL).append_text(_legend(marks))
    legend.truncate(width)
    return [*lines, legend]


def _cells(row: ChartRow, low: float, high: float, columns: int, marks: Marks) -> list[tuple[str, str]]:
    """A character and its style for each column."""

    def place(value: float) -> int:
        # all equal: the middle. Halved first, so that the widest range of floats stays finite
        share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return round(share * (columns - 1))

    cells = [(" ", "")] * columns
    if row.rewards:
        for at in range(place(min(row.rewards)), place(max(row.rewards)) + 1):
            cells[at] = (marks.line, "dim")
        cells[place(_mean(row.rewards))] = (marks.mean, "yellow")
        for value in row.rewards:
            cells[place(value)] = (marks.candidate, "cyan")
    cells[place(row.best_so_far)] = (marks.best, "bold green")
    return cells


def _numbers(row: ChartRow, column: int) -> str:
    if not row.rewards:
        return "no candidates".rjust(3 * column)
    numbers = max(row.rewards), _mean(row.rewards), min(row.rewards)
    return "".join(reward(number).rjust(column) for number in numbers)


def _mean(rewards: Sequence[float]) -> float:
    # divided first: a sum of large rewards may not be finite
    return sum(value / len(rewards) for value in rewards)


def _legend(marks: Marks) -> Text:
    return Text.assemble(
        (marks.best, "bold green"),
        (" best so far   ", "dim"),
        (marks.candidate, "cyan"),
        (" candidate   ", "dim"),
        (marks.mean, "yellow"),
        (" mean of the step", "dim"),
    )
