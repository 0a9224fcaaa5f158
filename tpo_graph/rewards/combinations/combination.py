"""What all combinations on one scale have in common."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.combinations.part import RAW, Part, Scale, ask_parts, checked_parts, close_parts
from tpo_graph.rewards.combinations.scale_memory import ScaleMemory, Scales, measured_scales, usable
from tpo_graph.rewards.parts import PartialRewardModel, PartialScores, RunContext
from tpo_graph.rewards.run_key import run_key

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel

__all__ = ["Combination"]


class Combination(PartialRewardModel):
    """Several reward models that become one, by one number from their standard scores.

    Reward models speak on scales of their own, so the scores of each part are first put on a common one: minus their
    mean, divided by their deviation, over the first candidates of the conversation. The scale is then fixed for the
    run, since the cache compares candidates of all steps: a text has the same reward whenever it is scored. It follows
    that such a reward counts deviations from the run's beginning; it can't be compared between conversations, and a
    `target_reward` means "so much better than the first candidates".

    The run is known by its `anchors` (all texts of step 0) where the caller gives them: the scale is then a function of
    these alone, and is measured again when it is not in memory, as when a run is resumed elsewhere. Without them the
    first call for a conversation fixes the scale, as long as it is among the last `remembered_runs`.

    A part that does not apply to a response (None) is left out for it. A part whose score is not finite leaves the
    response without a score (NaN). A part that fails fails the whole, by name; its siblings are cancelled.

    Args:
        parts: reward models by name, or `Part` for one with a weight or a scale.
        remembered_runs: runs whose scales are kept.

    Attributes:
        parts: the parts by name.

    Raises:
        ConfigurationError: there are no parts, or one can't be used.
    """

    def __init__(self, parts: "Mapping[str, Part | RewardModel]", *, remembered_runs: int = 4096) -> None:
        if remembered_runs < 1:
            raise ConfigurationError(f"remembered_runs must be at least 1; it is {remembered_runs!r}.")
        self.parts = checked_parts(parts)
        self._memory = ScaleMemory(remembered_runs)
        self._fixed: dict[str, Scale] = {
            name: part.scale if isinstance(part.scale, Scale) else RAW
            for name, part in self.parts.items()
            if part.scale != "standard"
        }

    @abstractmethod
    def combine(self, scores: Mapping[str, float]) -> float:
        """One number from the scores of the parts that apply; there is at least one, and all are finite."""

    async def score_part(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,
    ) -> PartialScores:
        """Ask all parts and combine; see `PartialRewardModel.score_part`.

        Raises:
            RewardError: a part failed.
        """
        if not responses:
            return []
        key = run_key(messages, run.anchors)
        scales: Scales | None = self._memory.get(key) if len(self._fixed) < len(self.parts) else {}
        # the scale of a run that is not in memory needs the scores of its first candidates
        basis = list(dict.fromkeys(responses if run.anchors is None else run.anchors))
        texts = list(responses) if scales is not None else list(dict.fromkeys([*basis, *responses]))
        scores = await ask_parts(self.parts, messages, texts, run)
        if scales is None:
            kept = [place for place in range(len(basis)) if usable(scores, place)]
            scales = measured_scales(scores, kept)
            if kept:
                scales = self._memory.keep(scales, key)
        scales = {**scales, **self._fixed}
        by_text: dict[str, float | None] = {}
        for place, text in enumerate(texts):
            if text not in by_text:
                told = {name: value for name, values in scores.items() if (value := values[place]) is not None}
                by_text[text] = self._combined(told, scales)
        return [by_text[text] for text in responses]

    def _combined(self, scores: Mapping[str, float], scales: Scales) -> float | None:
        if not scores:
            return None
        if not all(map(math.isfinite, scores.values())):
            return math.nan
        return self.combine({name: scales[name].standard(score) for name, score in scores.items()})

    def close(self) -> None:
        """Close the parts that can be closed."""
        close_parts(self.parts)


def refuse_weights(parts: Mapping[str, Part], kind: str) -> None:
    """Weights mean something in a sum alone.

    Raises:
        ConfigurationError: a part has a weight that would be ignored.
    """
    weighted = [name for name, part in parts.items() if part.weight != 1.0]
    if weighted:
        raise ConfigurationError(
            f"{kind} has no weights, but {', '.join(weighted)} has one.", hint="Weights belong into a weighted sum."
        )
