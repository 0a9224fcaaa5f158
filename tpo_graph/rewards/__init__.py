"""Reward models: every way to score an answer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpo_graph.rewards.base import DetailedReward, RunContext, Scoring
    from tpo_graph.rewards.combinations import Gate, MeanMinusDeviation, Minimum, Part, Scale, WeightedSum
    from tpo_graph.rewards.functions import FunctionReward
    from tpo_graph.rewards.warnings import WatchedReward

__all__ = [
    "DetailedReward",
    "FunctionReward",
    "Gate",
    "MeanMinusDeviation",
    "Minimum",
    "Part",
    "RunContext",
    "Scale",
    "Scoring",
    "WatchedReward",
    "WeightedSum",
]

# imported when first used: the child processes of verifiers import this package and must start at once
_LAZY = {
    "DetailedReward": "base",
    "FunctionReward": "functions",
    "Gate": "combinations",
    "MeanMinusDeviation": "combinations",
    "Minimum": "combinations",
    "Part": "combinations",
    "RunContext": "base",
    "Scale": "combinations",
    "Scoring": "base",
    "WatchedReward": "warnings",
    "WeightedSum": "combinations",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
