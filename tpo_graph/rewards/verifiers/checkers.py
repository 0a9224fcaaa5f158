"""Processes that run checks which may never end, and that can be killed.

A regular expression or a symbolic comparison can take longer than anyone waits, hold Python's lock while it does, and
can't be stopped in a thread. So checks run in child processes. A child is kept and used again, since starting one
takes half a second or more; one that is over the time limit is killed, and the next check gets a new one.
"""

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from tpo_graph.errors import RewardError
from tpo_graph.rewards.verifiers.child_process import CheckKilledError, ChildProcess


class Checkers:
    """A few child processes; for any number of event loops and threads at once.

    Args:
        processes: children at most, one check each at a time; None takes one a core, and not more than four.
        start_seconds: how long a child may take to start and to import what a check needs.
    """

    def __init__(self, *, processes: int | None = None, start_seconds: float = 60.0) -> None:
        self._processes = processes or min(4, os.cpu_count() or 1)
        self._start_seconds = start_seconds
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        # its own threads: the event loop's are few, and a hanging check would keep them from others
        self._threads = ThreadPoolExecutor(self._processes, thread_name_prefix="tpo-graph-checker")
        self._idle: list[ChildProcess] = []
        self._end = weakref.finalize(self, _close_all, self._idle)

    # Any: what a check takes and returns is plain JSON
    async def check(self, function: str, arguments: Mapping[str, Any], *, seconds: float) -> Any:
        """Run one check.

        Args:
            function: `module:name` of a function that takes and returns what JSON can hold. If its module has a
                `warm_up` function, that runs first in a new child, outside of the time limit.
            arguments: keyword arguments.
            seconds: the time limit.

        Raises:
            CheckKilledError: it took too long, or took its process with it.
            RewardError: the function raised, or no child can be started.
        """
        with self._lock:
            if self._pid != os.getpid():
                # a forked process has the pipes of its parent's children and none of its threads
                self._end.detach()
                self._begin()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, function, dict(arguments), seconds)

    def _run(self, function: str, arguments: dict[str, Any], seconds: float) -> Any:
        child = self._take()
        try:
            if function not in child.loaded:
                self._load(child, function)
            reply = child.ask({"function": function, "arguments": arguments, "seconds": seconds}, seconds)
        except BaseException:
            child.close()
            raise
        self._idle.append(child)
        if "error" in reply:
            raise RewardError(f"The check {function} failed: {reply['error']}")
        return reply["result"]

    def _take(self) -> ChildProcess:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                child = self._idle.pop()
                if child.alive():
                    return child
                child.close()
        return ChildProcess()

    def _load(self, child: ChildProcess, function: str) -> None:
        try:
            reply = child.ask({"load": function, "seconds": self._start_seconds}, self._start_seconds)
        except CheckKilledError as error:
            raise RewardError(
                f"The process for {function} did not start within {self._start_seconds:g} s ({error.reason}).",
                hint=f"It runs {sys.executable!r}.",
            ) from error
        if "error" in reply:
            raise RewardError(f"The process for {function} can't run it: {reply['error']}")
        child.loaded.add(function)

    def close(self) -> None:
        """End the children that have nothing to do; a later check starts new ones."""
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()


def _close_all(children: list[ChildProcess]) -> None:
    for child in children:
        child.close()


@cache
def shared_checkers() -> Checkers:
    """The processes that all verifiers share which were not given their own."""
    return Checkers()
