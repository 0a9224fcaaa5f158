"""Progress on a terminal: phases as they happen, rewards as a chart that grows, loss and gradient to read."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TextIO, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.text import Text

from tpo_graph.settings import TPOSettings
from tpo_graph.types import FailureReason, FailureRecord, Phase, ScoredCandidate, StepRecord, StopReason

# Text of models and servers, made safe for a terminal: no control character of theirs reaches it.

# all control characters but tab and newline, and halves of surrogate pairs, which no encoding can write
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    r"""`text` with every control character shown as a sign; tabs and newlines stay.

    Example:
        >>> clean("a\x1b[31mb")
        'a␛[31mb'
    """
    return _UNSAFE.sub(_sign, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 400) -> str:
    r"""`text` on one line of at most `limit` characters.

    Example:
        >>> one_line("one\n two three", limit=9)
        'one two …'
    """
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def plural(count: int, word: str) -> str:
    """A count and its noun.

    Example:
        >>> plural(1, "request"), plural(2, "request")
        ('1 request', '2 requests')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    return "\u2421" if code == 0x7F else "\ufffd"


# What happens in a run, as it happens: from the thread that does the work to what shows it.

Part: TypeAlias = Literal["policy", "critic", "reward model", "second reward model"]


@dataclass(frozen=True)
class RunBegan:
    """Shown before anything is loaded.

    Attributes:
        models: the name of each part.
        plan: mode, N, D and what else was chosen, each as "name value".
    """

    models: dict[Part, str]
    plan: tuple[str, ...]


@dataclass(frozen=True)
class ModelLoading:
    """A part begins to load."""

    part: Part
    name: str


@dataclass(frozen=True)
class ModelLoaded:
    """A part can be used."""

    part: Part
    name: str
    seconds: float


@dataclass(frozen=True)
class PhaseBegan:
    """A node began to work."""

    step: int
    phase: Phase
    doing: str


@dataclass(frozen=True)
class PhaseEnded:
    """A node is done.

    Attributes:
        step: the step that it worked for.
        phase: which node.
        summary: what came of it, in a few words.
        text: the textual loss or gradient; "" in other phases.
        failures: what could not be used, a line each.
        seconds: how long it took.
        record: the step's record, from select.
        rewards: rewards of the step's candidates, from select.
    """

    step: int
    phase: Phase
    summary: str
    text: str
    failures: tuple[str, ...]
    seconds: float
    record: StepRecord | None = None
    rewards: tuple[float, ...] = ()


@dataclass(frozen=True)
class Warned:
    """Something that a person should know."""

    text: str


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a moment."""


@dataclass(frozen=True)
class RunEnded:
    """The run is over, one way or another.

    Attributes:
        ending: `finished`, `failed` or `interrupted`.
        stop_reason: why, of a run that finished.
        best: the best candidate, if any was scored.
        requests: requests to policy and critic.
        input_tokens: prompt tokens.
        output_tokens: completion tokens.
        seconds: wall time, the loading included.
        unscored: how many candidates were drawn and have no reward.
    """

    ending: Literal["finished", "failed", "interrupted"]
    stop_reason: StopReason | None = None
    best: ScoredCandidate | None = None
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    unscored: int = 0

    @property
    def says_nothing(self) -> bool:
        """Whether the error that follows says all that there is to say."""
        return self.ending == "failed" and self.best is None and not self.unscored


Event: TypeAlias = RunBegan | ModelLoading | ModelLoaded | PhaseBegan | PhaseEnded | Warned | Waiting | RunEnded
Emit: TypeAlias = Callable[[Event], None]


class Reporter(Protocol):
    """Shows a run while it goes on; a context manager, so that a terminal is left as it was found."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...  # Any: as Python gives them

    def show(self, event: Event) -> None:
        """Show one event."""
        ...


# Rewards by step as a small chart: a line a step, on one scale.

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


# A run told in words: what a phase is doing, what came of it, why the run stopped.

State = Mapping[str, Any]  # Any: a TPOState, or the beginning of one

_FAILURES: Mapping[FailureReason, str] = {
    "request_failed": "request failed",
    "empty": "empty response",
    "no_tags": "no opening tag",
    "not_closed": "no closing tag",
    "truncated": "cut off at the token limit",
    "tool_calls": "a tool call and no text",
    "invalid": "not valid for the schema",
    "not_finite": "reward is not a finite number",
    "scoring_failed": "scoring failed",
}
_ENDINGS: Mapping[StopReason, str] = {
    "depth": "all steps are done",
    "converged": "the best reward no longer rises",
    "target": "the target reward is reached",
    "budget": "another step would not fit the budget",
    "no_preference": "all rewards are equal, so there is nothing to learn from",
    "updates_failed": "no revision of this step could be used",
    "policy_failed": "the policy failed; the best answer so far is kept",
    "reward_failed": "the reward model failed; the best answer so far is kept",
    "bon": "best of N takes no steps",
    "person": "you stopped it",
}


def step_of(phase: Phase, state: State) -> int:
    """The step for which a phase works that begins in `state`."""
    done = int(state.get("step", 0))
    return {"sample": 0, "score": done, "select": done}.get(phase, done + 1)


def doing(phase: Phase, settings: TPOSettings) -> str:
    """What a phase does, for a person who waits for it."""
    return {
        "sample": f"drawing {plural(settings.n, 'candidate')}",
        "score": "asking the reward model",
        "select": "choosing the best and the worst",
        "loss": "judging the best alone" if settings.mode == "revision" else "comparing the best with the worst",
        "gradient": "turning the loss into advice",
        "update": f"writing {plural(settings.n, 'revision')}",
    }[phase]


def phase_ended(phase: Phase, step: int, before: State, after: State, seconds: float) -> PhaseEnded:
    """What a phase did, seen from the states on both sides of it."""
    failures = after.get("failures", [])[len(before.get("failures", [])) :] if phase != "sample" else after["failures"]
    lines = tuple(_failure_lines(failures))
    if phase == "select":
        record = after["trajectory"][-1]
        rewards = tuple(each["reward"] for each in after["cache"] if each["step"] == step)
        return PhaseEnded(step, phase, _best_so_far(after), "", lines, seconds, record, rewards)
    text = after.get(phase, "") if phase in ("loss", "gradient") else ""
    return PhaseEnded(step, phase, _summary(phase, before, after, failures), text, lines, seconds)


def ending(ended: RunEnded) -> str:
    """Why the run is over, as a sentence without its full stop."""
    if ended.ending == "finished" and ended.stop_reason:
        return f"{ended.stop_reason}: {_ENDINGS[ended.stop_reason]}"
    if ended.best is not None:
        return f"{ended.ending}: the answer is the best candidate so far"
    if ended.unscored:
        return f"{ended.ending}: {plural(ended.unscored, 'candidate')} drawn, none scored"
    return f"{ended.ending}: no candidate was drawn"


def reward(value: float) -> str:
    """A reward with its sign, in a width that suits a column.

    Example:
        >>> reward(0.5), reward(-12.25), reward(1234567.0), reward(0.00012)
        ('+0.500', '-12.250', '+1.23e+06', '+0.00012')
    """
    plain = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:+.3f}" if plain else f"{value:+.3g}"


def _summary(phase: Phase, before: State, after: State, failures: Sequence[FailureRecord]) -> str:
    if phase == "score":
        new = [each["reward"] for each in after["cache"][len(before.get("cache", [])) :]]
        if not new:
            return "nothing to score" if not failures else "no reward"
        mean = sum(new) / len(new)
        return f"best {reward(max(new))}   mean {reward(mean)}   worst {reward(min(new))}"
    if phase in ("loss", "gradient"):
        words = len(after.get(phase, "").split())
        return plural(words, "word") if words else "no text"
    count = plural(len(after.get("pending", [])), "candidate" if phase == "sample" else "revision")
    unusable = len(failures)
    return f"{count}, {unusable} not usable" if unusable else count


def _best_so_far(after: State) -> str:
    best, trajectory = after["best"], after["trajectory"]
    told = f"best so far {best['id']} at {reward(best['reward'])}"
    if len(trajectory) < 2:
        return told
    gain = trajectory[-1]["best_reward"] - trajectory[-2]["best_reward"]
    return f"{told}, gained {reward(gain)}" if gain > 0 else f"{told}, no gain"


def _failure_lines(failures: Sequence[FailureRecord]) -> list[str]:
    """A line for each failure; equal ones share a line."""
    lines = Counter(_failure_line(each) for each in failures)
    # the count comes first, so that a line that is cut keeps it
    return [line if count == 1 else f"({count} times) {line}" for line, count in lines.items()]


def _failure_line(failure: FailureRecord) -> str:
    told = _FAILURES[failure["reason"]]
    if failure["detail"]:
        told += f": {one_line(failure['detail'], 200)}"
    elif failure["text"].strip():
        told += f": {one_line(failure['text'], 60)}"
    return told


# Progress as plain lines, for logs and pipes: no colour, no control code, one line for each thing that happens.

_EXCERPT = 100
_LONGEST_SILENCE = 20.0  # seconds


class SilentReporter:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:  # Any: as Python gives them
        return None

    def show(self, event: Event) -> None:
        """Nothing."""


class PlainReporter(SilentReporter):
    """Writes a line for each event, with the seconds since it was made in front.

    Args:
        file: where to; stderr when None.
        clock: seconds from any beginning.
    """

    def __init__(self, file: TextIO | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._file = file or sys.stderr
        self._clock = clock
        self._began = self._last_line = clock()
        self._doing = "still loading"

    def show(self, event: Event) -> None:
        """Write the event's lines; after a silence, what goes on."""
        now = self._clock()
        lines = _lines(event)
        if isinstance(event, PhaseBegan):
            self._doing = f"step {event.step} {event.phase}: still {event.doing}"
        elif isinstance(event, Waiting) and now - self._last_line >= _LONGEST_SILENCE:
            lines = [self._doing]
        for line in lines:
            print(f"[{now - self._began:7.1f}s] {line}", file=self._file, flush=True)
            self._last_line = now


def _lines(event: Event) -> list[str]:
    lines: list[str] = []
    match event:
        case RunBegan(models, plan):
            lines = [", ".join([*(f"{part} {one_line(name)}" for part, name in models.items()), *plan])]
        case ModelLoading(part, name):
            lines = [f"{part} {one_line(name)}: loading"]
        case ModelLoaded(part, name, seconds):
            lines = [f"{part} {one_line(name)}: ready ({seconds:.1f} s)"]
        case Warned(text):
            lines = [f"warning: {one_line(text)}"]
        case PhaseEnded(step, phase, summary, text, failures, seconds):
            excerpt = f": {one_line(text, _EXCERPT)}" if text else ""
            head = f"step {step} {phase}"
            told = summary.replace("   ", ", ")
            lines = [f"{head}: {told} ({seconds:.1f} s){excerpt}"]
            lines += [f"{head}: not usable: {each}" for each in failures]
        case RunEnded() if not event.says_nothing:
            lines = [_last_line(event)]
    return lines


def _last_line(ended: RunEnded) -> str:
    best = f"; best {reward(ended.best['reward'])} ({ended.best['id']})" if ended.best else ""
    tokens = f"{ended.input_tokens:,} + {ended.output_tokens:,} tokens"
    return f"{ending(ended)}{best}; {plural(ended.requests, 'request')}, {tokens}, {ended.seconds:.1f} s"


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
            parts.insert(0, f"best {reward(event.best['reward'])} ({event.best['id']})")
        self._print(Group("", Text(ending(event), style), Text(self._dot.join(parts), "dim")))
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
