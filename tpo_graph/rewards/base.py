"""Requests at the same time: at most so many, in any number of event loops, and none left running after an error."""

import asyncio
import hashlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, final, runtime_checkable
from weakref import WeakKeyDictionary

from langchain_core.messages import BaseMessage

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.types import PhaseUsage

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


# The reward model protocol: conversation and responses in, one float each out.


@runtime_checkable
class RewardModel(Protocol):
    """Scores responses to one conversation; R(x, v) in section 2 of the TPO paper.

    Any object with this one method is a reward model. Always a batch, never one.
    """

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        """Score every response as the next assistant turn of the conversation.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to score; may be empty.

        Returns:
            One float for each response, in their order; higher is better. A response that can't be scored
            is NaN, which the caller records and never selects.

        Raises:
            RewardError: when nothing can be scored.
        """
        ...


@runtime_checkable
class UsageReportingReward(RewardModel, Protocol):
    """A reward model that asks a language model itself: it tells what that costs, and can use a preference."""

    async def score_with_usage(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], *, preference: str = ""
    ) -> tuple[list[float], PhaseUsage]:
        """Score as `score` does.

        Args:
            messages: as for `score`.
            responses: as for `score`.
            preference: what the answer is to satisfy, in words; the same throughout a run. "" for none.

        Returns:
            The rewards, and the requests and tokens that they cost.
        """
        ...


# What a reward model tells beside its scores: what they cost, what it could not read whole, why there is none.


@dataclass
class ScoringReport:
    """Filled in while a reward model works, so that a call that fails has told what it spent before.

    Attributes:
        used: requests and tokens so far.
        truncated: responses that were scored without their end, or without the start of their conversation, because
            both together are longer than the reward model takes.
        reasons: why a response has no score, by its text; for those whose reason is known.
    """

    used: PhaseUsage = field(default_factory=no_usage)
    truncated: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    def count(self, used: PhaseUsage) -> None:
        """Add what a request or a reward model has cost."""
        self.used["requests"] += used["requests"]
        self.used["input_tokens"] += used["input_tokens"]
        self.used["output_tokens"] += used["output_tokens"]
        self.used["seconds"] += used["seconds"]

    def for_part(self) -> "ScoringReport":
        """A report for one part of a combination, with the same count of what was used."""
        return ScoringReport(used=self.used)

    def take_over(self, part: "ScoringReport", name: str) -> None:
        """Add what one part of a combination told.

        Args:
            part: from `for_part`.
            name: of the part; it stands before its reasons.
        """
        self.truncated |= part.truncated
        for text, reason in part.reasons.items():
            self.reasons.setdefault(text, f"Part {name!r}: {reason}")


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


# What tells one run from another, for reward models that remember something of each.


def run_key(messages: "Sequence[BaseMessage]", anchors: Iterable[str] | None) -> bytes:
    """What tells one run from another.

    With `anchors` it is them and the conversation. Without, it is the conversation with the ids of its messages:
    LangGraph gives a message without an id a new one in every run, so that runs of the same query are apart.
    """
    ids = anchors is None
    told = [[each.type, each.id if ids else "", each.content, each.additional_kwargs] for each in messages]
    data = json.dumps([told, sorted(set(anchors or ()))], default=str, sort_keys=True)
    return hashlib.sha256(data.encode()).digest()


# What travels with a query: the reference answer and other columns of a data set.
#
# They are keys of `additional_kwargs` of the last user message, which LangChain does not send to the model:
#
#     HumanMessage("What is 6 x 7?", additional_kwargs={"reference": "42"})
#     {"role": "user", "content": "What is 6 x 7?", "reference": "42"}  # the same: unknown keys go there
#
# A reference that an earlier turn carries belongs to that turn's question and is not used.


def query_columns(messages: "Sequence[BaseMessage]") -> Mapping[str, Any]:  # Any: columns hold any plain value
    """Everything that travels with the last user message.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> query_columns([HumanMessage("6 x 7?", additional_kwargs={"reference": "42", "level": 1})])
        {'reference': '42', 'level': 1}
    """
    return next((message.additional_kwargs for message in reversed(messages) if message.type == "human"), {})


def query_references(messages: "Sequence[BaseMessage]") -> list[str]:
    """The reference answers of the query, any of which is right; none when the query has no reference.

    Raises:
        RewardError: the reference is neither a text, a number nor a list of these.
    """
    reference = query_columns(messages).get("reference")
    if reference is None:
        return []
    answers = reference if isinstance(reference, list | tuple) else [reference]
    for answer in answers:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise RewardError(
                f"The reference of the query is {answer!r}, of type {type(answer).__name__}.",
                hint="Allowed are a text, a number, or a list of these, any of which counts as right.",
            )
    return [str(answer) for answer in answers]


T = TypeVar("T")


class ConcurrencyLimit:
    """Lets at most `limit` blocks run at the same time in each event loop.

    A semaphore belongs to the loop in which somebody first waited for it, so there is one for each loop.

    Args:
        limit: 1 or more.

    Raises:
        ConfigurationError: `limit` is below 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(f"max_concurrency={limit}: at least 1 request has to be allowed.")
        self.limit = limit
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a free place and hold it."""
        semaphore = self._semaphores.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.limit))
        async with semaphore:
            yield


async def gather(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:  # Any: a coroutine's send and yield types
    """Run all jobs at the same time; when one fails, cancel the others and raise its error.

    Returns:
        Their results, in order.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as failed:
        # the first is the cause; what failed along with it says the same
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return [task.result() for task in tasks]
