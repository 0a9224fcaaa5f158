"""The one place where what goes wrong between us and a server becomes a RewardError."""

import json
from typing import TYPE_CHECKING

from tpo_graph.errors import RewardError

if TYPE_CHECKING:
    import httpx2

__all__ = ["InputRefusedError", "TransientError", "no_answer", "not_json", "refused", "unexpected"]

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
