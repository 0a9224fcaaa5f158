"""The errors of tpo_graph, one tree.

    TPOError
    ├── ConfigurationError   a setting, name or argument that can't be used
    │   └── MissingDependencyError   an optional package that is not installed
    ├── PromptError          a prompt pack that is not complete, or a text that can't be rendered
    ├── PolicyError          the policy (or critic) gave no usable response
    ├── RewardError          the reward model could not be loaded or could not score
    └── BudgetError          a budget that does not allow what was asked for

Every message names the value that was at fault and what was allowed; `hint` says what to do next. What may end a run
is one of Python's own kinds as well, because LangGraph's server shows the messages of those alone.
Exceptions of other libraries are mapped to these in one place each, with `raise ... from`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpo_graph.types import Candidate, PhaseUsage


class TPOError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        message: what went wrong, with the value at fault.
        hint: what to do next; empty when the message says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


def install_hint(extra: str) -> str:
    """How to get an optional package, for the hint of a `MissingDependencyError`.

    Args:
        extra: the extra of this package that brings it.
    """
    return f"Install the extra {extra!r}: pip install '.[{extra}]' in a clone of the repository"


class ConfigurationError(TPOError, ValueError):
    """A setting, a name or an argument that can't be used."""


class MissingDependencyError(ConfigurationError, ImportError):
    """A package that an optional feature needs is not installed."""


class PromptError(TPOError, ValueError):
    """A prompt pack is incomplete, or one of its texts can't be rendered."""


class PolicyError(TPOError, RuntimeError):
    """The policy or the critic gave no usable response.

    Attributes:
        usage: what the failed requests cost, where it is known.
    """

    def __init__(self, message: str, *, hint: str = "", usage: "PhaseUsage | None" = None) -> None:
        super().__init__(message, hint=hint)
        self.usage = usage


class RewardError(TPOError, RuntimeError):
    """A reward model could not be loaded, or could not score.

    Attributes:
        unscored: the candidates that were waiting for a reward; they were paid for and are kept here.
        usage: what the failed scoring cost, where it is known.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        unscored: Sequence["Candidate"] = (),
        usage: "PhaseUsage | None" = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.unscored = list(unscored)
        self.usage = usage


class BudgetError(TPOError, ValueError):
    """A budget does not allow what was asked for.

    Attributes:
        usage: what was spent before it ran out; None where it did not even allow to begin.
    """

    def __init__(self, message: str, *, hint: str = "", usage: "PhaseUsage | None" = None) -> None:
        super().__init__(message, hint=hint)
        self.usage = usage
