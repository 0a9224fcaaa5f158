"""Where the graph goes after select."""

from typing import Literal

from tpo_graph.graph.state import TPOState

__all__ = ["route_after_select"]


def route_after_select(state: TPOState) -> Literal["loss", "__end__"]:
    """To the end when `select` has written a stop reason, else into the next step."""
    return "__end__" if state.get("stop_reason") else "loss"
