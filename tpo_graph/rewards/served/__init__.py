"""Reward models behind a server. Importing this package imports neither torch nor transformers."""

from tpo_graph.rewards.served.load import (
    load_nim,
    load_openrlhf,
    load_sglang,
    load_tei,
    load_vllm,
    load_vllm_pooling,
)
from tpo_graph.rewards.served.nim import NIMReward
from tpo_graph.rewards.served.openrlhf import OpenRLHFReward
from tpo_graph.rewards.served.reward import ServedReward
from tpo_graph.rewards.served.sglang import SGLangReward
from tpo_graph.rewards.served.tei import TEIReward
from tpo_graph.rewards.served.vllm import VLLMPoolingReward, VLLMReward

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
