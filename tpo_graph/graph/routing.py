"""Where the graph goes after select."""

from typing import Literal

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.state import TPOState

__all__ = ["route_after_select"]


def route_after_select(state: TPOState) -> Literal["loss", "__end__"]:
    """To the end when `select` has written a stop reason, else into the next step.

    Raises:
        ConfigurationError: an `update` of one's own does not count steps, so that the run would not end.
    """
    # twice may be a person's fork of the thread
    steps = [record["step"] for record in state.get("trajectory", [])[-3:]]
    if not state.get("stop_reason") and len(steps) == 3 and len(set(steps)) == 1:
        raise ConfigurationError(
            f"Step {steps[-1]} comes again and again: the node that stands in for `update` does not write `step`.",
            hint='It must return {"step": state["step"] + 1, "pending": [...]}.',
        )
    return "__end__" if state.get("stop_reason") else "loss"
