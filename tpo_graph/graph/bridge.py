"""One async body for each node, callable from sync code too.

`invoke` and `stream` run nodes in plain threads. A new event loop for every call would break pooled HTTP
connections, so all sync calls of a process share one loop in a daemon thread (a second one when a node itself
calls a graph synchronously, and so on).
"""

import asyncio
import contextvars
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_store, get_stream_writer
from langgraph.runtime import get_runtime

from tpo_graph.types import Node

T = TypeVar("T")
NodeBody: TypeAlias = Callable[..., Awaitable[Any]]

_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []
# which of the loops the code runs on; a context variable, because LangGraph copies the context into its threads
_level: contextvars.ContextVar[int] = contextvars.ContextVar("tpo_graph_loop_level", default=-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loops.clear)  # a forked child has none of its parent's threads


class _EndOfCaller(Exception):  # noqa: N818  # not an error: it carries one to the waiting thread
    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the shared loop, in the caller's context, and wait for its result.

    An exception in the waiting thread (Ctrl-C) cancels the coroutine.
    """
    # a loop that nothing up the call chain is waiting on
    level = _level.get() + 1
    with _lock:
        if level == len(_loops):
            _loops.append(_new_event_loop())
            thread = threading.Thread(target=_loops[level].run_forever, name=f"tpo-graph-loop-{level}", daemon=True)
            thread.start()
        loop = _loops[level]
    context = contextvars.copy_context()
    context.run(_level.set, level)
    outcome: Future[T] = Future()

    async def guarded() -> T:
        try:
            return await coroutine
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio would end the shared loop with these; they belong to the caller
            raise _EndOfCaller(error) from error

    def start() -> None:
        task = loop.create_task(guarded(), context=context)
        task.add_done_callback(finish)
        outcome.task = task  # type: ignore[attr-defined]  # so that the waiting side can cancel it

    def finish(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            outcome.cancel()
        elif (error := task.exception()) is not None:
            outcome.set_exception(error.error if isinstance(error, _EndOfCaller) else error)
        else:
            outcome.set_result(task.result())

    loop.call_soon_threadsafe(start)
    try:
        return outcome.result()
    except BaseException:
        task = getattr(outcome, "task", None)
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)
        raise


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop where that is installed: it takes a tenth less CPU."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class AsyncNode(Runnable[Any, Any]):
    """A node made of an async function `(state, runtime) -> partial state`, which sync runs can call as well.

    `await node(state, runtime)` is the function itself, for a node that is used alone. The function may take what
    LangGraph gives to a node, by name: `runtime`, `config`, `writer`, `store`.
    """

    def __init__(self, body: NodeBody, name: str = "") -> None:
        self.body = body
        self.name = name or getattr(body, "__name__", None)
        self._extras = [name for name in inspect.signature(body).parameters if name in _EXTRAS]

    async def __call__(self, *arguments: Any, **extras: Any) -> Any:
        """Call the function with exactly these arguments."""
        return await self.body(*arguments, **extras)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        """Run the function on the current loop."""
        extras = {name: config if name == "config" else _EXTRAS[name]() for name in self._extras}
        return await self.body(input, **extras)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        """Run the same function on the shared loop."""
        return run_coroutine(self.ainvoke(input, config))


def as_runnable(node: Node, name: str) -> Runnable[Any, Any]:
    """A node in the one form in which another node can call it: `await runnable.ainvoke(state, config)`.

    Args:
        node: a function of `(state, runtime)`, sync or async, an object that is called like one, or a Runnable.
        name: of the node.
    """
    if isinstance(node, Runnable):
        return node
    if is_async(node):
        return AsyncNode(node, name)

    @functools.wraps(node)
    async def in_thread(*arguments: Any, **extras: Any) -> Any:
        return await asyncio.to_thread(node, *arguments, **extras)

    return AsyncNode(in_thread, name)


def is_async(node: object) -> bool:
    """Whether a node is an async function, or an object that is called like one."""
    return inspect.iscoroutinefunction(node) or inspect.iscoroutinefunction(type(node).__call__)


_EXTRAS: Mapping[str, Callable[[], Any]] = {
    "runtime": get_runtime,
    "config": lambda: None,
    "writer": get_stream_writer,
    "store": get_store,
}
