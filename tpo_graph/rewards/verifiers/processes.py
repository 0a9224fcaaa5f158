"""Child processes for checks that may never end.

A regular expression or a symbolic comparison can take longer than anyone waits, hold Python's lock meanwhile, and
can't be stopped in a thread. So it runs in a child process, which is killed at the time limit. Children are kept and
used again, because the libraries that some checks import take a second. The checks themselves are in `child`.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import gather
from tpo_graph.rewards.verifiers import child as child_script
from tpo_graph.types import JSON, JSONObject


@dataclass(frozen=True)
class TimedCheck:
    """A check of `child` with its time limit, as a verifier uses it.

    Attributes:
        name: of the function in `child`.
        seconds: time limit for one response, above 0.
        checkers: the processes to run in; None takes those that all verifiers share.
        warm_up: arguments of a first call in a new child, outside of the time limit; None where none is needed.
        if_killed: the result of a check that gave no answer in time.

    Raises:
        ConfigurationError: the time limit is not above 0.
    """

    name: str
    _: KW_ONLY
    seconds: float
    checkers: "Checkers | None"
    warm_up: JSONObject | None = None
    if_killed: JSON = None

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigurationError(f"The time limit must be above 0 seconds; it is {self.seconds!r}.")

    async def run(self, calls: Iterable[JSONObject]) -> list[JSON]:
        """Run the check once with each of the arguments; several run at the same time.

        Raises:
            RewardError: the function raised, or no child can be started.
        """
        checkers = self.checkers or SHARED_CHECKERS

        async def run(arguments: JSONObject) -> JSON:
            try:
                return await checkers.check(
                    f"__main__:{self.name}", arguments, seconds=self.seconds, warm_up=self.warm_up
                )
            except CheckKilledError:
                return self.if_killed

        return await gather(map(run, calls))


class CheckKilledError(Exception):
    """A check gave no answer.

    Attributes:
        reason: `time` when it was killed at its time limit, `crash` when its process ended by itself.
    """

    def __init__(self, reason: Literal["time", "crash"]) -> None:
        super().__init__(reason)
        self.reason = reason


class Checkers:
    """A few child processes, for any number of event loops and threads.

    Args:
        processes: the most children, each running one check at a time; None takes one per core and not more than four.
        start_seconds: how long a child may take to start and to import what a check needs.
    """

    def __init__(self, *, processes: int | None = None, start_seconds: float = 60.0) -> None:
        self._processes = processes or min(4, os.cpu_count() or 1)
        self._start_seconds = start_seconds
        self._lock = threading.Lock()
        self._set_up()

    def _set_up(self) -> None:
        self._pid = os.getpid()
        # its own threads: the event loop's are few, and a hanging check would keep them from others
        self._threads = ThreadPoolExecutor(self._processes, thread_name_prefix="tpo-graph-checker")
        self._idle: list[_Child] = []
        self._finalizer = weakref.finalize(self, _close_all, self._idle)

    async def check(
        self, function: str, arguments: JSONObject, *, seconds: float, warm_up: JSONObject | None = None
    ) -> JSON:
        """Run one check.

        Args:
            function: `module:name` of a function that takes and returns what JSON can hold; `__main__` is `child`.
            arguments: keyword arguments.
            seconds: the time limit.
            warm_up: keyword arguments of a first call in a new child, outside of the time limit.

        Raises:
            CheckKilledError: it took too long, or ended its process.
            RewardError: the function raised, or no child can be started.
        """
        with self._lock:
            if self._pid != os.getpid():
                # a forked process has the pipes of its parent's children and none of its threads
                self._finalizer.detach()
                self._set_up()

        def run() -> JSON:
            try:
                child = self._idle.pop()
                while not child.is_alive():
                    child.close()
                    child = self._idle.pop()
            except IndexError:  # none is left, or another thread took the last one
                child = _Child()
            try:
                child.load(function, warm_up, self._start_seconds)
                reply = child.ask(function, arguments, seconds)
            except BaseException:
                child.close()
                raise
            self._idle.append(child)
            if "error" in reply:
                raise RewardError(f"The check {function} failed: {reply['error']}")
            return reply["result"]

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def close(self) -> None:
        """End the children that are idle; a later check starts new ones."""
        _close_all(self._idle)


class _Child:
    """One child process, used by one thread at a time.

    Raises:
        RewardError: it can't be started.
    """

    def __init__(self) -> None:
        self._loaded: set[str] = set()
        try:
            self._process = subprocess.Popen(
                # -P keeps the script's folder off the path, so that no file there shadows a module
                [sys.executable, "-P", child_script.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            raise RewardError(f"No process for checks can be started with {sys.executable!r}: {error}.") from error
        self._path = json.dumps(sys.path) + "\n"

    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def load(self, function: str, warm_up: JSONObject | None, seconds: float) -> None:
        """Import a function, unless that has been done, and call it once with the arguments of a warm-up if it has any.

        Raises:
            RewardError: that took too long or failed.
        """
        if function in self._loaded:
            return
        try:
            reply = self.ask(function, warm_up, seconds)
        except CheckKilledError as error:
            raise RewardError(
                f"The process for {function} did not start within {seconds:g} s ({error.reason}).",
                hint=f"It runs {sys.executable!r}.",
            ) from error
        if "error" in reply:
            raise RewardError(f"The process for {function} can't run it: {reply['error']}")
        self._loaded.add(function)

    def ask(self, function: str, arguments: JSONObject | None, seconds: float) -> JSONObject:
        """Call a function in the child and wait for the reply.

        Args:
            function: `module:name`.
            arguments: its keyword arguments; None loads it and does not call it.
            seconds: after which the child is killed.

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
        request = json.dumps({"function": function, "arguments": arguments, "seconds": seconds})
        line = ""
        try:
            # ASCII alone, whatever the response holds: json escapes the rest
            self._process.stdin.write(f"{self._path}{request}\n")
            self._process.stdin.flush()
            self._path = ""
            line = self._process.stdout.readline()
        except OSError:
            pass  # it died while it was written to, which the empty line shows too
        finally:
            timer.cancel()
            timer.join()  # it may be about to kill: only after this is `late` final
        if late.is_set() or not line:
            raise CheckKilledError("time" if late.is_set() else "crash")
        reply: JSONObject = json.loads(line)
        return reply

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not sent is lost anyway
                    pipe.close()


def _close_all(children: list[_Child]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            children.pop().close()


SHARED_CHECKERS = Checkers()
"""Those of all verifiers that have not been given any; their first check starts the first child."""
