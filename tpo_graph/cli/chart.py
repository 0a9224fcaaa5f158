"""The rewards of a run, drawn with one line a step, and written as numbers."""

import itertools
from collections.abc import Sequence

from rich.text import Text

from tpo_graph.cli.outcome import State
from tpo_graph.report.words import format_reward

# the characters of a chart: best so far, candidate, mean of the step, line between the candidates
UNICODE_MARKS = "◆•┼─"
ASCII_MARKS = "*o|-"
_LABEL = 9
_FEWEST_COLUMNS, _MOST_COLUMNS = 20, 72


def reward_chart(state: State, *, width: int, marks: str = UNICODE_MARKS, steps: int | None = None) -> list[Text]:
    """Draw the rewards of each step on one scale, between an empty line with a head and a legend.

    Args:
        state: the state of a run.
        width: columns of the terminal; the numbers beside the drawing are left out where it is narrow.
        marks: the four characters to draw with.
        steps: how many of the last steps to draw; None for all.

    Returns:
        The lines; none where no step has been selected from yet.
    """
    trajectory = state.get("trajectory", [])[-steps if steps else None :]
    if not trajectory:
        return []
    best, candidate, mean, line = zip(marks, ("bold green", "cyan", "yellow", "dim"), strict=True)
    rewards: dict[int, list[float]] = {record["step"]: [] for record in trajectory}
    for scored in state["cache"]:
        rewards.get(scored["step"], []).append(scored["reward"])
    values = [*itertools.chain(*rewards.values()), *(record["best_reward"] for record in trajectory)]
    low, high = min(values), max(values)
    column = 2 + max(6, *(len(format_reward(value)) for value in values))
    names = ("best", "mean", "worst") if width - _LABEL - 3 * column >= _FEWEST_COLUMNS else ()
    columns = min(_MOST_COLUMNS, max(_FEWEST_COLUMNS, width - _LABEL - len(names) * column))

    def place(value: float) -> int:
        # all equal: the middle. Halved first, so that the widest range of floats stays finite
        share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return round(share * (columns - 1))

    left, right = format_reward(low), format_reward(high) if high > low else ""
    head = Text.assemble(("rewards".ljust(_LABEL), "bold"), (left + right.rjust(columns - len(left)), "dim"))
    lines = [Text(""), head.append("".join(name.rjust(column) for name in names), "dim")]
    for record in trajectory:
        cells = [(" ", "")] * columns
        numbers = "no candidates".rjust(3 * column)
        if new := rewards[record["step"]]:
            lowest, middle, highest = min(new), mean_reward(new), max(new)
            cells[place(lowest) : place(highest) + 1] = [line] * (place(highest) - place(lowest) + 1)
            cells[place(middle)] = mean
            for value in new:
                cells[place(value)] = candidate
            numbers = "".join(format_reward(value).rjust(column) for value in (highest, middle, lowest))
        cells[place(record["best_reward"])] = best
        lines.append(Text.assemble(f"step {record['step']}".ljust(_LABEL), *cells, numbers if names else ""))
    legend = Text.assemble(" " * _LABEL, best, (" best so far   ", "dim"), candidate, (" candidate   ", "dim"))
    legend.append_text(Text.assemble(mean, (" mean of the step", "dim")))
    legend.truncate(width)
    return [*lines, legend]


def mean_reward(values: Sequence[float]) -> float:
    """The mean of rewards whose sum may not be finite."""
    return sum(value / len(values) for value in values)
