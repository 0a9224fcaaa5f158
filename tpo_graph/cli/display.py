"""Progress on a terminal: phases as they happen, rewards as a chart that grows, loss and gradient to read."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.text import Text

from tpo_graph.cli import story
from tpo_graph.cli.chart import ASCII_MARKS, UNICODE_MARKS, ChartRow, reward_chart
from tpo_graph.cli.events import (
    Event,
    ModelLoaded,
    ModelLoading,
    Part,
    PhaseBegan,
    PhaseEnded,
    RunBegan,
    RunEnded,
    Warned,
)
from tpo_graph.cli.safe_text import clean, one_line, plural

__all__ = ["TerminalReporter"]

_LINES_OF_TEXT = 10
_STEPS_WHILE_RUNNING = 8
_WORTH_TELLING = 0.05  # seconds
_MARGIN = 4
_PHASE = 9
_BARS = {"loss": "magenta", "gradient": "blue"}


class TerminalReporter:
    """Shows a run on a terminal. What is done stays above; what goes on is in the last lines, and moves.

    Everything that comes from a model is put into `Text`, which has no markup, after control characters are gone.

    Args:
        console: the terminal; stderr when None.
        answer_follows: whether the answer goes to the same terminal, so that a rule sets it apart.
        clock: seconds from any beginning.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        answer_follows: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._console = console or Console(file=sys.stderr, force_terminal=True, highlight=False)
        ascii_only = self._console.options.ascii_only
        self._marks = ASCII_MARKS if ascii_only else UNICODE_MARKS
        self._done, self._bad, self._bar = ("+", "x", "|") if ascii_only else ("✓", "✗", "│")
        self._dot, self._rule = (" | ", "-") if ascii_only else (" · ", "─")
        self._spinner = Spinner("line" if ascii_only else "dots")
        self._answer_follows = answer_follows
        self._clock = clock
        self._rows: list[ChartRow] = []
        self._loading: list[str] = []
        self._doing = ""
        self._since = clock()
        self._step = -1
        self._live = Live(
            console=self._console,
            get_renderable=self._moving,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:  # Any: as Python gives them
        self._live.__exit__(*error)

    def show(self, event: Event) -> None:
        """Print what is done, and change what moves."""
        match event:
            case RunBegan(models, plan):
                self._print(self._heading(models, plan))
            case ModelLoading(part, name):
                self._loading.append(part)
                self._begin(f"loading {' and '.join(self._loading)}")
            case ModelLoaded(part, name, seconds):
                self._loading.remove(part)
                self._doing = f"loading {' and '.join(self._loading)}" if self._loading else "building the graph"
                self._row(self._done, "green", part, one_line(name), seconds, wide=14)
            case Warned(text):
                self._print(self._wrapped(Text(one_line(text), "yellow"), Text("  ! ", "yellow")))
            case PhaseBegan(step, phase, doing):
                self._begin(f"{phase}: {doing}")
                if step != self._step:
                    self._step = step
                    self._print(Text(f"\nstep {step}", "bold"))
            case PhaseEnded():
                self._phase_ended(event)
            case RunEnded():
                self._ended(event)
        self._live.refresh()

    def _heading(self, models: Mapping[Part, str], plan: Sequence[str]) -> Text:
        """What runs, on one line or on two."""
        name, dot = "tpo-graph  ", self._dot
        parts = dot.join(f"{part} {one_line(model)}" for part, model in models.items())
        told = dot.join(plan)
        fits = len(name + parts + dot + told) <= self._console.width
        return Text.assemble((name, "bold"), parts, dot if fits else f"\n{' ' * len(name)}", (told, "dim"))

    def _phase_ended(self, event: PhaseEnded) -> None:
        self._begin("")
        if event.record is not None:
            self._rows.append(ChartRow(event.step, event.record["best_reward"], event.rewards))
        nothing = event.summary.startswith(("0 ", "no "))
        sign, style = (self._bad, "red") if nothing else (self._done, "green")
        self._row(sign, style, event.phase, event.summary, event.seconds)
        if event.text:
            self._print(self._block(event.text, _BARS.get(event.phase, "dim")))
        for failure in event.failures:
            line = Text(one_line(failure), "red")
            line.truncate(self._console.width - _MARGIN - 2, overflow="ellipsis")
            self._print(Text.assemble(" " * _MARGIN, (f"{self._bad} ", "red"), line))

    def _ended(self, event: RunEnded) -> None:
        self._doing = ""
        if event.says_nothing:
            return
        rows, self._rows = self._rows, []
        if rows:
            self._print(Group("", *reward_chart(rows, width=self._console.width, marks=self._marks)))
        good = event.ending == "finished" and event.stop_reason not in (
            "policy_failed",
            "reward_failed",
            "updates_failed",
        )
        style = "bold green" if good else "bold yellow" if event.best else "bold red"
        parts = [
            plural(event.requests, "request"),
            f"{event.input_tokens:,} + {event.output_tokens:,} tokens",
            f"{event.seconds:.1f} s",
        ]
        if event.best:
            parts.insert(0, f"best {story.reward(event.best['reward'])} ({event.best['id']})")
        self._print(Group("", Text(story.ending(event), style), Text(self._dot.join(parts), "dim")))
        if event.best is not None and self._answer_follows:
            self._print(Rule(Text("answer", "bold"), style="dim", characters=self._rule))

    def _begin(self, doing: str) -> None:
        self._doing = doing
        self._since = self._clock()

    def _moving(self) -> RenderableType:
        """The chart so far, and what goes on."""
        rows = self._rows[-_STEPS_WHILE_RUNNING:]
        lines: list[RenderableType] = []
        if rows:
            lines += ["", *reward_chart(rows, width=self._console.width, marks=self._marks)]
        if self._doing:
            turn = self._spinner.render(self._console.get_time())
            left = Text.assemble("  ", turn if isinstance(turn, Text) else "", " ", (self._doing, "italic"))
            lines += [*([""] if rows else []), self._between(left, f"{self._clock() - self._since:.1f} s")]
        return Group(*lines)

    def _row(self, sign: str, style: str, name: str, told: str, seconds: float, *, wide: int = _PHASE) -> None:
        left = Text.assemble("  ", (sign, style), " ", (name.ljust(wide), "bold"), " ", told)
        self._print(self._between(left, f"{seconds:.1f} s" if seconds >= _WORTH_TELLING else ""))

    def _between(self, left: Text, right: str) -> Text:
        """`left` at the left edge and `right` at the right one."""
        left.truncate(self._console.width - len(right) - 1, overflow="ellipsis", pad=True)
        return Text.assemble(left, " ", (right, "dim"))

    def _block(self, text: str, style: str) -> RenderableType:
        """A text of a model behind a bar, its first lines only when it is long."""
        words = Text("\n".join(line for line in clean(text).split("\n") if line.strip()), tab_size=4)
        width = self._console.width - _MARGIN - 2
        lines = list(words.wrap(self._console, width))
        more = len(lines) - _LINES_OF_TEXT
        if more > 1:
            lines = [*lines[:_LINES_OF_TEXT], Text(f"({more} more lines; --json has them all)", "dim")]
        bar = Text.assemble(" " * _MARGIN, (f"{self._bar} ", style))
        return Group(*(Text.assemble(bar, line) for line in lines))

    def _wrapped(self, text: Text, first: Text) -> RenderableType:
        indent = Text(" " * first.cell_len)
        lines = text.wrap(self._console, self._console.width - first.cell_len)
        return Group(*(Text.assemble(indent if place else first, line) for place, line in enumerate(lines)))

    def _print(self, what: RenderableType) -> None:
        self._console.print(what, soft_wrap=False)
