"""Reward models behind a server. Importing this package imports neither torch nor transformers."""

from tpo_graph.rewards.served.reward import ServedReward
from tpo_graph.rewards.served.servers import (
    NIMReward,
    OpenRLHFReward,
    SGLangReward,
    TEIReward,
    VLLMPoolingReward,
    VLLMReward,
    load_nim,
    load_openrlhf,
    load_sglang,
    load_tei,
    load_vllm,
    load_vllm_pooling,
)

__all__ = [
    "NIMReward",
    "OpenRLHFReward",
    "SGLangReward",
    "ServedReward",
    "TEIReward",
    "VLLMPoolingReward",
    "VLLMReward",
    "load_nim",
    "load_openrlhf",
    "load_sglang",
    "load_tei",
    "load_vllm",
    "load_vllm_pooling",
]
