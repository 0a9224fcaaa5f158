"""What one call of the command has to remember beside its arguments."""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import typer

from tpo_graph.cli.display import one_line
from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
)

# What the command's exit codes mean.


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    POLICY = 3
    REWARD = 4
    BUDGET = 5
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigurationError, ExitCode.USAGE),
    (PromptError, ExitCode.USAGE),
    (PolicyError, ExitCode.POLICY),
    (RewardError, ExitCode.REWARD),
    (BudgetError, ExitCode.BUDGET),
)

EXIT_CODES_HELP = (
    "Exit codes: 0 an answer, also when a run stopped early; 1 an unexpected error; 2 a wrong option, setting, "
    "name or prompt; 3 the policy failed; 4 the reward model failed; 5 a budget; 130 interrupted."
)
"""For the end of a help text."""


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that ended with `error`."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.UNEXPECTED)


# Errors as a person meets them: one line that says what is wrong, one that says what to do.

_LONGEST = 1000
_DEFAULT_HINTS = {
    ExitCode.UNEXPECTED: "This is a defect of tpo-graph or of a library; --debug shows where it happened.",
    ExitCode.USAGE: "--help after the command lists every option and what it takes.",
    ExitCode.POLICY: "--debug shows the whole error.",
    ExitCode.REWARD: "--debug shows the whole error; --reward names another reward model.",
    ExitCode.BUDGET: "Raise the budget, or set it to none.",
}


def describe(error: BaseException) -> dict[str, Any]:  # Any: plain values for JSON
    """An error as kind, message, hint and exit code."""
    code = exit_code_of(error)
    message = error.message if isinstance(error, TPOError) else f"{type(error).__name__}: {error}".rstrip(": ")
    hint = (error.hint if isinstance(error, TPOError) else "") or _default_hint(error, code)
    return {"kind": type(error).__name__, "message": message, "hint": hint, "exit_code": int(code)}


def report(error: BaseException, *, debug: bool) -> ExitCode:
    """Print an error to stderr as `error: ...` and `hint: ...`, after its traceback with `debug`."""
    if debug:
        traceback.print_exception(error)
    told = describe(error)
    print_error(told["message"], told["hint"])
    return exit_code_of(error)


def print_error(message: str, hint: str) -> None:
    """Print the two lines."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stderr, force_terminal=sys.stderr.isatty(), highlight=False)
    for label, style, text in (("error", "bold red", message), ("hint", "bold cyan", hint)):
        if text:
            line = Text.assemble((f"{label}:", style), " ", one_line(text, _LONGEST))
            console.print(line, soft_wrap=True)


def _default_hint(error: BaseException, code: ExitCode) -> str:
    if isinstance(error, MissingDependencyError):
        return 'Install what is missing, as in: pip install "tpo-graph[local]".'
    if isinstance(error, PromptError):
        return "`tpo-graph prompts list` names the packs, and `tpo-graph prompts show PACK` prints one."
    return _DEFAULT_HINTS.get(code, "")


@dataclass
class Invocation:
    """The object of the call's context.

    Attributes:
        debug: show tracebacks.
    """

    debug: bool = False


def with_debug_flag(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a flag `--debug`, which counts from where it is parsed: errors in other options come later."""

    @functools.wraps(command)
    def debuggable(*, debug: bool, **values: Any) -> None:  # Any: what Typer parsed
        del debug  # its callback has remembered it
        command(**values)

    signature = inspect.signature(command)
    flag = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_DEBUG)
    debuggable.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it, typeshed has no word for it
        parameters=[*signature.parameters.values(), flag]
    )
    return debuggable


def _remember(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, Invocation):
        context.obj.debug = True
    return value


_DEBUG = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the traceback of an error.", callback=_remember, is_eager=True, rich_help_panel="Output"
    ),
]
