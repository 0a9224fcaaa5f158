"""Work that stops when nobody waits for its result any more."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

__all__ = ["Stopped", "disconnected", "unless"]

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  # it is how an end is told, not a failure
    """What was waited for happened before the work was done."""


async def unless(happens: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T]) -> T:  # Any: what they are sent
    """The result of `work`, which is cancelled as soon as `happens` is over.

    Raises:
        Stopped: `happens` was over first.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(happens)
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Stopped
        return working.result()
    finally:
        waiting.cancel()
        working.cancel()
        # the work has to end before its slot is given to another
        await asyncio.gather(working, waiting, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Wait until the client has left. The body of its request has to be read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
