"""One server: exchanges JSON with it, again after passing faults, and never more than so many requests at a time."""

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tpo_graph.errors import ConfigurationError
from tpo_graph.policies.transport import shared_http_client
from tpo_graph.rewards.concurrency import ConcurrencyLimit
from tpo_graph.rewards.served.server_errors import TransientError, no_answer, not_json, refused

__all__ = ["Endpoint"]

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
