"""An ensemble of reward models that is trusted where its members agree."""

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.combinations.combination import Combination, refuse_weights

if TYPE_CHECKING:
    from tpo_graph.rewards.base import RewardModel
    from tpo_graph.rewards.combinations.part import Part

__all__ = ["MeanMinusDeviation"]


class MeanMinusDeviation(Combination):
    """Mean of the standard scores minus `penalty` times their deviation (of the population) over the parts.

    A response that exploits one reward model is liked by that one alone; disagreement is what tells.

    Args:
        parts: see `Combination`; without weights. With one part that applies there is no deviation.
        penalty: lambda, 0 or more.
        remembered_runs: see `Combination`.

    Raises:
        ConfigurationError: see `Combination`, a part has a weight, or a penalty that can't be used.
    """

    def __init__(
        self, parts: "Mapping[str, Part | RewardModel]", *, penalty: float = 1.0, remembered_runs: int = 4096
    ) -> None:
        super().__init__(parts, remembered_runs=remembered_runs)
        refuse_weights(self.parts, "MeanMinusDeviation")
        if not 0 <= penalty < math.inf:
            raise ConfigurationError(f"The penalty must be a number of 0 or more; it is {penalty!r}.")
        self._penalty = penalty

    def combine(self, scores: Mapping[str, float]) -> float:
        """See `Combination.combine`."""
        values = list(scores.values())
        return statistics.fmean(values) - self._penalty * statistics.pstdev(values)
