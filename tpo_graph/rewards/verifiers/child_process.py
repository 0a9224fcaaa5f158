"""The parent's end of one child process."""

import contextlib
import json
import subprocess
import sys
import threading
from typing import Any, Literal

from tpo_graph.errors import RewardError

# -P keeps the working directory off the path, so that no file there shadows a module; the parent's path is sent first
_COMMAND = (
    "import sys, json; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from tpo_graph.rewards.verifiers.child import serve; serve()"
)


class CheckKilledError(Exception):
    """A check gave no answer.

    Attributes:
        reason: `time` when it was killed at its time limit, `crash` when its process ended by itself.
    """

    def __init__(self, reason: Literal["time", "crash"]) -> None:
        super().__init__(reason)
        self.reason = reason


class ChildProcess:
    """One child, used by one thread at a time. One line of JSON goes in, one comes out.

    Attributes:
        loaded: the functions that it has imported.

    Raises:
        RewardError: it can't be started.
    """

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            raise RewardError(f"No process for checks can be started with {sys.executable!r}: {error}.") from error
        self._path = json.dumps(sys.path) + "\n"

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:  # Any: plain JSON
        """Send a message and wait for the reply, for `seconds` at most.

        Raises:
            CheckKilledError: there is no reply; the child is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        line = ""
        try:
            # ASCII alone, whatever the response holds: json escapes the rest
            self._process.stdin.write(self._path + json.dumps(message) + "\n")
            self._process.stdin.flush()
            self._path = ""
            line = self._process.stdout.readline()
        except OSError:
            pass  # it died while it was written to; that is what an empty line says too
        finally:
            timer.cancel()
            timer.join()  # it may be about to kill: only after this is `late` final
        if late.is_set() or not line:
            raise CheckKilledError("time" if late.is_set() else "crash")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not sent is lost anyway
                    pipe.close()
