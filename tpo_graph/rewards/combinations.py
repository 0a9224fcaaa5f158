"""The sum of several rewards, each with a weight."""

import asyncio
import math
import statistics
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tpo_graph.accounting import no_usage, plus
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import (
    DetailedReward,
    RunContext,
    Scoring,
    charge_errors,
    close_reward,
    gather,
    require_reward_model,
    run_key,
    score_responses,
    usage_of,
)
from tpo_graph.rewards.warnings import WatchedReward

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel


# One part of a combination: a reward model, what it weighs, and the scale that its scores are put on.

PartScores: TypeAlias = dict[str, Sequence[float | None]]
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

    model: "RewardModel"
    weight: float = 1.0
    scale: Literal["standard", "raw"] | Scale = "standard"

    def __post_init__(self) -> None:
        """Check what can be checked before anything is scored.

        Raises:
            ConfigurationError: a weight or a scale that can't be used, or no reward model.
        """
        require_reward_model(self.model)
        if isinstance(self.model, WatchedReward):
            raise ConfigurationError(
                "A part of a combination can't be watched: its rewards are not the run's.",
                hint="Watch the whole: WatchedReward(combination, second).",
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
) -> tuple[PartScores, Scoring]:
    """Ask all parts at the same time; when one fails the others are cancelled.

    Returns:
        Their scores by name, and all else that they reported, with no scores yet.

    Raises:
        RewardError: names the part that failed; what all of them cost, the cancelled ones too, is its `usage`.
    """
    spent = no_usage()
    truncated: frozenset[str] = frozenset()
    reasons: dict[str, str] = {}

    async def ask(name: str, part: Part) -> Sequence[float | None]:
        nonlocal truncated
        try:
            # the run's extremes are the whole's, and mean nothing to a part
            scoring = await score_responses(part.model, messages, responses, replace(run, extremes=None))
        except (RewardError, asyncio.CancelledError) as error:
            spent.update(plus(spent, usage_of(error)))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise RewardError(f"Part {name!r}: {error.message}", hint=error.hint) from error
        spent.update(plus(spent, scoring.usage))
        truncated |= scoring.truncated
        for text, reason in scoring.reasons.items():
            reasons.setdefault(text, f"Part {name!r}: {reason}")
        return scoring.scores

    with charge_errors(spent):
        scores = await gather(ask(name, part) for name, part in parts.items())
    return dict(zip(parts, scores, strict=True)), Scoring([], usage=spent, truncated=truncated, reasons=reasons)


def close_parts(parts: Mapping[str, Part]) -> None:
    """Close every part that can be closed."""
    for part in parts.values():
        close_reward(part.model)


# The scales of runs: fixed by the first candidates of a run, and the same ever after.

Scales: TypeAlias = Mapping[str, Scale]
"""Scales by name of the part."""

_NOISE = 1e-6
"""A deviation below this share of the mean is what rounding leaves of equal scores."""


def usable(scores: PartScores, place: int) -> bool:
    """Whether all parts that apply to the response at `place` have a finite score for it."""
    return all(values[place] is None or math.isfinite(values[place] or 0.0) for values in scores.values())


def measured_scales(scores: PartScores, places: Iterable[int]) -> dict[str, Scale]:
    """Mean and deviation of each part over the responses at `places`, those left out that it does not apply to.

    Scores that are all equal have no deviation: they get 1, so that a later difference counts as it is. A part that
    applies to none of them is left as it is.
    """
    places = list(places)
    return {
        name: _measured([value for place in places if (value := values[place]) is not None])
        for name, values in scores.items()
    }


def _measured(values: Sequence[float]) -> Scale:
    if not values:
        return RAW
    mean = statistics.fmean(values)
    deviation = statistics.pstdev(values, mean)
    return Scale(mean, deviation if deviation > _NOISE * abs(mean) else 1.0)


class ScaleMemory:
    """Keeps the scales of the latest runs, for any number of event loops and threads.

    Args:
        size: runs at most; the one that was not used for the longest time goes first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._scales: OrderedDict[bytes, Scales] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Scales | None:
        """The scales of a run, if they are known."""
        with self._lock:
            scales = self._scales.get(key)
            if scales is not None:
                self._scales.move_to_end(key)
            return scales

    def keep(self, scales: Scales, key: bytes) -> Scales:
        """Keep the scales of a run, unless it has some already: those stay, and are returned."""
        with self._lock:
            kept = self._scales.setdefault(key, scales)
            self._scales.move_to_end(key)
            while len(self._scales) > self._size:
                self._scales.popitem(last=False)
            return kept


# What all combinations on one scale have in common.


class Combination(DetailedReward):
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

    async def score_in_detail(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,
    ) -> Scoring:
        """Ask all parts and combine; see `DetailedReward.score_in_detail`.

        Raises:
            RewardError: a part failed.
        """
        if not responses:
            return Scoring([])
        key = run_key(messages, run.anchors)
        scales: Scales | None = self._memory.get(key) if len(self._fixed) < len(self.parts) else {}
        # the scale of a run that is not in memory needs the scores of its first candidates
        basis = list(dict.fromkeys(responses if run.anchors is None else run.anchors))
        texts = list(responses) if scales is not None else list(dict.fromkeys([*basis, *responses]))
        scores, scoring = await ask_parts(self.parts, messages, texts, run)
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
        return replace(scoring, scores=[by_text[text] for text in responses])

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


# Checks first, then a score.


class Gate(DetailedReward):
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

    def __init__(self, checks: "Mapping[str, RewardModel]", score: "RewardModel", *, pass_at: float = 0.5) -> None:
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

    async def score_in_detail(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,
    ) -> Scoring:
        """Ask checks and score at the same time; see `DetailedReward.score_in_detail`.

        Raises:
            RewardError: names the check that failed, or `score`.
        """
        if not responses:
            return Scoring([])
        by_part, scoring = await ask_parts(self.parts, messages, responses, run)
        scores = by_part.pop("score")
        checks = zip(*by_part.values(), strict=True)
        rewards = [self._reward(check, score) for check, score in zip(checks, scores, strict=True)]
        return replace(scoring, scores=rewards)

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


# An ensemble of reward models that is trusted where its members agree.


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


# The lowest of several rewards.


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
