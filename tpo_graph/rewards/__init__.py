"""Reward models: every way to score an answer."""

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
