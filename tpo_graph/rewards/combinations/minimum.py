"""The lowest of several rewards."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tpo_graph.rewards.combinations.combination import Combination, refuse_weights

if TYPE_CHECKING:
    from tpo_graph.rewards.base import RewardModel
    from tpo_graph.rewards.combinations.part import Part

__all__ = ["Minimum"]


class Minimum(Combination):
    """The lowest standard score of the parts that apply: no part can make up for another.

    Args:
        parts: see `Combination`; without weights.
        remembered_runs: see there.

    Raises:
        ConfigurationError: see `Combination`, or a part has a weight.
    """

    def __init__(self, parts: "Mapping[str, Part | RewardModel]", *, remembered_runs: int = 4096) -> None:
        super().__init__(parts, remembered_runs=remembered_runs)
        refuse_weights(self.parts, "Minimum")

    def combine(self, scores: Mapping[str, float]) -> float:
        """See `Combination.combine`."""
        return min(scores.values())
