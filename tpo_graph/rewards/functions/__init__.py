"""Any Python function as a reward model."""

from tpo_graph.rewards.functions.function_reward import FunctionReward

__all__ = ["FunctionReward"]
