"""How often a reward model agrees with people: scores over a preference data set."""

from tpo_graph.rewards.pairs.score import score_pairs

__all__ = ["score_pairs"]
