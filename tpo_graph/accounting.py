"""What a run uses: requests, tokens and seconds by phase."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tpo_graph.types import PhaseUsage, Usage


def no_usage() -> PhaseUsage:
    """A count of nothing."""
    return PhaseUsage(requests=0, input_tokens=0, output_tokens=0, seconds=0.0)


def plus(left: PhaseUsage, right: PhaseUsage) -> PhaseUsage:
    """The sum of two counts."""
    return PhaseUsage(
        requests=left["requests"] + right["requests"],
        input_tokens=left["input_tokens"] + right["input_tokens"],
        output_tokens=left["output_tokens"] + right["output_tokens"],
        seconds=left["seconds"] + right["seconds"],
    )


def add_usage(left: Usage | None, right: Usage | None) -> Usage:
    """The reducer of the state's `usage`: sums phase by phase, without changing either side."""
    merged: Usage = dict(left or {})
    for phase, used in (right or {}).items():
        merged[phase] = plus(merged.get(phase, no_usage()), used)
    return merged


def total(usage: Mapping[str, PhaseUsage]) -> PhaseUsage:
    """The sum over all phases."""
    result = no_usage()
    for used in usage.values():
        result = plus(result, used)
    return result


class Stopwatch:
    """Measures the wall seconds of a `with` block in `seconds`."""

    seconds: float = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._began
