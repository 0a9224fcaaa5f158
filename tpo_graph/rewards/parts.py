"""What a reward model is told about the run, and what it can answer beyond the floats of `base`.

The protocol in `base` has one float a response. Some things don't fit into it. A reward may have nothing to say about a
response, which is no failure. A combination that puts its parts on one scale has to keep that scale for a whole run, in
which every step is scored by a call of its own. And some have more to tell than numbers: what they cost, what they cut,
why a response has no score. Reward models that know about any of these inherit from `PartialRewardModel`; all others
are parts as they are.
"""

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, final

from tpo_graph.errors import RewardError
from tpo_graph.rewards.scoring_report import ScoringReport
from tpo_graph.types import PhaseUsage

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel

__all__ = ["PartialRewardModel", "PartialScores", "RunContext", "RunExtremes", "part_scores", "run_scores"]

PartialScores: TypeAlias = list[float | None]
"""One value for each response: a float (higher is better), NaN for a response that should have a score and can't be
scored, None for one that the reward does not apply to."""


@dataclass(frozen=True)
class RunExtremes:
    """The best and the worst response of a run so far, with the rewards that this reward model gave them."""

    best: str
    best_reward: float
    worst: str
    worst_reward: float


@dataclass(frozen=True)
class RunContext:
    """What a reward model is told about the run that it scores for.

    Attributes:
        anchors: the responses of step 0, those without a reward too; they define a scale for the whole run. In step 0
            they are the responses themselves. None when the caller doesn't tell.
        preference: what the answer is to satisfy, in words; "" for nothing in particular.
        extremes: None in step 0, when the caller doesn't tell, and for the parts of a combination, whose rewards are
            not the run's.
        report: what the reward model has to tell beside its scores goes here.
    """

    anchors: tuple[str, ...] | None = None
    preference: str = ""
    extremes: RunExtremes | None = None
    report: ScoringReport = field(default_factory=ScoringReport, compare=False)


class PartialRewardModel(ABC):
    """A reward model that may not apply to a response, whose scale depends on a run, or that tells more than scores."""

    @abstractmethod
    async def score_part(
        self, messages: "Sequence[BaseMessage]", responses: Sequence[str], run: RunContext
    ) -> PartialScores:
        """Score every response.

        Args:
            messages: the conversation.
            responses: texts to score; may be empty.
            run: what is known of the run. What this costs is counted in its report, at once, so that a failure loses
                none of it.

        Raises:
            RewardError: when nothing can be scored.
        """

    @final
    async def score(self, messages: "Sequence[BaseMessage]", responses: Sequence[str]) -> list[float]:
        """Score every response; see `RewardModel`. One that the reward does not apply to has no score: NaN.

        Raises:
            RewardError: when nothing can be scored.
        """
        scores, _ = await self.score_with_usage(messages, responses)
        return scores

    @final
    async def score_with_usage(
        self, messages: "Sequence[BaseMessage]", responses: Sequence[str], *, preference: str = ""
    ) -> tuple[list[float], PhaseUsage]:
        """Score as `score` does, and tell the cost; see `UsageReportingReward`.

        Raises:
            RewardError: when nothing can be scored; its `usage` is what that cost.
        """
        run = RunContext(preference=preference)
        try:
            return _without_none(await self.score_part(messages, responses, run)), run.report.used
        except RewardError as error:
            error.usage = run.report.used
            raise


async def part_scores(
    model: "RewardModel | PartialRewardModel",
    messages: "Sequence[BaseMessage]",
    responses: Sequence[str],
    run: RunContext,
) -> PartialScores:
    """Ask any reward model for what `PartialRewardModel.score_part` returns.

    Args:
        model: a reward model; its `score` may also be a plain function, which then runs in a thread.
        messages: the conversation.
        responses: texts to score.
        run: what is known of the run; what it costs is counted in its report, also when it fails.

    Raises:
        RewardError: the model failed in any way, or returned something other than one number a response.
    """
    if not responses:
        return []
    try:
        values: Any  # Any: a reward model of a user may return whatever it likes, which is checked below
        if isinstance(model, PartialRewardModel):
            values = await model.score_part(messages, responses, run)
        elif (with_usage := getattr(model, "score_with_usage", None)) is not None:
            values = await _counted(with_usage(messages, responses, preference=run.preference), run.report)
        elif inspect.iscoroutinefunction(model.score):
            values = await model.score(messages, responses)
        else:
            # a plain function must not stop the event loop
            values = await asyncio.to_thread(_call, model.score, messages, responses)
            values = await values if inspect.isawaitable(values) else values
        scores = [None if value is None else float(value) for value in values]
    except RewardError:
        raise
    except Exception as error:  # whatever a reward model may raise
        # imported here, because the children that run verifiers import this module and must start at once
        from langgraph.errors import GraphBubbleUp

        if isinstance(error, GraphBubbleUp):  # an interrupt is no failure
            raise
        raise RewardError(f"The reward model failed: {type(error).__name__}: {error}".rstrip(": ")) from error
    if len(scores) != len(responses):
        raise RewardError(f"The reward model returned {len(scores)} rewards for {len(responses)} responses.")
    return scores


async def run_scores(
    model: "RewardModel | PartialRewardModel",
    messages: "Sequence[BaseMessage]",
    responses: Sequence[str],
    run: RunContext,
) -> list[float]:
    """The rewards of one step of a run, on the scale that the run began with.

    Args:
        model: a reward model.
        messages: the conversation.
        responses: the texts of this step.
        run: with the texts of step 0 as its anchors.

    Returns:
        One float for each response, NaN where there is no score.

    Raises:
        RewardError: see `part_scores`.
    """
    scores = await part_scores(model, messages, responses, run)
    for response, score in zip(responses, scores, strict=True):
        if score is None:
            run.report.reasons.setdefault(response, "The reward does not apply to it.")
    return _without_none(scores)


async def _counted(scoring: Awaitable[tuple[Any, PhaseUsage]], report: ScoringReport) -> Any:  # Any: as above
    """The values of a `score_with_usage`; what it cost is counted, also where it failed and says so."""
    try:
        values, used = await scoring
    except RewardError as error:
        if error.usage is not None:
            report.count(error.usage)
        raise
    report.count(used)
    return values


def _call(score: Callable[..., Any], messages: "Sequence[BaseMessage]", responses: Sequence[str]) -> Any:  # as above
    """Call a plain function in a thread; a future can't carry the StopIteration that it may raise."""
    try:
        return score(messages, responses)
    except StopIteration as error:
        raise RuntimeError("it raised StopIteration") from error


def _without_none(scores: Sequence[float | None]) -> list[float]:
    return [math.nan if score is None else score for score in scores]
