"""What each node has to return; a node that does not is named, with its keys, before the run goes on without them."""

import difflib
import functools
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.pregel.protocol import PregelProtocol
from langgraph.types import Command, Overwrite

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.bridge import as_runnable, is_async
from tpo_graph.graph.events import stream_result
from tpo_graph.types import Node

_OWED: Mapping[str, Collection[str]] = {
    "sample": ("pending", "step"),
    "score": ("cache",),
    "select": ("best", "worst", "stop_reason"),
    "loss": ("loss",),
    "gradient": ("gradient",),
    "update": ("pending", "step"),
}
# what the other nodes read of a candidate
_CANDIDATE: Mapping[str, type] = {"id": str, "step": int, "text": str, "truncated": bool}


def checked_node(name: str, node: Node, known: Collection[str]) -> Node:
    """The node, whose results are checked, and streamed as events.

    A compiled graph stays as it is: LangGraph looks for it among the nodes.

    Args:
        name: of the node.
        node: the node itself.
        known: the keys of the state.
    """
    if isinstance(node, PregelProtocol):
        return node

    def check(result: object, state: object) -> None:
        check_result(name, result, state, known=known)
        stream_result(name, result, state)

    if isinstance(node, Runnable) or is_async(node):
        return _CheckedNode(as_runnable(node, name), check, name)

    @functools.wraps(node)
    def checked(state: Any, *arguments: Any, **extras: Any) -> Any:
        result = node(state, *arguments, **extras)
        check(result, state)
        return result

    return checked


class _CheckedNode(Runnable[Any, Any]):
    def __init__(self, node: Runnable[Any, Any], check: Callable[[Any, Any], None], name: str) -> None:
        self.node, self.check, self.name = node, check, name

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        result = self.node.invoke(input, config)
        self.check(result, input)
        return result

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        result = await self.node.ainvoke(input, config)
        self.check(result, input)
        return result


def check_result(name: str, result: object, state: object, *, known: Collection[str]) -> None:
    """Refuse what a node returned when it lacks what the node owes, or has a key that the state does not have.

    Args:
        name: of the node.
        result: what it returned, in any form that LangGraph takes.
        state: the state that the node was given.
        known: the keys of the state.

    Raises:
        ConfigurationError: it names the keys, or the value that is none of its kind.
    """
    written: dict[str, Any] = {}
    for part in result if isinstance(result, list | tuple) else [result]:
        if isinstance(part, Command) and (part.goto or part.graph):
            return  # it leaves the loop's own way, and owes nothing to the nodes on it
        update = part.update if isinstance(part, Command) else part
        if not isinstance(update, Mapping | None):
            return  # LangGraph takes objects with annotations, too
        written |= update or {}
    keys = written.keys()
    ends = name == "select" and bool(written.get("stop_reason"))
    owed = _owed(name, state if isinstance(state, Mapping) else {}) | ({"answer"} if ends else set())
    lacking, unknown = owed - keys, keys - set(known)
    if not lacking and not unknown:
        _check_values(name, written)
        return
    problem = f" and not {_quoted(lacking)}" if lacking else ""
    problem += f"; the state has no {_quoted(unknown)}" if unknown else ""
    close = {near for key in unknown for near in difflib.get_close_matches(key, lacking or known, 1)}
    raise ConfigurationError(
        f"The node {name!r} returned {_quoted(keys) or 'nothing'}{problem}.",
        hint=f"Is {_quoted(close)} meant?" if close else f"It must return {_quoted(owed)}." if owed else "",
    )


def _check_values(name: str, written: Mapping[str, Any]) -> None:
    """Refuse texts that are none, and candidates that lack what the other nodes read."""
    for key in ("loss", "gradient", "answer"):
        if not isinstance(written.get(key, ""), str | Overwrite):
            raise ConfigurationError(f"The node {name!r} returned {key}={written[key]!r}, which is not a text.")
    for key, needed in (("pending", _CANDIDATE), ("cache", {**_CANDIDATE, "reward": Real})):
        values = written.get(key, ())
        for value in () if isinstance(values, Overwrite) else values:
            fields = value if isinstance(value, Mapping) else {}
            wrong = [field for field, kind in needed.items() if not isinstance(fields.get(field), kind)]
            if wrong:
                raise ConfigurationError(
                    f"The node {name!r} returned a candidate in {key!r} without a fitting {_quoted(wrong)}: {value!r}.",
                    hint=f"A candidate there has {_quoted(needed)}.",
                )


def _owed(name: str, state: Mapping[str, Any]) -> set[str]:
    """What a node must return, but for what the state has already, and for rewards of no candidates."""
    if (name in ("loss", "gradient") and state.get(name)) or (name == "score" and not state.get("pending", True)):
        return set()
    return {*_OWED.get(name, ())}


def _quoted(keys: Collection[str]) -> str:
    return ", ".join(repr(key) for key in sorted(map(str, keys)))
