"""Checks first, then a score."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.combinations.part import Part, ask_parts, checked_parts, close_parts
from tpo_graph.rewards.parts import PartialRewardModel, PartialScores, RunContext

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel

__all__ = ["Gate"]


class Gate(PartialRewardModel):
    """Orders responses by how many checks they pass, and those that pass as many by a score.

    The reward is the number of passes plus the score squeezed into (0, 1), which keeps its order whatever its scale. So
    the whole part of the reward is the number of passes, `target_reward` can ask for that, and rewards of all steps
    and of all conversations mean the same.

    A check that does not apply to a response counts as passed. A check or a score that is not finite leaves the
    response without a reward (NaN); where the score does not apply, neither does the gate.

    Example:
        >>> import asyncio
        >>> from tpo_graph.testing import TableReward
        >>> right = TableReward({"a": 0.0, "b": 1.0, "c": 1.0})
        >>> nice = TableReward({"a": 9.0, "b": 0.0, "c": 1.0})
        >>> asyncio.run(Gate({"right": right}, nice).score([], ["a", "b", "c"]))
        [0.95, 1.5, 1.75]

    Args:
        checks: reward models by name, verifiers as a rule.
        score: orders responses that pass as many checks.
        pass_at: a check is passed from this score on.

    Attributes:
        parts: checks and score by name; the score is `score`.

    Raises:
        ConfigurationError: there are no checks, one is named `score` or has a weight or a scale, or `pass_at` is not
            finite.
    """

    def __init__(
        self, checks: "Mapping[str, RewardModel]", score: "RewardModel | PartialRewardModel", *, pass_at: float = 0.5
    ) -> None:
        if "score" in checks:
            raise ConfigurationError("A check can't be named 'score'; that is the name of what orders the rest.")
        if not math.isfinite(pass_at):
            raise ConfigurationError(f"pass_at must be a finite number; it is {pass_at!r}.")
        if any(isinstance(each, Part) for each in (*checks.values(), score)):
            raise ConfigurationError(
                "A gate has no weights and no scales.", hint="Give it the reward models themselves."
            )
        self.parts = {**checked_parts(checks, what="checks"), "score": Part(score)}
        self._pass_at = pass_at

    async def score_part(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,
    ) -> PartialScores:
        """Ask checks and score at the same time; see `PartialRewardModel.score_part`.

        Raises:
            RewardError: names the check that failed, or `score`.
        """
        if not responses:
            return []
        told = await ask_parts(self.parts, messages, responses, run)
        scores = told.pop("score")
        checks = list(zip(*told.values(), strict=True))
        return [self._reward(check, score) for check, score in zip(checks, scores, strict=True)]

    def _reward(self, checks: Sequence[float | None], score: float | None) -> float | None:
        if score is None:
            return None
        if not all(math.isfinite(each) for each in (*checks, score) if each is not None):
            return math.nan
        passes = sum(each is None or each >= self._pass_at for each in checks)
        return passes + squeezed(score)

    def close(self) -> None:
        """Close the parts that can be closed."""
        close_parts(self.parts)


def squeezed(score: float) -> float:
    """A number in (0, 1) that grows with the score, 0.5 for 0.

    Not a sigmoid: that one is 1.0 from 37 on, and scores beyond would all be equal.
    """
    squeezed_score = 0.5 + 0.5 * score / (1.0 + abs(score))
    # so large that rounding reaches the edge; the edge belongs to one pass more or less
    return min(max(squeezed_score, math.ulp(0.5)), 1.0 - math.ulp(0.5))
