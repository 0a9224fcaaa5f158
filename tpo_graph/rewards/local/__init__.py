"""Reward models that run in this process with transformers. Importing this package does not import torch."""

from tpo_graph.rewards.local.classifier import ClassifierReward
from tpo_graph.rewards.local.encoding import Truncation
from tpo_graph.rewards.local.extractions import (
    Extraction,
    LabelLogit,
    LastTokenLogit,
    ProcessReward,
    SingleScore,
    ValueHead,
)

__all__ = [
    "ClassifierReward",
    "Extraction",
    "LabelLogit",
    "LastTokenLogit",
    "ProcessReward",
    "SingleScore",
    "Truncation",
    "ValueHead",
]
