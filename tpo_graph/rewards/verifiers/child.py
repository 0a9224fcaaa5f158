"""The other end of `checkers`: what runs in a child process. Imported there alone."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any

MEMORY_BYTES = 4 * 2**30
"""Address space of a child: an answer such as 9^9^9^9 fills any memory within its time limit."""


def serve() -> None:
    """Answer one line of JSON with one line of JSON until the parent closes the pipe or is gone."""
    # a library that prints must not print into the replies
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Ctrl-C is for the parent, which then closes the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    functions: dict[str, Callable[..., Any]] = {}  # Any: plain JSON, here and below
    reply: dict[str, Any]
    for line in sys.stdin:
        message = json.loads(line)
        _limit_cpu(message["seconds"])
        try:
            if "load" in message:
                functions[message["load"]] = _load(message["load"])
                reply = {"result": None}
            else:
                reply = {"result": functions[message["function"]](**message["arguments"])}
        except Exception as error:  # the parent says whose fault it was
            reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
        _send(replies, reply)


def _send(replies: IO[str], reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _load(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    module = import_module(module_name)
    getattr(module, "warm_up", lambda: None)()
    function: Callable[..., Any] = getattr(module, name)
    return function


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, macOS ignores this one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    """Let the system end this process if it works on when its parent is no longer there to kill it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
