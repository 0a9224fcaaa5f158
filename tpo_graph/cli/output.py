"""What the command writes: text that is safe for a terminal, answers, JSON, and errors with their exit codes."""

import json
import re
import sys
import traceback
from enum import IntEnum
from typing import TYPE_CHECKING

from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
)
from tpo_graph.types import JSONObject

if TYPE_CHECKING:
    from rich.console import Console

# all control characters but tab and newline, and halves of surrogate pairs, which no encoding can write
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# json.dumps leaves these as they are; terminals act on some of them
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
_LONGEST_ERROR = 1000


def clean(text: str) -> str:
    r"""Show every control character of a text as a sign; tabs and newlines stay.

    Example:
        >>> clean("a\x1b[31mb")
        'a␛[31mb'
    """

    def sign(match: re.Match[str]) -> str:
        code = ord(match.group())
        if code < 0x20:
            return chr(0x2400 + code)  # Unicode's pictures of control characters
        return "\u2421" if code == 0x7F else "\ufffd"

    return _UNSAFE.sub(sign, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 400) -> str:
    r"""Put a text on one line of at most `limit` characters, without control characters.

    Example:
        >>> one_line("one\n two three", limit=9)
        'one tw...'
    """
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    Example:
        >>> plural(1, "request"), plural(2, "request")
        ('1 request', '2 requests')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def write_answer(text: str) -> None:
    """Print an answer to stdout; on a terminal its lines break between words."""
    text = clean(text)
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(text, tab_size=4))


def write_json(document: JSONObject) -> None:
    """Print one JSON document to stdout, in whatever encoding that has."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(document, indent=2, ensure_ascii=not unicode, allow_nan=False)
    # such a character can only stand inside a string, where its escape means the same
    print(_UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text), flush=True)


def stderr_console(*, quiet: bool = False) -> "Console":
    """A console on stderr; whatever variables such as FORCE_COLOR say, a pipe or a file gets no control codes."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, quiet=quiet)


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    POLICY = 3
    REWARD = 4
    BUDGET = 5
    INTERRUPTED = 130


EXIT_CODES_HELP = (
    "Exit codes: 0 an answer, also when a run stopped early; 1 an unexpected error; 2 a wrong option, setting, "
    "name or prompt; 3 the policy failed; 4 the reward model failed; 5 a budget; 130 interrupted."
)
"""For the end of a help text."""

# the first kind that fits decides; the hint is for errors that bring none
_ERRORS: tuple[tuple[type[BaseException], ExitCode, str], ...] = (
    (MissingDependencyError, ExitCode.USAGE, 'Install what is missing, as in: pip install "tpo-graph[local]".'),
    (
        PromptError,
        ExitCode.USAGE,
        "`tpo-graph prompts list` names the packs, and `tpo-graph prompts show PACK` prints one.",
    ),
    (ConfigurationError, ExitCode.USAGE, "--help after the command lists every option and what it takes."),
    (PolicyError, ExitCode.POLICY, "--debug shows the whole error."),
    (RewardError, ExitCode.REWARD, "--debug shows the whole error; --reward names another reward model."),
    (BudgetError, ExitCode.BUDGET, "Raise the budget, or set it to none."),
    (
        BaseException,
        ExitCode.UNEXPECTED,
        "This is a defect of tpo-graph or of a library; --debug shows where it happened.",
    ),
)


def describe_error(error: BaseException) -> JSONObject:
    """An error as plain values: kind, message, hint and exit code."""
    code, hint = next((code, hint) for kind, code, hint in _ERRORS if isinstance(error, kind))
    if isinstance(error, TPOError):
        message, hint = error.message, error.hint or hint
    else:
        message = f"{type(error).__name__}: {error}".rstrip(": ")
    return {"kind": type(error).__name__, "message": message, "hint": hint, "exit_code": int(code)}


def report_error(error: BaseException, *, debug: bool = False) -> ExitCode:
    """Print an error to stderr as two lines, what is wrong and what to do, and return the exit code.

    Args:
        error: what ended the command.
        debug: print its traceback first.
    """
    if debug:
        traceback.print_exception(error)
    described = describe_error(error)
    print_error(described["message"], described["hint"])
    return ExitCode(described["exit_code"])


def print_error(message: str, hint: str) -> None:
    """Print the lines `error: ...` and `hint: ...` to stderr."""
    from rich.text import Text

    console = stderr_console()
    for label, style, text in (("error", "bold red", message), ("hint", "bold cyan", hint)):
        if text:
            line = Text.assemble((f"{label}:", style), " ", one_line(text, _LONGEST_ERROR))
            console.print(line, soft_wrap=True)
