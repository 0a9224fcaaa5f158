"""What the command writes: text that is safe for a terminal, answers, JSON, and errors with their exit codes."""

import json
import os
import re
import secrets
import shutil
import sys
import traceback
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tpo_graph.cli.process import discard_stdout
from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
    install_hint,
)
from tpo_graph.types import JSONObject

if TYPE_CHECKING:
    from rich.console import Console

# C1 controls and halves of surrogate pairs; what is invisible and turns the direction of text around, or hides text
# (the joiners that scripts and emoji need are not among them)
_NOT_SHOWN = r"\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
# with all C0 controls but tab and newline, and the invisible copies of ASCII letters
_UNSAFE = re.compile(rf"[\x00-\x08\x0b-\x1f{_NOT_SHOWN}\U000e0000-\U000e007f]")
# json.dumps leaves these as they are; terminals act on some of them
_UNSAFE_IN_JSON = re.compile(f"[{_NOT_SHOWN}]")
_LONGEST_ERROR = 1000


def clean(text: str) -> str:
    r"""Show every control character of a text, and what turns its direction around, as a sign; tabs and newlines stay.

    Examples:
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

    Examples:
        >>> one_line("one\n two three", limit=9)
        'one tw...'
    """
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    Examples:
        >>> plural(1, "request"), plural(2, "request")
        ('1 request', '2 requests')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def write_answer(text: str) -> None:
    """Print an answer to stdout: as it is, but on a terminal without control characters and broken between words.

    Raises:
        OutputError: it can't be written there; it is kept in a file.
    """
    if not sys.stdout.isatty():
        deliver(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(Text(clean(text), tab_size=4))
    deliver(captured.get().removesuffix("\n"), kept=text)


def write_json(document: JSONObject) -> None:
    """Print one JSON document to stdout, in whatever encoding that has.

    Raises:
        OutputError: it can't be written there; it is kept in a file.
    """
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    deliver(_as_json(document, ascii_only=not unicode), suffix=".json")


def check_can_save(path: Path) -> None:
    """Refuse a place where no file can be written, before anything is paid for.

    Raises:
        ConfigurationError: the folder is not there or is read-only, or the path is something else than a file.
    """
    folder = path.resolve().parent
    problem = (
        "is not a file"
        if path.exists() and not path.is_file()
        else f"can't be written: there is no folder {str(folder)!r}"
        if not folder.is_dir()
        else f"can't be written: the folder {str(folder)!r} is read-only"
        if not os.access(folder, os.W_OK)
        else ""
    )
    if problem:
        raise ConfigurationError(f"--save {str(path)!r} {problem}.", hint="Name a file in a folder of yours.")


def save_json(document: JSONObject, path: Path) -> None:
    """Write one JSON document to a file, which is there as a whole or as it was before.

    Raises:
        OutputError: it can't be written there; it is kept in another file.
    """
    text = _as_json(document)
    path = path.resolve()  # what a link leads to is replaced, not the link
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with part.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except (OSError, KeyboardInterrupt) as error:
        reason = error.strerror if isinstance(error, OSError) else "interrupted"
        where = keep(text, suffix=".json")
        raise OutputError(
            f"{str(path)!r} can't be written: {reason}.",
            hint=f"The run is kept in {where}." if where else "The run stands above; no file can be written.",
        ) from error


def _as_json(document: JSONObject, *, ascii_only: bool = False) -> str:
    text = json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=False)
    # such a character can only stand inside a string, where its escape means the same
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def deliver(text: str, *, kept: str | None = None, suffix: str = ".txt") -> None:
    """Print a result that was paid for to stdout, and a newline.

    Args:
        text: what to print.
        kept: what to keep in its place when it can't be printed; `text` when None.
        suffix: of the file that it is then kept in.

    Raises:
        OutputError: stdout does not take all of it; the message says where it is kept.
    """
    try:
        print(text, flush=True)
    except (OSError, KeyboardInterrupt) as error:  # Ctrl-C: while the reader of a pipe took its time
        discard_stdout()
        reason = error.strerror if isinstance(error, OSError) else "interrupted"
        where = keep(text if kept is None else kept, suffix=suffix)
        raise OutputError(
            f"Standard output can't be written: {reason}.",
            hint=f"The result is kept in {where}." if where else "The result stands above; no file can be written.",
        ) from error


def keep(text: str, *, suffix: str = ".txt") -> str:
    """Keep what can't be printed in a new file, in the current folder or else in that for temporary files.

    Returns:
        The path of the file; "" where no file can be written, and the text went to stderr.
    """
    import tempfile

    for folder in (Path.cwd, tempfile.gettempdir):
        with suppress(OSError):
            number, path = tempfile.mkstemp(suffix, "tpo-graph-", folder())
            try:
                with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
                    file.write(f"{text}\n")
            except OSError:
                Path(path).unlink()
                raise
            return path
    print(clean(text), file=sys.stderr, flush=True)
    return ""


def stderr_console(*, quiet: bool = False) -> "Console":
    """A console on stderr; whatever variables such as FORCE_COLOR say, a pipe or a file gets no control codes."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, quiet=quiet)


class OutputError(TPOError):
    """A result that standard output does not take."""


class ExitCode(IntEnum):
    """How a command ended; SIGTERM and SIGHUP have a code of their own, see `interrupt_code`."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    POLICY = 3
    REWARD = 4
    BUDGET = 5
    OUTPUT = 6
    INTERRUPTED = 130


EXIT_CODES_HELP = (
    "Exit codes: 0 an answer, also of a run that stopped early or failed on the way (standard error and the "
    "stop_reason of --json say so); 1 an unexpected error; 2 a wrong option, setting, name or prompt; 3 the policy "
    "failed; 4 the reward model failed; 5 a budget; 6 standard output or a file can't be written (an answer is kept "
    "elsewhere); 130 interrupted (143 by SIGTERM, 129 by SIGHUP)."
)
"""For the end of a help text."""

# the first kind that fits decides; the hint is for errors that bring none
_ERRORS: tuple[tuple[type[BaseException], ExitCode, str], ...] = (
    (MissingDependencyError, ExitCode.USAGE, f"{install_hint('local')}, or another one that has what is missing."),
    (
        PromptError,
        ExitCode.USAGE,
        "`tpo-graph prompts list` names the packs, and `tpo-graph prompts show PACK` prints one.",
    ),
    (ConfigurationError, ExitCode.USAGE, "--help after the command lists every option and what it takes."),
    (PolicyError, ExitCode.POLICY, "--debug shows the whole error."),
    (RewardError, ExitCode.REWARD, "--debug shows the whole error; --reward names another reward model."),
    (BudgetError, ExitCode.BUDGET, "Raise the budget, or set it to none."),
    (OutputError, ExitCode.OUTPUT, ""),
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
