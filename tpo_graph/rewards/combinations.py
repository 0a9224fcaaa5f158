"""Reward models made of several: a weighted sum, the lowest, the mean less disagreement, and checks before a score."""

import asyncio
import math
import statistics
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, TypeAlias, final

from langchain_core.messages import BaseMessage

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph.accounting import no_usage, plus
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import (
    DetailedReward,
    RewardModel,
    RunContext,
    Scoring,
    charge_errors,
    close_reward,
    gather,
    highest_reward,
    run_key,
    score_responses,
    usage_of,
)
from tpo_graph.rewards.functions import as_reward_model
from tpo_graph.rewards.warnings import WatchedReward

PartScores: TypeAlias = dict[str, float]
"""The scores of one response by name of the part; parts that do not apply to it are missing."""


class Scale(NamedTuple):
    """A score minus `mean`, divided by `deviation`, is a standard score.

    Attributes:
        mean: the score that becomes 0.
        deviation: the distance from it that becomes 1; above 0.
    """

    mean: float
    deviation: float


_RAW = Scale(0.0, 1.0)
"""Leaves a score as it is."""

_NOISE = 1e-6
"""A deviation below this share of the mean is what rounding leaves of equal scores."""


@dataclass(frozen=True)
class Part:
    """A reward model as part of a combination.

    Attributes:
        model: any reward model, a combination or a function too.
        weight: its share of a weighted sum; negative for what is unwanted.
        scale: `standard` puts scores on the scale that the run's first candidates define; `raw` takes them as they
            are; a `Scale` is one that you measured.

    Raises:
        ConfigurationError: the model is not a reward model, or is watched; or weight or scale can't be used.
    """

    model: RewardModel
    weight: float = 1.0
    scale: Literal["standard", "raw"] | Scale = "standard"

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_reward_model(self.model))
        if isinstance(self.model, WatchedReward):
            raise ConfigurationError(
                "A part of a combination can't be watched: its rewards are not the run's.",
                hint="Watch the whole: WatchedReward(combination, second).",
            )
        if not math.isfinite(self.weight):
            raise ConfigurationError(f"The weight of a part must be a finite number; it is {self.weight!r}.")
        if isinstance(self.scale, Scale):
            if not (math.isfinite(self.scale.mean) and 0 < self.scale.deviation < math.inf):
                raise ConfigurationError(f"{self.scale} can't be used: the deviation must be above 0, both finite.")
        elif self.scale not in ("standard", "raw"):
            raise ConfigurationError(
                f"Unknown scale {self.scale!r}; allowed: 'standard', 'raw', Scale(mean, deviation)."
            )


class RewardOfParts(DetailedReward):
    """A reward model made of several, which are asked at the same time.

    A part that fails fails the whole, by its name; the other parts are then cancelled.

    Args:
        parts: reward models by name, or `Part` for one with a weight or a scale.

    Attributes:
        parts: the parts by name.
    """

    def __init__(self, parts: Mapping[str, Part | RewardModel]) -> None:
        self.parts = {name: part if isinstance(part, Part) else Part(part) for name, part in parts.items()}

    @final
    def close(self) -> None:
        """Close the parts that can be closed."""
        for part in self.parts.values():
            close_reward(part.model)

    async def _ask(
        self, messages: Sequence[BaseMessage], texts: Sequence[str], run: RunContext
    ) -> tuple[list[PartScores], Scoring]:
        """Ask all parts.

        Returns:
            For each text the scores of the parts that apply to it; and what the parts reported, without scores.

        Raises:
            RewardError: a part failed; what all parts cost, those that were cancelled too, is in its `usage`.
        """
        usage = no_usage()
        truncated: set[str] = set()
        reasons: dict[str, str] = {}

        async def ask(name: str, model: RewardModel) -> Sequence[float | None]:
            try:
                # the run's extremes are the whole's, and mean nothing to a part
                scoring = await score_responses(model, messages, texts, replace(run, extremes=None))
            except (RewardError, asyncio.CancelledError) as error:
                usage.update(plus(usage, usage_of(error)))
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise RewardError(f"Part {name!r}: {error.message}", hint=error.hint) from error
            usage.update(plus(usage, scoring.usage))
            truncated.update(scoring.truncated)
            for text, reason in scoring.reasons.items():
                reasons.setdefault(text, f"Part {name!r}: {reason}")
            return scoring.scores

        with charge_errors(usage):
            columns = await gather(ask(name, part.model) for name, part in self.parts.items())
        rows = [
            {name: score for name, score in zip(self.parts, row, strict=True) if score is not None}
            for row in zip(*columns, strict=True)
        ]
        return rows, Scoring([], usage=usage, truncated=frozenset(truncated), reasons=reasons)


class Combination(RewardOfParts):
    """Several reward models that become one, by one number from their standard scores.

    Reward models score on scales of their own, so the scores of each part are first put on a common one: minus their
    mean, divided by their deviation, over the first candidates of the conversation. The scale is then fixed for the
    run, since the cache compares candidates of all steps: a text has the same reward whenever it is scored. It follows
    that such a reward counts deviations from the run's beginning; it can't be compared between conversations, and a
    `target_reward` means "so much better than the first candidates".

    The run is recognised by its `anchors` (all texts of step 0) where the caller gives them: the scale is then a
    function of these alone, and is measured again when it is no longer kept, as when a run is resumed elsewhere.
    Without them the first call for a conversation fixes the scale, as long as it is among the last `remembered_runs`.

    A part that does not apply to a response (None) is left out for it. A part whose score is not finite leaves the
    response without a score (NaN).

    Args:
        parts: reward models by name, or `Part` for one with a weight or a scale.
        remembered_runs: runs whose scales are kept.

    Raises:
        ConfigurationError: there are no parts, or one can't be used.
    """

    takes_weights: ClassVar[bool] = False
    """Whether the weights of parts mean something."""

    def __init__(self, parts: Mapping[str, Part | RewardModel], *, remembered_runs: int = 4096) -> None:
        super().__init__(parts)
        if not parts:
            raise ConfigurationError("A combination needs parts, and there are none.")
        if remembered_runs < 1:
            raise ConfigurationError(f"remembered_runs must be at least 1; it is {remembered_runs!r}.")
        weighted = [name for name, part in self.parts.items() if part.weight != 1.0]
        if weighted and not self.takes_weights:
            raise ConfigurationError(
                f"{type(self).__name__} has no weights, but {', '.join(weighted)} has one.",
                hint="Weights belong into a weighted sum.",
            )
        self._scales: BoundedCache[bytes, dict[str, Scale]] = BoundedCache(remembered_runs)
        self._fixed_scales = {
            name: part.scale if isinstance(part.scale, Scale) else _RAW
            for name, part in self.parts.items()
            if part.scale != "standard"
        }

    @abstractmethod
    def combine(self, scores: Mapping[str, float]) -> float:
        """One number from the standard scores of the parts that apply; there is at least one, and all are finite.

        Args:
            scores: standard scores by name of the part.
        """

    def _highest_scores(self) -> dict[str, float]:
        """The highest standard score of each part that knows its highest reward and whose scale is fixed."""
        highest = {name: highest_reward(self.parts[name].model) for name in self._fixed_scales}
        return _standard_scores({name: h for name, h in highest.items() if h is not None}, self._fixed_scales)

    def _common_highest(self) -> float | None:
        """What `combine` makes of the highest standard scores, where they are known and the same for all parts."""
        highest = self._highest_scores()
        return self.combine(highest) if len(highest) == len(self.parts) and len(set(highest.values())) == 1 else None

    async def score_in_detail(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> Scoring:
        """Ask all parts, and combine their standard scores.

        Args:
            messages: the conversation.
            responses: texts to score, at least one.
            run: the run that they are scored for; its anchors define the scale.

        Raises:
            RewardError: a part failed; its `usage` is what all of them cost.
        """
        key = run_key(messages, run.anchors)
        scales = self._scales.get(key) if len(self._fixed_scales) < len(self.parts) else {}
        # the scale of a run that is not kept needs the scores of its first candidates
        first = list(dict.fromkeys(responses if run.anchors is None else run.anchors))
        texts = list(dict.fromkeys(responses if scales is not None else [*first, *responses]))
        rows, scoring = await self._ask(messages, texts, run)
        by_text = dict(zip(texts, rows, strict=True))
        if scales is None:
            usable = [by_text[text] for text in first if all(map(math.isfinite, by_text[text].values()))]
            scales = {
                name: _measured_scale([scores[name] for scores in usable if name in scores]) for name in self.parts
            }
            if usable:
                # another call about the same run may have been faster
                scales = self._scales.setdefault(key, scales)
        scales = {**scales, **self._fixed_scales}
        rewards = {text: self._reward(scores, scales) for text, scores in by_text.items()}
        return replace(scoring, scores=[rewards[text] for text in responses])

    def _reward(self, scores: PartScores, scales: Mapping[str, Scale]) -> float | None:
        if not scores:
            return None
        if not all(map(math.isfinite, scores.values())):
            return math.nan
        return self.combine(_standard_scores(scores, scales))


def _standard_scores(scores: Mapping[str, float], scales: Mapping[str, Scale]) -> PartScores:
    return {name: (score - scales[name].mean) / scales[name].deviation for name, score in scores.items()}


def _measured_scale(scores: Sequence[float]) -> Scale:
    """Mean and deviation of a part's scores.

    Scores that are all equal have no deviation: they get 1, so that a later difference counts as it is. Where the part
    applied to nothing, later scores are taken as they are.
    """
    if not scores:
        return _RAW
    mean = statistics.fmean(scores)
    deviation = statistics.pstdev(scores, mean)
    return Scale(mean, deviation if deviation > _NOISE * abs(mean) else 1.0)


class WeightedSum(Combination):
    """Weight times standard score, summed over the parts.

    A part that does not apply to a response adds nothing, which on the common scale is its mean.

    Examples:
        >>> import asyncio
        >>> from tpo_graph.testing import TableReward
        >>> kind, brief = TableReward({"a": 3.0, "b": 1.0}), TableReward({"a": 10.0, "b": 30.0})
        >>> reward = WeightedSum({"kind": kind, "brief": Part(brief, weight=0.5)})
        >>> asyncio.run(reward.score([], ["a", "b"]))
        [0.5, -0.5]

    Args:
        parts: reward models by name, or `Part` for one with a weight or a scale.
        remembered_runs: runs whose scales are kept.

    Raises:
        ConfigurationError: there are no parts, or one can't be used.
    """

    takes_weights = True

    @property
    def highest_reward(self) -> float | None:
        """All parts at their highest; None where one is not known, or where a part would do better not to apply."""
        highest = self._highest_scores()
        is_bound = len(highest) == len(self.parts) and all(
            part.weight >= 0 and highest[name] >= 0 for name, part in self.parts.items()
        )
        return self.combine(highest) if is_bound else None

    def combine(self, scores: Mapping[str, float]) -> float:
        """The weighted sum of the standard scores."""
        return sum(self.parts[name].weight * score for name, score in scores.items())


class Minimum(Combination):
    """The lowest standard score of the parts that apply: no part can make up for another.

    Args:
        parts: reward models by name, or `Part` for one with a scale.
        remembered_runs: runs whose scales are kept.

    Raises:
        ConfigurationError: there are no parts, or one can't be used or has a weight.
    """

    @property
    def highest_reward(self) -> float | None:
        """That of all parts, where it is the same for all: one that is lower might not apply."""
        return self._common_highest()

    def combine(self, scores: Mapping[str, float]) -> float:
        """The lowest of the standard scores."""
        return min(scores.values())


class MeanMinusDeviation(Combination):
    """Mean of the standard scores minus `penalty` times their deviation (of the population) over the parts.

    A response that exploits one reward model is liked by that one alone; disagreement gives it away.

    Args:
        parts: reward models by name, or `Part` for one with a scale. With one part that applies there is no deviation.
        penalty: lambda, 0 or more.
        remembered_runs: runs whose scales are kept.

    Raises:
        ConfigurationError: there are no parts, one can't be used or has a weight, or the penalty is below 0.
    """

    def __init__(
        self, parts: Mapping[str, Part | RewardModel], *, penalty: float = 1.0, remembered_runs: int = 4096
    ) -> None:
        super().__init__(parts, remembered_runs=remembered_runs)
        if not 0 <= penalty < math.inf:
            raise ConfigurationError(f"The penalty must be a number of 0 or more; it is {penalty!r}.")
        self._penalty = penalty

    @property
    def highest_reward(self) -> float | None:
        """That of all parts, where it is the same for all: others may not apply, and disagree at their highest."""
        return self._common_highest()

    def combine(self, scores: Mapping[str, float]) -> float:
        """The mean of the standard scores, less the penalty for disagreement."""
        values = list(scores.values())
        return statistics.fmean(values) - self._penalty * statistics.pstdev(values)


class Gate(RewardOfParts):
    """Orders responses by how many checks they pass, and those that pass as many by a score.

    The reward is the number of passes plus the score squeezed into (0, 1), which keeps its order whatever its scale. So
    the whole part of the reward is the number of passes, `target_reward` can ask for that, and rewards of all steps
    and of all conversations mean the same.

    A check that does not apply to a response counts as passed. A check or a score that is not finite leaves the
    response without a reward (NaN); where the score does not apply, neither does the gate.

    Examples:
        >>> import asyncio
        >>> from tpo_graph.testing import TableReward
        >>> right = TableReward({"a": 0.0, "b": 1.0, "c": 1.0})
        >>> nice = TableReward({"a": 9.0, "b": 0.0, "c": 1.0})
        >>> asyncio.run(Gate({"right": right}, nice).score([], ["a", "b", "c"]))
        [0.95, 1.5, 1.75]

    Args:
        checks: reward models by name, verifiers as a rule.
        score: orders responses that pass as many checks; among `parts` it is named `score`.
        pass_at: a check is passed from this score on.

    Raises:
        ConfigurationError: there are no checks, one is named `score`, one has a weight or a scale, or `pass_at` is not
            finite.
    """

    def __init__(self, checks: Mapping[str, RewardModel], score: RewardModel, *, pass_at: float = 0.5) -> None:
        if not checks:
            raise ConfigurationError("A gate needs checks, and there are none.")
        if "score" in checks:
            raise ConfigurationError("A check can't be named 'score'; that is the name of what orders the rest.")
        if not math.isfinite(pass_at):
            raise ConfigurationError(f"pass_at must be a finite number; it is {pass_at!r}.")
        if any(isinstance(model, Part) for model in (*checks.values(), score)):
            raise ConfigurationError(
                "A gate has no weights and no scales.", hint="Give it the reward models themselves."
            )
        super().__init__({**checks, "score": score})
        self._pass_at = pass_at

    @property
    def highest_reward(self) -> float | None:
        """All checks passed and the score at its highest, where that is known."""
        score = highest_reward(self.parts["score"].model)
        return None if score is None else self._reward({"score": score})

    async def score_in_detail(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> Scoring:
        """Ask checks and score at the same time, and count the passes.

        Args:
            messages: the conversation.
            responses: texts to score, at least one.
            run: the run that they are scored for.

        Raises:
            RewardError: a check or the score failed; its `usage` is what all of them cost.
        """
        rows, scoring = await self._ask(messages, responses, run)
        return replace(scoring, scores=[self._reward(scores) for scores in rows])

    def _reward(self, scores: PartScores) -> float | None:
        if "score" not in scores:
            return None
        if not all(map(math.isfinite, scores.values())):
            return math.nan
        checks = self.parts.keys() - {"score"}
        passes = sum(scores.get(name, math.inf) >= self._pass_at for name in checks)
        # not a sigmoid: that one is 1.0 from 37 on, and scores beyond would all be equal
        squeezed = 0.5 + 0.5 * scores["score"] / (1.0 + abs(scores["score"]))
        # where rounding reaches the edge: it belongs to one pass more or less
        return passes + min(max(squeezed, math.ulp(0.5)), 1.0 - math.ulp(0.5))
