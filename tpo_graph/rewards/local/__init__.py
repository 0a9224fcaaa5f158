"""Reward models that run in this process with transformers. Importing this package does not import torch."""

from tpo_graph.rewards.local.classifier import ClassifierReward
from tpo_graph.rewards.local.counts import ScoreCounts
from tpo_graph.rewards.local.extractions import (
    Extraction,
    LabelLogit,
    LastTokenLogit,
    ProcessReward,
    SingleScore,
    ValueHead,
)
from tpo_graph.rewards.local.truncation import Truncation

__all__ = [
    "ClassifierReward",
    "Extraction",
    "LabelLogit",
    "LastTokenLogit",
    "ProcessReward",
    "ScoreCounts",
    "SingleScore",
    "Truncation",
    "ValueHead",
]
