"""Progress as plain lines, for logs and pipes: no colour, no control code, one line for each thing that happens."""

import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from tpo_graph.cli import story
from tpo_graph.cli.events import (
    Event,
    ModelLoaded,
    ModelLoading,
    PhaseBegan,
    PhaseEnded,
    RunBegan,
    RunEnded,
    Waiting,
    Warned,
)
from tpo_graph.cli.safe_text import one_line, plural

__all__ = ["PlainReporter", "SilentReporter"]

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
    best = f"; best {story.reward(ended.best['reward'])} ({ended.best['id']})" if ended.best else ""
    tokens = f"{ended.input_tokens:,} + {ended.output_tokens:,} tokens"
    return f"{story.ending(ended)}{best}; {plural(ended.requests, 'request')}, {tokens}, {ended.seconds:.1f} s"
