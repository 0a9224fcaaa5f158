"""Chat models as reward models: one that grades each response, one that compares them in pairs."""

from tpo_graph.rewards.judge.pairwise import PairwiseJudgeReward, load_pairwise_judge
from tpo_graph.rewards.judge.pointwise import JudgeReward, load_judge
from tpo_graph.rewards.judge.prompts import JudgePrompt

__all__ = ["JudgePrompt", "JudgeReward", "PairwiseJudgeReward", "load_judge", "load_pairwise_judge"]
