"""What all served reward models share: requests to a server, batches, order, and responses that can't be scored."""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import BudgetError, ConfigurationError, RewardError, TPOError
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.policies.http import shared_http_client
from tpo_graph.policies.retries import OwnLimits, send
from tpo_graph.rewards.base import ConcurrencyLimit, DetailedReward, RunContext, Scoring, gather
from tpo_graph.rewards.served.rendering import Input, Rendered
from tpo_graph.types import JSON, JSONObject

T = TypeVar("T")

_SHOWN_CHARACTERS = 300  # of an answer, in messages


class ServedReward(DetailedReward, Generic[Input]):
    """A reward model behind a server.

    A subclass says what the server is sent for a response (`Input`: token ids, text or messages) and where the scores
    are in its answer. Equal responses are sent once. Batches are sent at the same time, and one that fails costs the
    others nothing. When a server refuses a batch, its texts are sent one by one, so that one text that is too long
    costs no other its score. An answer that can't be read, or that holds no number, is asked for again.

    Args:
        endpoint: the server.
        batch_size: responses in one request.

    Raises:
        ConfigurationError: `batch_size` is below 1.
    """

    server: ClassVar[str]
    """Name of the server in messages."""
    path: ClassVar[str]
    """Where requests for scores go."""
    answer_form: ClassVar[str]
    """What the answer has to be, in words, for messages."""

    def __init__(self, endpoint: "Endpoint", *, batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: at least 1 is needed.")
        self._endpoint = endpoint
        self._batch_size = batch_size

    @abstractmethod
    async def _render(
        self, messages: Sequence[BaseMessage], responses: Sequence[str]
    ) -> Sequence[Rendered[Input] | RewardError]:
        """What the server is sent for each response, or why it can't be."""

    @abstractmethod
    def _body(self, batch: Sequence[Input]) -> JSONObject:
        """The request for the scores of a batch."""

    @abstractmethod
    def _values(self, answer: JSON) -> list[JSON]:
        """The values in an answer: a number, null, or a list of one of these for each text, in the batch's order.

        Raises:
            KeyError, IndexError, TypeError, AttributeError: the answer has another form.
        """

    async def score_in_detail(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        run: RunContext,  # noqa: ARG002  # the scores of a served model are the same in every run
    ) -> Scoring:
        """Score every response as the next assistant turn of the conversation.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to score; may be empty.
            run: the run that they are scored for, which does not matter.

        Returns:
            The scores, NaN for a response that is too long, that the server refused, or for which it gave no number.

        Raises:
            RewardError: the server can't be used, or scored none of the responses.
        """
        texts = list(dict.fromkeys(responses))
        if not texts:
            return Scoring([])
        rendered = dict(zip(texts, await self._render(messages, texts), strict=True))
        inputs = {text: item.input for text, item in rendered.items() if not isinstance(item, RewardError)}
        scored: dict[str, float] = {}
        errors: dict[str, TPOError] = {text: item for text, item in rendered.items() if isinstance(item, RewardError)}

        async def score(batch: Sequence[str]) -> None:
            try:
                scored.update(zip(batch, await self._score_batch([inputs[text] for text in batch]), strict=True))
            except (RewardError, BudgetError) as error:
                kind = error.failure.kind if isinstance(error, ServerError) else "other"
                if kind == "refused" and len(batch) > 1:
                    await gather(score([text]) for text in batch)
                    return
                errors.update(dict.fromkeys(batch, error))
                if kind in ("key", "not_found"):  # so will the others be, and need not be sent
                    raise

        try:
            await gather(score(list(inputs)[i : i + self._batch_size]) for i in range(0, len(inputs), self._batch_size))
        except ServerError as error:
            errors = {text: errors.get(text, error) for text in texts if text not in scored}
        if not scored:
            raise errors[texts[0]]
        scores = {text: scored.get(text, math.nan) for text in texts}
        reasons = {
            text: errors[text].message if text in errors else f"The {self.server} server gave no finite number for it."
            for text, score in scores.items()
            if not math.isfinite(score)
        }
        truncated = {text for text, item in rendered.items() if isinstance(item, Rendered) and item.truncated}
        return Scoring([scores[text] for text in responses], truncated=frozenset(truncated), reasons=reasons)

    async def _score_batch(self, batch: Sequence[Input]) -> list[float]:
        return await self._ask(batch)

    async def _ask(self, batch: Sequence[Input], **fields: JSON) -> list[float]:
        """The server's scores for a batch; `fields` are added to the request."""

        def read(answer: JSON) -> list[float]:
            scores = self._scores_in(answer, len(batch))
            if all(map(math.isnan, scores)):
                raise _NoNumberError(f"has no number for any of {len(batch)} texts", answer, self.server)
            return scores

        try:
            return await self._endpoint.request("POST", self.path, self._body(batch) | fields, read=read)
        except _NoNumberError:  # each time that it was asked
            return [math.nan] * len(batch)

    def _scores_in(self, answer: JSON, count: int) -> list[float]:
        try:
            values = self._values(answer)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UnexpectedAnswerError(f"is not {self.answer_form}", answer, self.server) from error
        if len(values) != count:
            raise UnexpectedAnswerError(f"has {len(values)} scores for {count} texts", answer, self.server)
        scores: list[float] = []
        for value in values:
            if isinstance(value, list) and len(value) != 1:
                what = f"has {len(value)} outputs for a text; a reward is one number"
                raise UnexpectedAnswerError(what, answer, self.server, may_pass=False)
            score = value[0] if isinstance(value, list) else value
            if isinstance(score, bool) or not isinstance(score, int | float | None):
                raise UnexpectedAnswerError(f"has {score!r} where a score should be", answer, self.server)
            scores.append(math.nan if score is None else float(score))
        return scores


class ServerError(RewardError):
    """A request to a server failed.

    Attributes:
        failure: what it means.
    """

    def __init__(self, message: str, *, hint: str, failure: ProviderFailure) -> None:
        super().__init__(message, hint=hint)
        self.failure = failure


class UnexpectedAnswerError(ServerError):
    """An answer that was not an error, and holds no scores.

    Args:
        what: what is wrong with it, to follow "The answer of the server".
        answer: the answer.
        server: name of the server.
        may_pass: whether another answer to the same request may be right.
    """

    def __init__(self, what: str, answer: JSON, server: str, *, may_pass: bool = True) -> None:
        text = f"The answer of the {server} server {what}: {_shown(json.dumps(answer))}."
        super().__init__(
            text,
            hint="Is it a server of that kind, and does it serve a reward model with one output?",
            failure=ProviderFailure("transient", text, text, status=200, is_retryable=may_pass),
        )


class _NoNumberError(UnexpectedAnswerError):
    pass


class Endpoint:
    """Exchanges JSON with a server, from any event loop.

    Args:
        url: address of the server, without the path of its API; a final `/v1` is dropped.
        server: its name in messages, as in "vLLM".
        api_key: sent as a bearer token; None sends none.
        timeout: seconds that one request may take; a smaller `timeout` of the run counts as well.
        attempts: how often a request is sent at most, when no connection comes about, the server answers 429 or 5xx, or
            its answer can't be read; None for one more than the run's `max_retries`.
        retry_wait: seconds before the second attempt, spread at random around it; they double with each further one.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument is out of range, or the address is not one of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        server: str,
        api_key: str | None = None,
        timeout: float = 120.0,
        attempts: int | None = None,
        retry_wait: float = 0.25,
        max_concurrency: int = 16,
    ) -> None:
        import httpx2

        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL:
            parsed = httpx2.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(
                f"{url!r} is not an address of a {server} server.", hint="Write it as http://127.0.0.1:8000."
            )
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigurationError(f"timeout={timeout}: a number of seconds above 0 is needed.")
        if not (retry_wait >= 0 and math.isfinite(retry_wait)):
            raise ConfigurationError(f"retry_wait={retry_wait}: a number of seconds from 0 up is needed.")
        if attempts is not None and attempts < 1:
            raise ConfigurationError(f"attempts={attempts}: at least 1 is needed.")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._server = server
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._own = OwnLimits(
            timeout=timeout,
            max_retries=None if attempts is None else attempts - 1,
            first_wait=2 * retry_wait,
            # the server is at work on it, and a second copy would make it slower still
            retries_timeouts=False,
        )
        self._limit = ConcurrencyLimit(max_concurrency)

    async def request(
        self,
        method: str,
        path: str,
        body: JSONObject | None = None,
        *,
        read: Callable[[JSON], T] = lambda answer: answer,
    ) -> T:
        """Exchange JSON, with further attempts after passing faults.

        Args:
            method: GET or POST.
            path: behind the server's address.
            body: of a POST.
            read: makes the result of the JSON; may raise `UnexpectedAnswerError`.

        Raises:
            RewardError: no answer, a status of 400 or more, or an answer that can't be read, at the last attempt.
            BudgetError: the run's `budget_seconds` are over.
        """
        url = self._url + path
        async with self._limit.slot():
            try:
                return await send(lambda: self._request_once(method, url, body, read), self._own)
            except TimeoutError as error:
                raise self._error(url, ProviderFailure.of(error)) from error

    async def _request_once(self, method: str, url: str, body: JSONObject | None, read: Callable[[JSON], T]) -> T:
        import httpx2

        try:
            # `send` ends it
            response = await shared_http_client().request(method, url, json=body, headers=self._headers, timeout=None)
        except httpx2.HTTPError as error:
            raise self._error(url, ProviderFailure.of(error)) from error
        if response.status_code >= 400:
            raise self._error(url, ProviderFailure.of_response(response.status_code, response.text, response.headers))
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise ServerError(
                f"The {self._server} server at {url} answered with something that is not JSON: "
                f"{_shown(response.text)!r}.",
                hint="Is there a proxy or another server at that address?",
                failure=ProviderFailure("transient", "no JSON", "", status=200, is_retryable=True),
            ) from error
        return read(answer)

    def _error(self, url: str, failure: ProviderFailure) -> ServerError:
        server = f"The {self._server} server at {url}"
        match failure.kind:
            case "unreachable":
                text, hint = f"No {self._server} server answers at {url}", "Is it running, and are host and port right?"
            case "timeout":
                text = f"{server} did not answer in time"
                hint = "Raise timeout=, or lower batch_size= or max_concurrency=."
            case "key":
                text, hint = f"{server} does not accept the API key", "Pass api_key=..."
            case "not_found" if "model" in failure.message.lower():
                text, hint = f"{server} does not know the model", "Name the model as the server does: scheme:URL#MODEL."
            case "not_found":
                text = f"The server at {url} has no such path"
                hint = f"Is it a {self._server} server with a reward model, and does the address end before the path?"
            case "refused":
                text = f"{server} refused the texts"
                hint = "A text that is too long for the model is the usual cause; does the server serve a reward model?"
            case _:
                text = f"{server} failed"
                hint = "Lower max_concurrency=." if failure.status == 429 else "See the server's log."
        return ServerError(f"{text}: {failure.summary}.", hint=hint, failure=failure)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
