"""Reward models behind a server. Importing this package imports neither torch nor transformers."""

from tpo_graph.rewards.served.reward import ServedReward
from tpo_graph.rewards.served.servers import (
    NIMReward,
    OpenRLHFReward,
    SGLangReward,
    TEIReward,
    VLLMPoolingReward,
    VLLMReward,
)

__all__ = [
    "NIMReward",
    "OpenRLHFReward",
    "SGLangReward",
    "ServedReward",
    "TEIReward",
    "VLLMPoolingReward",
    "VLLMReward",
]
