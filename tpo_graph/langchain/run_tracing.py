"""Puts what a chat model does inside under its own run in a trace, however the model is called.

LangChain gives a chat model its run manager for `invoke`, but not for `stream`, nor for an `invoke` that it turns
into a stream. Callbacks for the inner run are noted here on the way in, and read where LangChain does not pass them.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackManager, CallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, set_config_context
from langchain_core.utils.uuid import uuid7

__all__ = ["InnerCallbacks", "inner_callbacks", "noted", "run_under", "with_own_run"]

InnerCallbacks: TypeAlias = BaseCallbackManager | None
"""What the inner run gets as its callbacks: a manager whose parent is the chat model's run."""

Manager = TypeVar("Manager", CallbackManager, AsyncCallbackManager)

T = TypeVar("T")

_noted: ContextVar[InnerCallbacks] = ContextVar("tpo_graph_inner_callbacks", default=None)


@contextmanager
def noted(callbacks: InnerCallbacks) -> Iterator[None]:
    """Note the inner callbacks for calls within the block."""
    token = _noted.set(callbacks)
    try:
        yield
    finally:
        _noted.reset(token)


def inner_callbacks(run_manager: BaseRunManager | None) -> InnerCallbacks:
    """Callbacks for the inner run: children of `run_manager`, or those that were noted where LangChain passes none."""
    if run_manager is None:
        return _noted.get()
    # chains and tools have `get_child` for this; the run of a chat model has not
    child = CallbackManager(handlers=[], parent_run_id=run_manager.run_id)
    child.set_handlers(run_manager.inheritable_handlers)
    child.add_tags(run_manager.inheritable_tags)
    child.add_metadata(run_manager.inheritable_metadata)
    return child


def with_own_run(config: RunnableConfig | None, kind: type[Manager]) -> tuple[RunnableConfig, Manager]:
    """A config that fixes the id of the run to come, and callbacks that are that run's children."""
    config = ensure_config(config)
    manager = kind.configure(
        config.get("callbacks"),
        inheritable_tags=config.get("tags"),
        inheritable_metadata=config.get("metadata"),
    )
    run_id = config.get("run_id") or uuid7()
    child = manager.copy()
    child.parent_run_id = run_id
    return {**config, "callbacks": manager, "run_id": run_id}, child


async def run_under(
    callbacks: InnerCallbacks, coroutine: Coroutine[Any, Any, T]
) -> T:  # Any: what it yields and is sent
    """Run a coroutine with these callbacks as those of its surroundings.

    LangGraph merges the callbacks that a graph is given with those around the call, whose parent then wins.
    """
    around = ensure_config()
    if callbacks is not None:
        around["callbacks"] = callbacks
    with set_config_context(around) as context:
        return await asyncio.create_task(coroutine, context=context)
