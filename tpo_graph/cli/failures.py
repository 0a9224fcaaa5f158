"""Errors as a person meets them: one line that says what is wrong, one that says what to do."""

import sys
import traceback
from typing import Any

from tpo_graph.cli.exit_codes import ExitCode, exit_code_of
from tpo_graph.cli.safe_text import one_line
from tpo_graph.errors import MissingDependencyError, PromptError, TPOError

__all__ = ["describe", "report"]

_LONGEST = 1000
_DEFAULT_HINTS = {
    ExitCode.UNEXPECTED: "This is a defect of tpo-graph or of a library; --debug shows where it happened.",
    ExitCode.USAGE: "--help after the command lists every option and what it takes.",
    ExitCode.POLICY: "--debug shows the whole error.",
    ExitCode.REWARD: "--debug shows the whole error; --reward names another reward model.",
    ExitCode.BUDGET: "Raise the budget, or set it to none.",
    ExitCode.JOURNAL: "--debug shows the whole error.",
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
