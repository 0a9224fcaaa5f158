"""What happens in a run, as it happens: from the thread that does the work to what shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

from tpo_graph.types import Phase, ScoredCandidate, StepRecord, StopReason

__all__ = [
    "Emit",
    "Event",
    "ModelLoaded",
    "ModelLoading",
    "Part",
    "PhaseBegan",
    "PhaseEnded",
    "Reporter",
    "RunBegan",
    "RunEnded",
    "Waiting",
    "Warned",
]

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
