"""The sum of several rewards, each with a weight."""

from collections.abc import Mapping

from tpo_graph.rewards.combinations.combination import Combination

__all__ = ["WeightedSum"]


class WeightedSum(Combination):
    """Weight times standard score, summed over the parts.

    A part that does not apply to a response adds nothing, which on the common scale is its mean.

    Example:
        >>> import asyncio
        >>> from tpo_graph.rewards.combinations import Part
        >>> from tpo_graph.testing import TableReward
        >>> kind, brief = TableReward({"a": 3.0, "b": 1.0}), TableReward({"a": 10.0, "b": 30.0})
        >>> reward = WeightedSum({"kind": kind, "brief": Part(brief, weight=0.5)})
        >>> asyncio.run(reward.score([], ["a", "b"]))
        [0.5, -0.5]

    Args:
        parts: see `Combination`, as for all else.
    """

    def combine(self, scores: Mapping[str, float]) -> float:
        """See `Combination.combine`."""
        return sum(self.parts[name].weight * score for name, score in scores.items())
