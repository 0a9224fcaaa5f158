"""One part of a combination: a reward model, what it weighs, and the scale that its scores are put on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.concurrency import gather
from tpo_graph.rewards.parts import PartialRewardModel, PartialScores, RunContext, part_scores

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel

__all__ = ["Part", "PartScores", "Scale", "ask_parts", "checked_parts", "close_parts"]

PartScores: TypeAlias = dict[str, PartialScores]
"""Scores by name of the part, each with one value a response."""


class Scale(NamedTuple):
    """A score minus `mean`, divided by `deviation`, is a standard score.

    Attributes:
        mean: the score that becomes 0.
        deviation: the distance from it that becomes 1; above 0.
    """

    mean: float
    deviation: float

    def standard(self, score: float) -> float:
        """The score in deviations from the mean."""
        return (score - self.mean) / self.deviation


RAW = Scale(0.0, 1.0)
"""Leaves a score as it is."""


@dataclass(frozen=True)
class Part:
    """A reward model as part of a combination.

    Attributes:
        model: any reward model, a combination too.
        weight: its share of a weighted sum; negative for what is unwanted.
        scale: `standard` puts scores on the scale that the run's first candidates define; `raw` takes them as they
            are; a `Scale` is one that you measured.
    """

    model: "RewardModel | PartialRewardModel"
    weight: float = 1.0
    scale: Literal["standard", "raw"] | Scale = "standard"

    def __post_init__(self) -> None:
        """Check what can be checked before anything is scored.

        Raises:
            ConfigurationError: a weight or a scale that can't be used, or no reward model.
        """
        if not callable(getattr(self.model, "score", None)):
            raise ConfigurationError(
                f"A part must be a reward model; {self.model!r} has no score(messages, responses)."
            )
        if not math.isfinite(self.weight):
            raise ConfigurationError(f"The weight of a part must be a finite number; it is {self.weight!r}.")
        if isinstance(self.scale, Scale):
            if not (math.isfinite(self.scale.mean) and 0 < self.scale.deviation < math.inf):
                raise ConfigurationError(f"{self.scale} is no scale: the deviation must be above 0, both finite.")
        elif self.scale not in ("standard", "raw"):
            raise ConfigurationError(
                f"Unknown scale {self.scale!r}; allowed: 'standard', 'raw', Scale(mean, deviation)."
            )


def checked_parts(parts: "Mapping[str, Part | RewardModel]", *, what: str = "parts") -> dict[str, Part]:
    """Parts by name; a bare reward model becomes a part of weight 1.

    Raises:
        ConfigurationError: there are none.
    """
    if not parts:
        raise ConfigurationError(f"A combination needs {what}, and none were given.")
    return {name: part if isinstance(part, Part) else Part(part) for name, part in parts.items()}


async def ask_parts(
    parts: Mapping[str, Part],
    messages: "Sequence[BaseMessage]",
    responses: Sequence[str],
    run: RunContext,
) -> PartScores:
    """Ask all parts at the same time; when one fails the others are cancelled.

    Returns:
        Their scores by name. What they have to tell is in the run's report, what the cancelled ones cost too.

    Raises:
        RewardError: names the part that failed.
    """

    async def ask(name: str, part: Part) -> PartialScores:
        told = run.report.for_part()
        try:
            # the run's extremes are the whole's, and mean nothing to a part
            return await part_scores(part.model, messages, responses, replace(run, extremes=None, report=told))
        except RewardError as error:
            raise RewardError(f"Part {name!r}: {error.message}", hint=error.hint) from error
        finally:
            run.report.take_over(told, name)

    return dict(zip(parts, await gather(ask(name, part) for name, part in parts.items()), strict=True))


def close_parts(parts: Mapping[str, Part]) -> None:
    """Close every part that can be closed."""
    for part in parts.values():
        close = getattr(part.model, "close", None)
        if callable(close):
            close()
