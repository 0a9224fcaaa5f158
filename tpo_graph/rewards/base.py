"""The reward model protocol, and what this package's own reward models share.

Users write `RewardModel`: one method, `score`. Inside the package there is one call for any reward model,
`score_responses`, with one result, `Scoring`. Reward models that have more to report than scores derive from
`DetailedReward`.
"""

import asyncio
import hashlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, final, runtime_checkable
from weakref import WeakKeyDictionary

from langchain_core.messages import BaseMessage
from langgraph.errors import GraphBubbleUp

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.prompts.template import role_of
from tpo_graph.types import JSON, PhaseUsage

T = TypeVar("T")


@runtime_checkable
class RewardModel(Protocol):
    """Scores responses to one conversation; R(x, v) in section 2 of the TPO paper.

    Any object with this one method is a reward model. Always a batch, never one. One that can't give more than some
    value may say so by an attribute `highest_reward`.
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


@dataclass(frozen=True)
class SecondScoring:
    """What a second reward model, which only watches, said about the responses that it was asked about.

    Attributes:
        rewards: finite rewards by text.
        truncated: texts that it could not read whole.
        failure: why it gave no reward; "" when it gave one.
    """

    rewards: Mapping[str, float] = field(default_factory=dict)
    truncated: frozenset[str] = frozenset()
    failure: str = ""


@dataclass(frozen=True)
class Scoring:
    """The result of scoring a batch of responses.

    Attributes:
        scores: one value for each response: a float (higher is better), NaN for a response that should have a score and
            can't be scored, None for one that the reward does not apply to.
        usage: requests and tokens that it cost, for reward models that count theirs.
        truncated: texts that were scored without their end, or without the start of their conversation, because both
            together are longer than the reward model takes.
        reasons: why a response has no score, by its text, where the reason is known.
        second: what a second reward model that watches said; None where nobody watches.
    """

    scores: Sequence[float | None]
    usage: PhaseUsage = field(default_factory=no_usage)
    truncated: frozenset[str] = frozenset()
    reasons: Mapping[str, str] = field(default_factory=dict)
    second: SecondScoring | None = None


@dataclass(frozen=True)
class RunExtremes:
    """The best and the worst response of a run so far, with the rewards that this reward model gave them."""

    best: str
    best_reward: float
    worst: str
    worst_reward: float


@dataclass(frozen=True)
class RunContext:
    """The run that responses are scored for.

    Attributes:
        anchors: the responses of step 0, those without a reward too; they define a scale for the whole run. In step 0
            they are the responses themselves. None when the responses do not belong to a run.
        preference: what the answer is to satisfy, in words; "" for nothing in particular.
        extremes: None in step 0, outside of a run, and for the parts of a combination, whose rewards are not the run's.
    """

    anchors: tuple[str, ...] | None = None
    preference: str = ""
    extremes: RunExtremes | None = None


class DetailedReward(ABC):
    """Base of reward models that report more than scores, may not apply to a response, or have a scale of their run."""

    @abstractmethod
    async def score_in_detail(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> Scoring:
        """Score every response as the next assistant turn of the conversation.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to score, at least one.
            run: the run that they are scored for.

        Raises:
            RewardError: when nothing can be scored; its `usage` is what that cost.
        """

    @final
    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        """Score every response as the next assistant turn of the conversation.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to score; may be empty.

        Returns:
            One float for each response; NaN where it can't be scored or the reward does not apply to it.

        Raises:
            RewardError: when nothing can be scored; its `usage` is what that cost.
        """
        scoring = await score_responses(self, messages, responses, RunContext())
        return [math.nan if score is None else score for score in scoring.scores]


async def score_responses(
    model: RewardModel, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
) -> Scoring:
    """Score responses with any reward model: the one call that the rest of the package makes.

    Args:
        model: the reward model; its `score` may also be a plain function, which then runs in a thread.
        messages: the conversation.
        responses: texts to score.
        run: the run that they are scored for.

    Raises:
        RewardError: the model failed in any way, or returned something other than one number a response; its `usage` is
            what that cost.
    """
    if not responses:
        return Scoring([])
    name = getattr(model, "name", type(model).__name__)
    usage: PhaseUsage | None = None
    try:
        if isinstance(model, DetailedReward):
            scoring = await model.score_in_detail(messages, responses, run)
            usage = scoring.usage
        elif inspect.iscoroutinefunction(model.score):
            scoring = Scoring(await model.score(messages, responses))
        else:
            scoring = Scoring(await call_in_thread(model.score, messages, responses))
        scores = [None if value is None else float(value) for value in scoring.scores]
    except (RewardError, GraphBubbleUp):  # an interrupt of LangGraph is not a failure
        raise
    except Exception as error:  # whatever a reward model may raise
        message = f"The reward model {name!r} failed: {type(error).__name__}: {error}".rstrip(": ")
        raise RewardError(message, usage=usage or usage_of(error)) from error
    if len(scores) != len(responses):
        raise RewardError(
            f"The reward model {name!r} returned {len(scores)} rewards for {len(responses)} responses.", usage=usage
        )
    return replace(scoring, scores=scores)


async def call_in_thread(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a plain function where it does not stop the event loop, and await what it returns if that can be awaited."""

    def call() -> Any:
        try:
            return function(*arguments, **options)
        except StopIteration as error:  # which a future can't carry
            raise RuntimeError("it raised StopIteration") from error

    result = await asyncio.to_thread(call)
    return await result if inspect.isawaitable(result) else result


@contextmanager
def charge_errors(usage: PhaseUsage) -> Iterator[None]:
    """Put what a scoring has cost so far on the error that ends it, where `usage_of` finds it.

    A cancellation carries it too: a combination cancels its other parts when one fails, and counts what they cost.

    Args:
        usage: counted up inside the block.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        error.usage = usage  # type: ignore[union-attr]  # of a RewardError; others can carry it as well
        raise


def usage_of(error: BaseException) -> PhaseUsage:
    """What a scoring cost that ended with this error, as far as it is known."""
    usage: PhaseUsage | None = getattr(error, "usage", None)
    return usage if isinstance(usage, dict) else no_usage()


def highest_reward(model: object) -> float | None:
    """The reward beyond which a reward model gives none, from its attribute `highest_reward`.

    A candidate that has it can't be beaten, so that more steps would change nothing.

    Returns:
        The reward; None where the model does not know it, or has no such attribute.
    """
    value = getattr(model, "highest_reward", None)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def close_reward(model: object) -> None:
    """Close a reward model that can be closed."""
    close = getattr(model, "close", None)
    if callable(close):
        close()


def run_key(messages: Sequence[BaseMessage], anchors: Iterable[str] | None) -> bytes:
    """What distinguishes one run from another, for reward models that remember something of each.

    With `anchors` it is them and the conversation. Without, it is the conversation with the ids of its messages:
    LangGraph gives a message without an id a new one in every run, so that runs of the same query are apart.
    """
    turns = [
        [message.type, message.id if anchors is None else "", message.content, message.additional_kwargs]
        for message in messages
    ]
    data = json.dumps([turns, sorted(set(anchors or ()))], default=str, sort_keys=True)
    return hashlib.sha256(data.encode()).digest()


def query_columns(messages: Sequence[BaseMessage]) -> Mapping[str, JSON]:
    """What travels with the query, its reference answer for one: the `additional_kwargs` of the last user message.

    LangChain does not send them to the model. A chat message in OpenAI's form may have them as further keys: both
    `HumanMessage("6 x 7?", additional_kwargs={"reference": "42"})` and
    `{"role": "user", "content": "6 x 7?", "reference": "42"}` carry a reference. One that an earlier turn carries
    belongs to that turn's question and is not used.

    Examples:
        >>> from langchain_core.messages import HumanMessage
        >>> query_columns([HumanMessage("6 x 7?", additional_kwargs={"reference": "42", "level": 1})])
        {'reference': '42', 'level': 1}
    """
    return next((message.additional_kwargs for message in reversed(messages) if role_of(message) == "user"), {})


def query_references(messages: Sequence[BaseMessage]) -> list[str]:
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


async def gather(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
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
