"""Requests at the same time: at most so many, in any number of event loops, and none left running after an error."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tpo_graph.errors import ConfigurationError

__all__ = ["ConcurrencyLimit", "gather"]

T = TypeVar("T")


class ConcurrencyLimit:
    """Lets at most `limit` blocks run at the same time in each event loop.

    A semaphore belongs to the loop in which somebody first waited for it, so there is one for each loop.

    Args:
        limit: 1 or more.

    Raises:
        ConfigurationError: `limit` is below 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(f"max_concurrency={limit}: at least 1 request has to be allowed.")
        self.limit = limit
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a free place and hold it."""
        semaphore = self._semaphores.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.limit))
        async with semaphore:
            yield


async def gather(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:  # Any: a coroutine's send and yield types
    """Run all jobs at the same time; when one fails, cancel the others and raise its error.

    Returns:
        Their results, in order.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as failed:
        # the first is the cause; what failed along with it says the same
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return [task.result() for task in tasks]
