"""The process around a command: streams that may be closed or full, and signals.

Nothing heavy is imported here: it stands before everything else.
"""

import io
import os
import select
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, cast

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# terminals that close, and programs that pass Ctrl-C on, send two signals at once that mean one
_MOMENT = 0.3  # seconds
_SHOW_CURSOR = b"\x1b[?25h"

_STDIN, _STDOUT, _STDERR = range(3)
_lost: set[int] = set()
_interrupts: list[tuple[int, float]] = []  # signals, and when they came


class _Output(io.FileIO):
    """Standard output or error. What error can't take is lost, and the run goes on; what output can't take raises."""

    def write(self, data: Any) -> int:  # Any: what `FileIO.write` takes has no name before Python 3.12
        try:
            # None where the other end has made it non-blocking, and is slow
            while (written := cast("int | None", super().write(data))) is None:
                select.select([], [self], [])
        except OSError:
            _lost.add(self.fileno())
            if self.fileno() == _STDOUT:
                raise
            return memoryview(data).nbytes
        return written


def prepare() -> None:
    """Make text UTF-8, all three standard streams usable, and SIGTERM and SIGHUP the same as Ctrl-C."""
    if sys.getfilesystemencoding() == "ascii" and sys.executable:
        # a C locale whose UTF-8 was turned off: arguments, variables and files would be ASCII, and a question seldom is
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            # closed: what is opened next would get the number, and the output. This reads as empty and can't be written
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    # Python has None for streams that are closed
    sys.stdin = sys.stdin or open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    for name, number in (("stdout", _STDOUT), ("stderr", _STDERR)):
        before = getattr(sys, name)
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Output(number, "w", closefd=False)),
            encoding=before.encoding if before else "utf-8",
            errors="backslashreplace",  # an answer that the terminal's encoding has no letters for is better than none
            line_buffering=number == _STDERR or os.isatty(number),
        )
        setattr(sys, name, stream)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell's background jobs have them
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if not _interrupts:
        _interrupts.append((number, now))
        raise KeyboardInterrupt(128 + number)
    if now - _interrupts[0][1] > _MOMENT:
        with suppress(OSError):
            os.write(_STDERR, _SHOW_CURSOR if os.isatty(_STDERR) else b"")
        os._exit(128 + number)


def interrupt_code() -> int:
    """The exit code of a command that was interrupted: 128 and the number of the signal, as in a shell."""
    return 128 + (_interrupts[0][0] if _interrupts else signal.SIGINT)


def end_at_next_signal() -> None:
    """The command is done: a signal while the process cleans up ends it."""
    _interrupts.append((signal.SIGINT, 0.0))


def end_by_signals() -> None:
    """Let SIGTERM and SIGHUP end the process by themselves again, for a server that handles them and raises them."""
    for number in _SIGNALS[1:]:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def stdout_is_lost() -> bool:
    """Whether something could not be written to standard output."""
    return _STDOUT in _lost


def stderr_is_lost() -> bool:
    """Whether something could not be written to standard error."""
    return _STDERR in _lost


def discard_stdout() -> None:
    """Send what is still buffered, and all that follows, nowhere; it must not fail again when the process ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
