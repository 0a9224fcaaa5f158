"""What the command's exit codes mean."""

from enum import IntEnum

from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    JournalError,
    PolicyError,
    PromptError,
    RewardError,
)

__all__ = ["EXIT_CODES_HELP", "ExitCode", "exit_code_of"]


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    POLICY = 3
    REWARD = 4
    BUDGET = 5
    JOURNAL = 6
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigurationError, ExitCode.USAGE),
    (PromptError, ExitCode.USAGE),
    (PolicyError, ExitCode.POLICY),
    (RewardError, ExitCode.REWARD),
    (BudgetError, ExitCode.BUDGET),
    (JournalError, ExitCode.JOURNAL),
)

EXIT_CODES_HELP = (
    "Exit codes: 0 an answer, also when a run stopped early; 1 an unexpected error; 2 a wrong option, setting, "
    "name or prompt; 3 the policy failed; 4 the reward model failed; 5 a budget; 6 a journal; 130 interrupted."
)
"""For the end of a help text."""


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that ended with `error`."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.UNEXPECTED)
