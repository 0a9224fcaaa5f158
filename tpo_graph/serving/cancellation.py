"""Work that stops when nobody waits for its result any more."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

__all__ = ["Signal", "Stopped", "disconnected", "unless"]

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  # it is how an end is told, not a failure
    """What was waited for happened before the work was done."""


async def unless(happens: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T]) -> T:  # Any: what they are sent
    """The result of `work`, which is cancelled as soon as `happens` is over.

    Raises:
        Stopped: `happens` was over first.
        Exception: what either of them raises.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(happens)
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            waiting.result()
            raise Stopped
        return working.result()
    finally:
        waiting.cancel()
        working.cancel()
        # the work has to end before its slot is given to another
        await asyncio.gather(working, waiting, return_exceptions=True)


class Signal:
    """An event that any event loop can wait for, and any thread can set; one of asyncio's belongs to one loop."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Let it happen, for good."""
        self._is_set = True
        for loop, event in tuple(self._waiting):
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
                loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """Wait until it happens."""
        mine = asyncio.get_running_loop(), asyncio.Event()
        self._waiting.add(mine)
        try:
            if not self._is_set:
                await mine[1].wait()
        finally:
            self._waiting.discard(mine)


async def disconnected(receive: Receive) -> None:
    """Wait until the client has left. The body of its request has to be read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
