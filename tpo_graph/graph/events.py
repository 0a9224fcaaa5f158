"""What a run writes into LangGraph's stream `custom`: candidates as they come, and each step's record."""

from collections.abc import Mapping
from typing import Any

from langgraph.config import get_stream_writer
from langgraph.types import Command, Overwrite

from tpo_graph.types import StreamEvent


def stream_result(name: str, result: object, state: object) -> None:
    """Write what a node drew, scored or selected; where nobody streams `custom`, LangGraph drops it.

    Args:
        name: of the node.
        result: what it returned, in any form that LangGraph takes.
        state: the state that the node was given.
    """
    event: StreamEvent
    key = {"sample": "pending", "update": "pending", "score": "cache", "select": "trajectory"}.get(name)
    for part in result if isinstance(result, list | tuple) else [result]:
        update = part.update if isinstance(part, Command) else part
        if key is None or not isinstance(update, Mapping) or not (new := written(update.get(key))):
            continue
        if name == "select":
            event = {"tpo_step": new[-1]}
        else:
            step = update.get("step", state.get("step", 0) if isinstance(state, Mapping) else 0)
            failures = written(update.get("failures")) or []
            phase: Any = name
            event = {"tpo_candidates": {"phase": phase, "step": step, "candidates": new, "failures": failures}}
        get_stream_writer()(event)


def written(value: Any) -> Any:
    """What a node writes, also where it writes over what was there."""
    return value.value if isinstance(value, Overwrite) else value
