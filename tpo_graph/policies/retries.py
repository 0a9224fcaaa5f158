"""How long a request may take and how often it is sent again: one place for policies, judges and served rewards.

`send` is called around one request. The client underneath must not try again by itself (`without_retries`). The run's
limits reach `send` through a context variable (`limited`), so that a judge deep inside a combination of rewards keeps
them as well.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from tpo_graph._private_api import client_retries
from tpo_graph.accounting import no_usage
from tpo_graph.errors import BudgetError
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.policies.http import PlainChatCompletions, fresh_connection
from tpo_graph.policies.providers import takes
from tpo_graph.settings import TPOSettings

T = TypeVar("T")

_FREE_DISCONNECTS = 3
_LONGEST_WAIT = 60.0  # seconds, also where a server asks for more
_TIMEOUT_FIELDS = ("request_timeout", "default_request_timeout")  # in seconds; a `timeout` may be in others
_CONNECT_SECONDS = 5.0  # openai's own default
_ATTEMPTS_COUNTED = ("langchain_google_", "langchain_mistralai", "langchain_litellm")  # by their `max_retries`


@dataclass(frozen=True)
class OwnLimits:
    """What a person has set on a model or an endpoint itself.

    It counts where the run's settings do not name the limit; of two timeouts, the smaller one counts.

    Attributes:
        timeout: seconds that a try may take; None where it is not set.
        max_retries: None where it is not set.
        first_wait: the longest wait before the second try; it doubles with each further one.
        retries_timeouts: whether a try that took too long is followed by another.
        client_retries: the client tries again by itself, and that can't be switched off. Then only what no client
            tries again is sent again here: answers that can't be read.
    """

    timeout: float | None = None
    max_retries: int | None = None
    first_wait: float = 0.5
    retries_timeouts: bool = True
    client_retries: bool = False

    @classmethod
    def of(cls, model: BaseChatModel) -> "OwnLimits":
        """Those of a chat model."""
        timeouts = (getattr(model, field, None) for field in _TIMEOUT_FIELDS)
        retries = getattr(model, "max_retries", None) if "max_retries" in model.model_fields_set else None
        return cls(
            timeout=next((float(value) for value in timeouts if isinstance(value, int | float)), None),
            max_retries=retries if isinstance(retries, int) else None,
            client_retries=client_retries(without_retries(model)) > 0,
        )


@dataclass(frozen=True)
class RequestLimits:
    """What holds for every request that is sent inside of `limited`.

    Attributes:
        settings: of the run.
        deadline: when the run's time is over, on the clock of `time.monotonic`; None for never.
    """

    settings: TPOSettings = field(default_factory=TPOSettings)
    deadline: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def timeout(self, own: OwnLimits) -> float | None:
        """Seconds that one try may take."""
        if own.timeout is None:
            return self.settings.timeout
        if "timeout" not in self.settings.model_fields_set or self.settings.timeout is None:
            return own.timeout
        return min(own.timeout, self.settings.timeout)

    def max_retries(self, own: OwnLimits) -> int:
        """How often a request is sent again at most."""
        if own.max_retries is None or "max_retries" in self.settings.model_fields_set:
            return self.settings.max_retries
        return own.max_retries


_UNSET_LIMITS = RequestLimits()
_limits: ContextVar[RequestLimits] = ContextVar("tpo_graph_request_limits", default=_UNSET_LIMITS)


@contextmanager
def limited(settings: TPOSettings, seconds_left: float | None = None) -> Iterator[RequestLimits]:
    """Requests inside of the block keep to these settings.

    Args:
        settings: of the run.
        seconds_left: when they end, whatever has arrived; None for never.
    """
    limits = RequestLimits(settings, None if seconds_left is None else time.monotonic() + seconds_left)
    token = _limits.set(limits)
    try:
        yield limits
    finally:
        _limits.reset(token)


async def before_deadline(work: Callable[[], Awaitable[T]], *, grace: float = 0.0) -> T:
    """The result of some work, which is cancelled when the run's time is over.

    Args:
        work: does it.
        grace: seconds that it gets more.

    Raises:
        BudgetError: the time was over before the work was done; `usage` is what it cost, where that is known.
    """
    limits = _limits.get()
    if limits.deadline is None:
        return await work()
    usage = no_usage()
    if not limits.is_over:
        try:
            async with asyncio.timeout(limits.deadline - time.monotonic() + grace) as clock:
                return await work()
        except TimeoutError as error:
            if not clock.expired():
                raise
            usage = getattr(error.__cause__, "usage", usage)  # a reward model's, on the cancellation
    budget = limits.settings.budget_seconds
    raise BudgetError(f"The time of the run is over (budget_seconds={budget:g}).", usage=usage)


async def send(
    request: Callable[[], Awaitable[T]],
    own: OwnLimits = OwnLimits(),
    *,
    may_repeat: Callable[[], bool] = lambda: True,
) -> T:
    """The answer to a request, which is sent again after failures that may pass.

    It is sent at most `max_retries` + 1 times, and each try ends after `timeout`. A connection that the server closed
    before the first byte of its answer, most often one that was idle for too long, is no failure of a try: three times
    the request goes out again at once, over a new connection.

    Args:
        request: sends it once.
        own: limits of the model or the endpoint.
        may_repeat: asked before it is sent again.

    Raises:
        BudgetError: the run's `budget_seconds` are over.
        Exception: of the last try.
    """
    return await before_deadline(lambda: _send(request, own, may_repeat))


async def _send(request: Callable[[], Awaitable[T]], own: OwnLimits, may_repeat: Callable[[], bool]) -> T:
    limits = _limits.get()
    timeout, most_retries = limits.timeout(own), limits.max_retries(own)
    disconnects = 0

    async def attempt() -> T:
        nonlocal disconnects
        while True:
            token = fresh_connection.set(disconnects > 0)
            try:
                async with asyncio.timeout(timeout) as clock:
                    return await request()
            except TimeoutError:
                if not clock.expired():
                    raise
                raise TimeoutError(f"no answer within {timeout:g} s") from None
            except Exception as error:  # each client library has its own
                if disconnects == _FREE_DISCONNECTS or not _is_unanswered(error) or not may_repeat():
                    raise
                disconnects += 1
            finally:
                fresh_connection.reset(token)

    def may_pass(error: BaseException) -> bool:
        failure = _failure_of(error)
        if failure.kind == "timeout" and not own.retries_timeouts:
            return False
        return failure.is_unreadable if own.client_retries else failure.is_retryable

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        seconds = _failure_of(error).retry_after if error else None
        return backoff(state) if seconds is None else min(seconds, _LONGEST_WAIT)

    backoff = wait_random_exponential(own.first_wait, max=_LONGEST_WAIT)
    try:
        return await attempt()
    except Exception as error:
        if not may_pass(error):
            raise
        first = [error]

    async def next_attempt() -> T:
        # to set tenacity up costs several times the rest of `send`, so that it hears of a request only now
        if first:
            raise first.pop()
        return await attempt()

    return await AsyncRetrying(
        retry=retry_if_exception(may_pass),
        stop=lambda state: state.attempt_number > most_retries or not may_repeat(),
        wait=wait,
        sleep=asyncio.sleep,
        reraise=True,
    )(next_attempt)


def without_retries(model: BaseChatModel) -> BaseChatModel:
    """A copy of the model whose client sends every request once, as far as that can be switched off.

    Where a person has set no timeout, the client has none either: `send` ends each try.
    """
    module = sys.modules.get("langchain_openai.chat_models.base")  # where it is not loaded, nobody has such a model
    openai_model: Any = model
    if module is not None and isinstance(openai_model, module.BaseChatOpenAI):
        import openai

        client, completions = openai_model.root_async_client, openai_model.async_client
        if client is None:
            return model
        if openai_model.request_timeout is None:
            client = client.copy(timeout=openai.Timeout(None, connect=_CONNECT_SECONDS))
        client = client.copy(max_retries=0)
        if isinstance(completions, PlainChatCompletions):
            completions = PlainChatCompletions(client)
        elif type(completions) is type(client.chat.completions):
            completions = client.chat.completions
        return model.model_copy(update={"root_async_client": client, "async_client": completions})
    if not takes(model, "max_retries"):
        return model
    once = int(type(model).__module__.startswith(_ATTEMPTS_COUNTED))
    changed = model.model_copy(update={"max_retries": once})
    for name in [name for name in vars(changed) if isinstance(getattr(type(changed), name, None), cached_property)]:
        del vars(changed)[name]  # clients that were made with the number before
    return changed


def _failure_of(error: BaseException) -> ProviderFailure:
    known = getattr(error, "failure", None)
    return known if isinstance(known, ProviderFailure) else ProviderFailure.of(error)


def _is_unanswered(error: BaseException) -> bool:
    """Whether the server closed the connection before the first byte of its answer."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in ("ServerDisconnectedError", "ClientOSError", "RemoteDisconnected"):
            return True
        if "without sending a response" in str(cause):  # httpx's
            return True
        cause = cause.__cause__
    return False
