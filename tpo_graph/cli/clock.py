"""A clock that goes on while a model loads: libraries hold Python's lock for seconds, and then no thread here can draw.

A process of its own draws the last line of the terminal, whenever this one has not done so for a moment.
"""

import os
import subprocess
import sys
from contextlib import suppress

_MOMENT = 0.3  # seconds

# reads lines of: spinner, tab, what goes on, tab, seconds, tab, columns
_DRAW = f"""
import os, select, time
turns, doing, seconds, columns, heard = "", "", 0.0, 0, time.monotonic()
while True:
    if select.select([0], [], [], 0.1)[0]:
        data = os.read(0, 65536)
        if not data:
            break
        turns, doing, seconds, columns = data.decode().splitlines()[-1].split("\\t")
        seconds, columns, heard = float(seconds), int(columns), time.monotonic()
    elif doing and (silent := time.monotonic() - heard) > {_MOMENT}:
        clock = f"{{seconds + silent:.1f}} s"
        room = columns - len(clock)
        left = f"  {{turns[int(silent * 10) % len(turns)]}} {{doing}}"[: room - 1].ljust(room)
        os.write(2, f"\\r\\x1b[2K{{left}}{{clock}}".encode())
"""


class LoadingClock:
    """Draws the line about what goes on, while this process can't.

    Args:
        turns: the characters of the spinner.
    """

    def __init__(self, turns: str) -> None:
        self._turns = turns
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; where it can't be started, there is no such clock."""
        with suppress(OSError):
            # a session of its own: Ctrl-C is not for it
            self._process = self._process or subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _DRAW], stdin=subprocess.PIPE, start_new_session=True
            )
            if self._process.stdin:
                os.set_blocking(self._process.stdin.fileno(), False)

    def beat(self, doing: str, seconds: float, columns: int) -> None:
        """This process draws by itself at this moment.

        Args:
            doing: what goes on.
            seconds: for how long.
            columns: of the terminal.
        """
        if self._process and self._process.stdin:
            with suppress(OSError, ValueError):
                line = f"{self._turns}\t{doing}\t{seconds}\t{columns}\n"
                os.write(self._process.stdin.fileno(), line.encode())

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process and process.stdin:
            with suppress(OSError):
                process.stdin.close()
            process.kill()
            process.wait()
