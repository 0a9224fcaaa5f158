"""A run on standard error while it goes on: what every phase did, loss and gradient to read, a chart of the rewards.

There is one layout. On a terminal the last lines show what goes on, and move; Rich leaves them out where output is
piped or the terminal is dumb, together with colours and control codes, and a long silence gets a line instead.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.text import Text

from tpo_graph.accounting import total
from tpo_graph.cli.chart import ASCII_MARKS, UNICODE_MARKS, mean_reward, reward_chart
from tpo_graph.cli.clock import LoadingClock
from tpo_graph.cli.outcome import Outcome, Role, RunRequest, State
from tpo_graph.cli.output import clean, one_line, plural, stderr_console
from tpo_graph.report.words import FAILURES, STOP_REASONS, format_reward
from tpo_graph.selection import is_tie
from tpo_graph.types import FailureRecord, Phase, ScoredCandidate, StopReason

_LONGEST_SILENCE = 20.0  # seconds
_SHORTEST_SHOWN = 0.05  # seconds
_LINES_OF_TEXT = 10
_STEPS_WHILE_RUNNING = 8
_BARS = {"loss": "magenta", "gradient": "blue"}

_YOURS = {"person": "you stopped it"}
_FAILED: tuple[StopReason, ...] = ("policy_failed", "reward_failed", "updates_failed")


class Reporter:
    """Shows a run. A context manager, so that the terminal is left as it was found; any thread may call it.

    Everything that comes from a model is put into `Text`, which has no markup, after control characters are replaced.

    Args:
        console: where to write; standard error when None.
        quiet: show nothing.
        answer_follows: whether the answer goes to the same terminal, so that a rule sets it apart.
        clock: seconds from any beginning.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        answer_follows: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._console = console or stderr_console(quiet=quiet)
        self._ascii_only = ascii_only = self._console.options.ascii_only
        self._good, self._bad, self._bar, self._dot = ("+", "x", "|", " | ") if ascii_only else ("✓", "✗", "│", " · ")
        self._marks = ASCII_MARKS if ascii_only else UNICODE_MARKS
        self._spinner = Spinner("line" if ascii_only else "dots")
        self._answer_follows = answer_follows
        self._clock = clock
        self._since = self._last_print = clock()
        self._doing = ""
        self._wanted = self._arrived = 0  # completions of the phase
        self._loading: list[Role] = []
        self._loading_clock = LoadingClock("".join(map(str, self._spinner.frames)))
        self._step = -1
        self._state: State = {}
        self._finished = False
        self._live = Live(
            console=self._console,
            get_renderable=self._moving_lines,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=not quiet,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loading_clock.stop()
        self._live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal alone, so that a person can be asked something."""
        self._live.stop()
        yield
        if not self._finished:
            self._live.start()

    def start(self, request: RunRequest) -> None:
        """Show what is about to run, before anything is loaded."""
        settings, dot = request.settings, self._dot
        steps = 0 if settings.mode == "bon" else settings.depth
        plan = f", {plural(steps, 'step')} of {plural(settings.n, 'revision')}" if steps else ", the best is taken"
        plan = plural(settings.n, "candidate") + plan
        knobs = [] if settings.mode == "tpo" else [f"mode {settings.mode}"]
        knobs += [f"N {settings.n}", f"D {settings.depth}"][: 1 if settings.mode == "bon" else 2]
        requests = 1 + steps * (2 if request.variant == "fused-critique" else 3)
        plan += f" ({', '.join(knobs)}), about {plural(requests, 'request')}"
        plan += f"{dot}seed {settings.seed}" if settings.seed is not None else ""
        name = Text("tpo-graph  ", "bold")
        models = dot.join(f"{role} {one_line(model)}" for role, model in request.models.items())
        self._print_wrapped(name, Text.assemble(models, "\n", (plan, "dim")))

    def load(self, role: Role, name: str, seconds: float | None) -> None:
        """A model starts to load, or is ready.

        Args:
            role: what it is in the run.
            name: its name.
            seconds: how long it took; None when it starts.
        """
        if seconds is None:
            self._loading.append(role)
            if self._console.is_interactive:
                self._loading_clock.start()
            self._begin(f"loading {' and '.join(self._loading)}")
            return
        self._loading.remove(role)
        if not self._loading:
            self._loading_clock.stop()
        self._doing = f"loading {' and '.join(self._loading)}" if self._loading else "building the graph"
        self._print_row(role.ljust(14), one_line(name), seconds)

    def warn(self, text: str) -> None:
        """Show something that a person should know."""
        self._print_wrapped(Text("  ! ", "yellow"), Text(one_line(text), "yellow"))

    def phase_started(self, phase: Phase, step: int, request: RunRequest | None, state: State) -> None:
        """A node starts to work for a step.

        Args:
            phase: the node.
            step: the step.
            request: what the run was asked for; None when that is not known.
            state: what the node reads.
        """
        n = request.settings.n if request else None
        pair: Any = state
        alone = phase == "loss" and (is_tie(pair) or (request and request.settings.mode == "revision"))
        doing = {
            "sample": f"drawing {plural(n, 'candidate') if n else 'candidates'}",
            "score": "asking you" if request and request.person_rates else "asking the reward model",
            "select": "choosing the best and the worst",
            "loss": "judging the best alone" if alone else "comparing the best with the worst",
            "gradient": "turning the loss into advice",
            "update": f"writing {plural(n, 'revision') if n else 'revisions'}",
        }[phase]
        self._begin(f"{phase}: {doing}")
        self._wanted = n or 0 if phase in ("sample", "update") else 0
        if step != self._step:
            self._step = step
            self._print(Text(f"\nstep {step}", "bold"))

    def arrived(self, count: int) -> None:
        """Completions have come; more of the phase's are still to come."""
        self._arrived += count

    def phase_ended(self, phase: Phase, before: State, after: State, seconds: float) -> None:
        """Show what a node did, from the states on both sides of it."""
        self._begin("")
        failures: Sequence[FailureRecord] = after.get("failures", [])[len(before.get("failures", [])) :]
        summary = phase_summary(phase, before, after, failures)
        self._print_row(phase.ljust(9), summary, seconds, good=not summary.startswith(("0 ", "no ")))
        self._state = after
        if phase == "select":
            self._print_pair(after["best"], after["worst"])
        if phase in _BARS and after.get(phase):
            self._print_text(after[phase], _BARS[phase])
        for line, count in Counter(failure_line(failure) for failure in failures).items():
            times = "" if count == 1 else f"({count} times) "
            self._print_wrapped(Text(f"    {self._bad} ", "red"), Text(times + line, "red"))

    def idle(self) -> None:
        """Say what goes on where nothing moves and nothing was printed for a while."""
        now = self._clock()
        if self._doing and not self._console.is_interactive and now - self._last_print >= _LONGEST_SILENCE:
            self._print(Text(f"  ... {self.doing} ({now - self._since:.0f} s)"))

    def finish(self, outcome: Outcome) -> None:
        """Show how the run ended; whatever other threads report after it is left out."""
        self._state, self._doing = {}, ""
        # where nothing was drawn, the error that follows says all that there is to say
        if outcome.interrupted or not outcome.error or outcome.best or outcome.unscored:
            self._print(Group(*reward_chart(outcome.state, width=self._console.width, marks=self._marks)))
            bad = outcome.error or outcome.interrupted or outcome.state.get("stop_reason") in _FAILED
            style = "bold green" if not bad else "bold yellow" if outcome.best else "bold red"
            self._print(Group("", Text(ending(outcome), style)))
            self._print_wrapped(Text(""), Text(gain(outcome), "bold"))
            if outcome.best and self._answer_follows:
                self._print(Rule(Text("answer", "bold"), style="dim"))
        self._finished = True

    def _begin(self, doing: str) -> None:
        self._doing = doing
        self._wanted = self._arrived = 0
        self._since = self._clock()
        self._live.refresh()

    @property
    def doing(self) -> str:
        """What goes on, and how far it is."""
        return self._doing + (f", {self._arrived} of {self._wanted}" if self._wanted and self._arrived else "")

    def _moving_lines(self) -> RenderableType:
        """The chart so far, and what goes on."""
        chart = reward_chart(self._state, width=self._console.width, marks=self._marks, steps=_STEPS_WHILE_RUNNING)
        lines = [*chart, *([Text("")] if chart else [])]
        if self._doing:
            self._loading_clock.beat(self.doing, self._clock() - self._since, self._console.width)
            turn = self._spinner.render(self._console.get_time())
            left = Text.assemble("  ", turn if isinstance(turn, Text) else "", " ", (self.doing, "italic"))
            lines.append(self._justified(left, f"{self._clock() - self._since:.1f} s"))
        return Group(*lines)

    def _print_row(self, name: str, summary: str, seconds: float, *, good: bool = True) -> None:
        sign = (self._good, "green") if good else (self._bad, "red")
        left = Text.assemble("  ", sign, " ", (name, "bold"), " ", summary)
        self._print(self._justified(left, f"{seconds:.1f} s" if seconds >= _SHORTEST_SHOWN else ""))

    def _justified(self, left: Text, right: str) -> Text:
        width = self._console.width - (len(right) + 1 if right else 0)
        left.truncate(width, overflow="crop" if self._ascii_only else "ellipsis", pad=bool(right))
        return Text.assemble(left, " ", (right, "dim")) if right else left

    def _print_text(self, text: str, style: str) -> None:
        """Show a text of a model behind a bar; of a long one the first lines only."""
        words = Text("\n".join(line for line in clean(text).split("\n") if line.strip()), tab_size=4)
        bar = Text(f"    {self._bar} ", style)
        lines = list(words.wrap(self._console, self._console.width - bar.cell_len))
        more = len(lines) - _LINES_OF_TEXT
        if more > 1:
            lines = [*lines[:_LINES_OF_TEXT], Text(f"({more} more lines; --json has them all)", "dim")]
        self._print(Group(*(Text.assemble(bar, line) for line in lines)))

    def _print_pair(self, best: ScoredCandidate, worst: ScoredCandidate) -> None:
        """Show the texts that are compared, a line each."""
        pair = {"best": (best, "green"), "worst": (worst, "red")}
        rewards = {name: format_reward(candidate["reward"]) for name, (candidate, _) in pair.items()}
        width = max(map(len, rewards.values()))
        for name, (candidate, style) in pair.items():
            if name == "best" or worst["id"] != best["id"]:
                head = Text.assemble(f"    {self._bar} ", (f"{name:<5} {rewards[name]:>{width}}  ", ""), style=style)
                self._print(self._justified(head.append(one_line(candidate["text"], 1000)), ""))

    def _print_wrapped(self, mark: Text, text: Text) -> None:
        """Show a text behind a mark, its further lines indented by as much."""
        lines = text.wrap(self._console, self._console.width - mark.cell_len)
        for line in lines:
            line.rstrip()
        marks = [mark, *[Text(" " * mark.cell_len)] * (len(lines) - 1)]
        # at once: between two prints the moving lines are drawn
        self._print(Group(*map(Text.assemble, marks, lines)))

    def _print(self, what: RenderableType) -> None:
        if not self._finished:
            self._console.print(what)
            self._last_print = self._clock()


def ending(outcome: Outcome) -> str:
    """Why a run is over, as a sentence without its full stop."""
    reason: StopReason | None = outcome.state.get("stop_reason")
    if reason and not outcome.error and not outcome.interrupted:
        words = _YOURS.get(reason) or STOP_REASONS.get(reason)
        return f"{reason}: {words}" if words else clean(reason)
    how = "interrupted" if outcome.interrupted else "failed" if outcome.error else "finished"
    if outcome.best is not None:
        return f"{how}: the answer is the best candidate so far"
    if outcome.unscored:
        return f"{how}: {plural(len(outcome.unscored), 'candidate')} drawn, none scored"
    return f"{how}: no candidate was drawn"


def gain(outcome: Outcome) -> str:
    """What the run has brought and taken: the rewards of first draft and answer, steps, requests, tokens and time."""
    best, cache = outcome.best, outcome.state.get("cache")
    used, steps = total(outcome.usage), len(outcome.state.get("trajectory", [])) - 1
    costs = [
        plural(used["requests"], "request"),
        f"{plural(used['input_tokens'], 'token')} read",
        f"{used['output_tokens']:,} written",
        f"{outcome.seconds:.1f} s",
    ]
    if not best or not cache:
        return ", ".join(costs)
    first, last = (format_reward(candidate["reward"]) for candidate in (cache[0], best))
    change = "is the answer" if best["id"] == cache[0]["id"] else f"-> answer ({last})"
    after = [f"after {plural(steps, 'step')}"] if steps > 0 else [f"best of {len(cache)}"]
    return f"first draft ({first}) {change} {', '.join(after + costs)}"


def trouble(outcome: Outcome) -> str:
    """What even a quiet run has to say: that it was interrupted, or failed with an answer, and why; else ""."""
    if outcome.interrupted:
        return ending(outcome)
    if outcome.error or outcome.state.get("stop_reason") not in _FAILED:
        return ""
    return ": ".join([ending(outcome), *map(failure_line, outcome.state["failures"][-1:])])


def failure_line(failure: FailureRecord) -> str:
    """Why a response or a request could not be used, with the provider's message or the beginning of the text."""
    words = FAILURES.get(failure["reason"]) or clean(failure["reason"])
    detail = one_line(failure["detail"], 200) or one_line(failure["text"], 60)
    return f"{words}: {detail}" if detail else words


def phase_summary(phase: Phase, before: State, after: State, failures: Sequence[FailureRecord]) -> str:
    """What a phase did, in a few words."""
    if phase == "score":
        new = [candidate["reward"] for candidate in after["cache"][len(before.get("cache", [])) :]]
        if not new:
            return "nothing to score" if not failures else "no reward"
        best, middle, worst = (format_reward(value) for value in (max(new), mean_reward(new), min(new)))
        return f"best {best}   mean {middle}   worst {worst}"
    if phase == "select":
        best_so_far = f"best so far {after['best']['id']} at {format_reward(after['best']['reward'])}"
        if len(after["trajectory"]) < 2:
            return best_so_far
        earlier, latest = (record["best_reward"] for record in after["trajectory"][-2:])
        return (
            f"{best_so_far}, gained {format_reward(latest - earlier)}"
            if latest > earlier
            else f"{best_so_far}, no gain"
        )
    if phase in ("loss", "gradient"):
        words = len(after.get(phase, "").split())
        return plural(words, "word") if words else "no text"
    count = plural(len(after.get("pending", [])), "candidate" if phase == "sample" else "revision")
    return f"{count}, {len(failures)} not usable" if failures else count
