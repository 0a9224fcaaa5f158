"""What all served reward models have in common: batches, order, and responses that can't be scored."""

import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.policies.http import shared_http_client
from tpo_graph.rewards.base import (
    ConcurrencyLimit,
    PartialRewardModel,
    PartialScores,
    RunContext,
    ScoringReport,
    gather,
)

if TYPE_CHECKING:
    import httpx2


# How a vLLM server is told to return the model's own number, and not a sigmoid or softmax of it.
#
# vLLM applies an activation to classifier outputs unless a request says otherwise. The request's field was `activation`
# first and is `use_activation` since; a server takes no notice of a field that it does not know. Sending both does not
# do: versions that know both read `activation: false` as true. So the field that works is found out, once.

ActivationField: TypeAlias = Literal["use_activation", "activation"]

Ask: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[list[float]]]  # Any: JSON
"""Sends a body and returns the scores of the answer."""

_NOISE = 0.01  # half precision gives one text slightly different scores from one batch to the next


class RawScores:
    """Asks for scores without an activation, and checks that the server does as asked.

    A score outside of [0, 1] is proof, so the check costs nothing with nearly every reward model. Only when all first
    scores lie inside is a second request made, without the field: from it can be told whether the field was heeded.

    Args:
        field: the field to send; None finds it out.

    Raises:
        ConfigurationError: there is no such field, and a server would take no notice of it.
    """

    def __init__(self, field: ActivationField | None = None) -> None:
        if field is not None and field not in get_args(ActivationField):
            allowed = ", ".join(get_args(ActivationField))
            raise ConfigurationError(f"Unknown activation_field {field!r}; allowed: {allowed}.")
        self.field = field

    async def __call__(self, ask: Ask, body: Mapping[str, Any]) -> list[float]:  # Any: JSON
        """Ask with the field that works.

        Raises:
            RewardError: the server heeds neither field.
        """
        if self.field is not None:
            return await ask({**body, self.field: False})
        scores = await ask({**body, "use_activation": False})
        finite = [score for score in scores if math.isfinite(score)]
        if not finite:
            return scores
        if any(not 0 <= score <= 1 for score in finite):
            self.field = "use_activation"
            return scores
        default = await ask(body)
        if _heeded(scores, default):
            self.field = "use_activation"
            return scores
        older = await ask({**body, "activation": False})
        if _heeded(older, default):
            self.field = "activation"
            return older
        raise RewardError(
            f"The vLLM server returns {finite[0]:.4g}, with and without an activation: it can't be told to leave a "
            "sigmoid or softmax out, or it uses none and all rewards lie between 0 and 1.",
            hint="If the server uses none (started so with --pooler-config) and the model's rewards are in that range, "
            "pass activation_field='use_activation'. Else take a newer vLLM.",
        )


def _heeded(scores: Sequence[float], default: Sequence[float]) -> bool:
    """Whether `scores`, asked for without an activation, differ from what the server returns by default."""
    pairs = [(s, d) for s, d in zip(scores, default, strict=True) if math.isfinite(s) and math.isfinite(d)]
    if any(not 0 <= score <= 1 for score, _ in pairs):
        return True
    return sum(abs(score - usual) for score, usual in pairs) > _NOISE * len(pairs)


# The one place where what goes wrong between us and a server becomes a RewardError.

_SHOWN = 300  # characters of a server's message

# the server can't take these inputs; fewer or other inputs may go through
_INPUT_STATUSES = frozenset({400, 413, 422, 424})
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class InputRefusedError(RewardError):
    """The server refused the inputs of one request; each of them alone may still be scored."""


class TransientError(RewardError):
    """The same request may go through a little later.

    Attributes:
        retry_after: seconds that the server asks to wait, or 0.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


def no_answer(server: str, url: str, error: "httpx2.HTTPError | httpx2.InvalidURL", *, timeout: float) -> RewardError:
    """The error for a request that got no response."""
    import httpx2

    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return RewardError(f"{url!r} is not an address that can be asked: {error}.")
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        # not sent again: the server is at work on it, and a second copy would make it slower still
        return RewardError(
            f"The {server} server at {url} did not answer within {timeout:g} s.",
            hint="Raise timeout=, or lower batch_size= or max_concurrency=.",
        )
    said = str(error) or type(error).__name__
    return TransientError(
        f"No {server} server answers at {url}: {said}.", hint="Is it running, and are host and port right?"
    )


def refused(server: str, url: str, response: "httpx2.Response") -> RewardError:
    """The error for a response with a status of 400 or more."""
    status = response.status_code
    said = _message(response)
    told = f": {said}" if said else "."
    if status in (401, 403):
        return RewardError(
            f"The {server} server at {url} does not accept the API key (status {status}){told}",
            hint="Pass api_key=...",
        )
    if status == 404 and "model" in said.lower():
        return RewardError(
            f"The {server} server at {url} does not know the model{told}",
            hint="Name the model as the server does: scheme:URL#MODEL.",
        )
    if status in (404, 405):
        return RewardError(
            f"The server at {url} has no such path (status {status}){told}",
            hint=f"Is it a {server} server that serves a reward model, and does the address end before the path?",
        )
    if status in _TRANSIENT_STATUSES:
        return TransientError(
            f"The {server} server at {url} failed with status {status}{told}",
            hint="Lower max_concurrency=." if status == 429 else "See the server's log.",
            retry_after=_retry_after(response),
        )
    if status in _INPUT_STATUSES:
        return InputRefusedError(
            f"The {server} server at {url} refused the texts (status {status}){told}",
            hint="A text that is too long for the model is the usual cause; does the server serve a reward model?",
        )
    return RewardError(f"The {server} server at {url} answered with status {status}{told}")


def not_json(server: str, url: str, body: str) -> RewardError:
    """The error for a body that is not JSON."""
    return RewardError(
        f"The {server} server at {url} answered with something that is not JSON: {_cut(body)!r}.",
        hint="Is there a proxy or another server at that address?",
    )


def unexpected(server: str, what: str, body: object) -> RewardError:
    """The error for JSON that is not what the server's documentation promises.

    Args:
        server: its name.
        what: what is wrong with it, as in "has no 'data'".
        body: the JSON.
    """
    shown = _cut(json.dumps(body, default=str))
    return RewardError(
        f"The answer of the {server} server {what}: {shown}.",
        hint="Is it a server of that kind, and does it serve a reward model with one output?",
    )


def _message(response: "httpx2.Response") -> str:
    """The server's own words: servers put them in `error`, `error.message`, `message` or `detail`."""
    try:
        body = response.json()
    except ValueError:
        return _cut(response.text)
    for _ in range(2):
        if not isinstance(body, dict):
            break
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), "")
    return _cut(body if isinstance(body, str) else json.dumps(body))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _retry_after(response: "httpx2.Response") -> float:
    try:
        return max(float(response.headers.get("retry-after", "0")), 0.0)
    except ValueError:  # a date: the usual wait will do
        return 0.0


# One server: exchanges JSON with it, again after passing faults, and never more than so many requests at a time.

_LONGEST_WAIT = 20.0


class Endpoint:
    """Exchanges JSON with a server, from any event loop.

    Args:
        url: address of the server, without the path of its API; a final `/v1` is dropped.
        server: its name in messages, as in "vLLM".
        api_key: sent as a bearer token; None sends none.
        timeout: seconds that one request may take.
        attempts: how often a request is sent at most, when no connection comes about or the server answers 429 or 5xx.
        retry_wait: seconds before the second attempt, spread at random around it; they double with each further one.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument is out of range, or the address has no http:// or https://.
    """

    def __init__(
        self,
        url: str,
        *,
        server: str,
        api_key: str | None = None,
        timeout: float = 120.0,
        attempts: int = 4,
        retry_wait: float = 0.25,
        max_concurrency: int = 16,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigurationError(
                f"{url!r} is not an address of a {server} server.", hint="Write it as http://127.0.0.1:8000."
            )
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigurationError(f"timeout={timeout}: a number of seconds above 0 is needed.")
        if not (retry_wait >= 0 and math.isfinite(retry_wait)):
            raise ConfigurationError(f"retry_wait={retry_wait}: a number of seconds from 0 up is needed.")
        if attempts < 1:
            raise ConfigurationError(f"attempts={attempts}: at least 1 is needed.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.server = server
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._timeout = timeout
        self._attempts = attempts
        self._retry_wait = retry_wait
        self._limit = ConcurrencyLimit(max_concurrency)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:  # Any: JSON in, JSON out
        """Send `body` and return the JSON of the answer.

        Raises:
            RewardError: no answer, a status of 400 or more, or no JSON, after the last attempt.
        """
        return await self._attempted("POST", path, dict(body))

    async def get(self, path: str) -> Any:  # Any: JSON
        """What the server tells at `path`; raises as `post` does."""
        return await self._attempted("GET", path, None)

    async def _attempted(self, method: str, path: str, body: dict[str, Any] | None) -> Any:  # Any: as in `post`
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
        from tenacity import wait_random_exponential as spread

        # at random between 0 and twice the wait, which doubles
        usual = spread(multiplier=2 * self._retry_wait, max=_LONGEST_WAIT)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, TransientError) else 0.0
            return max(usual(state), min(asked, _LONGEST_WAIT))

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(self._attempts),
            wait=wait,
            reraise=True,
        )
        return await attempts(self._once, method, path, body)

    async def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:  # Any: as in `post`
        import httpx2

        url = self.url + path
        async with self._limit.slot():
            try:
                response = await shared_http_client().request(
                    method, url, json=body, headers=self._headers, timeout=self._timeout
                )
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise no_answer(self.server, url, error, timeout=self._timeout) from error
        if response.status_code >= 400:
            raise refused(self.server, url, response)
        try:
            return response.json()
        except ValueError as error:
            raise not_json(self.server, url, response.text) from error


Input = TypeVar("Input")


class ServedReward(PartialRewardModel, Generic[Input]):
    """A reward model behind a server.

    A subclass says what the server is sent for a response (`Input`: token ids, text or messages) and how its answer
    is read. Equal responses are sent once. Batches are sent at the same time. When a server refuses a batch, its
    texts are sent one by one, so that one text that is too long costs no other its score.

    Args:
        endpoint: the server.
        batch_size: responses in one request.

    Raises:
        ConfigurationError: `batch_size` is below 1.
    """

    server: ClassVar[str]
    """Name of the server in messages."""

    def __init__(self, endpoint: Endpoint, *, batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: at least 1 is needed.")
        self._endpoint = endpoint
        self._batch_size = batch_size

    async def score_part(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> PartialScores:
        """Score every response as the next assistant turn of the conversation; see `PartialRewardModel.score_part`.

        Returns:
            One float for each response; NaN where it is too long, or the server refused it or gave no number.

        Raises:
            RewardError: the server can't be used, or scored none of the responses.
        """
        texts = list(dict.fromkeys(responses))
        if not texts:
            return []
        encoded = await self._encode(messages, texts, run.report)
        found: dict[str, float | RewardError] = {
            text: one for text, one in zip(texts, encoded, strict=True) if isinstance(one, RewardError)
        }
        inputs = [one for one in encoded if not isinstance(one, RewardError)]
        batches = [inputs[start : start + self._batch_size] for start in range(0, len(inputs), self._batch_size)]
        told = await gather(self._score_or_split(batch) for batch in batches)
        left = [text for text in texts if text not in found]
        found |= dict(zip(left, itertools.chain.from_iterable(told), strict=True))
        errors = [one for one in found.values() if isinstance(one, RewardError)]
        if len(errors) == len(texts):
            raise errors[0]
        return [self._noted(response, found[response], run.report) for response in responses]

    def _noted(self, response: str, found: float | RewardError, report: ScoringReport) -> float:
        """The score; NaN where there is none, and why goes into the report."""
        if isinstance(found, RewardError):
            report.reasons[response] = found.message
            return math.nan
        if not math.isfinite(found):
            report.reasons[response] = f"The {self.server} server gave no finite number for it."
        return found

    async def _score_or_split(self, batch: Sequence[Input]) -> list[float | RewardError]:
        try:
            scores = await self._score_batch(batch)
        except InputRefusedError as error:
            if len(batch) == 1:
                return [error]
            return [one for part in await gather(self._score_or_split([one]) for one in batch) for one in part]
        if len(scores) != len(batch):
            raise unexpected(self.server, f"has {len(scores)} scores for {len(batch)} texts", scores)
        return list(scores)

    @abstractmethod
    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> Sequence[Input | RewardError]:
        """What the server is sent for each response, or why it can't be; the report is told which are cut."""

    @abstractmethod
    async def _score_batch(self, batch: Sequence[Input]) -> list[float]:
        """One request, and the scores of its answer in the order of `batch`."""


def score_of(server: str, value: Any, body: object) -> float:  # Any: part of a JSON answer
    """A number from a JSON answer; null is NaN.

    Raises:
        RewardError: it is neither a number nor null.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unexpected(server, f"has {value!r} where a score should be", body)
    return float(value)
