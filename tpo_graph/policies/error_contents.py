"""What an error of any client library, or the body of an error, holds: status, texts, headers, in whatever shape."""

import email.utils
import html
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tpo_graph.types import JSON

_NOT_SHOWN = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)  # of a page
# LangChain's own kinds, which name no status, and gRPC's codes: the statuses that Google's HTTP API has for them
_NAMED_STATUSES: Mapping[str, int] = {
    name: status
    for status, names in {
        400: "ModelInvalidRequestError ContextOverflowError INVALID_ARGUMENT FAILED_PRECONDITION OUT_OF_RANGE",
        401: "ModelAuthenticationError UNAUTHENTICATED",
        403: "ModelPermissionDeniedError PERMISSION_DENIED",
        404: "ModelNotFoundError NOT_FOUND",
        409: "ABORTED",
        429: "ModelRateLimitError RESOURCE_EXHAUSTED",
        499: "CANCELLED",
        500: "ModelAPIError UNKNOWN INTERNAL",
        501: "UNIMPLEMENTED",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }.items()
    for name in names.split()
}
# where the bodies of errors have their words
_MESSAGE_KEYS = ("message", "msg", "error", "detail", "details", "errors", "title", "raw", "metadata")


def error_chain(error: BaseException) -> list[BaseException]:
    """The error and its causes."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is other for other in chain):
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__  # httpx hides the error of the socket, which says most
    return chain


def answer_in(error: BaseException) -> tuple[int | None, JSON]:
    """Status and body that an error holds, each None where it holds none."""
    if type(error).__module__.startswith("aiohttp"):
        return None, None  # its own status is 400 for any answer that is no HTTP
    response: Any = getattr(error, "response", None)
    body: JSON = getattr(error, "body", None)
    code, details = getattr(error, "code", None), getattr(error, "details", None)  # Google's; gRPC's are methods
    code, details = code() if callable(code) else code, details() if callable(details) else details
    if isinstance(response, Mapping):  # AWS's
        statuses = [(response.get("ResponseMetadata") or {}).get("HTTPStatusCode")]
        body = response.get("Error") if body is None else body
    else:
        statuses = [getattr(error, "status_code", None), getattr(response, "status_code", None)]
    if isinstance(error, ValueError) and error.args and isinstance(error.args[0], Mapping):  # LangChain's, of a 200
        body = error.args[0]
        statuses += [body.get(key) for key in ("code", "status", "status_code")]
    statuses += [code, _NAMED_STATUSES.get(getattr(code, "name", ""))]
    statuses += [status for base in type(error).__mro__ if (status := _NAMED_STATUSES.get(base.__name__))]
    if body is None and response is not None:
        try:
            body = getattr(response, "text", None)
        except RuntimeError:  # it was streamed, and is gone
            body = None
    if not body and isinstance(details, str | Mapping):
        body = details
    texts = [f"{int(status)}" if isinstance(status, int) else str(status) for status in statuses]
    status = next((int(text) for text in texts if re.fullmatch(r"[1-5]\d\d", text)), None)
    return status, body if isinstance(body, str | bytes | list | Mapping) else None


def headers_of(error: BaseException) -> Mapping[str, str]:
    """The headers of the answer that an error holds; none where it holds no answer."""
    response: Any = getattr(error, "response", None)
    metadata = (response.get("ResponseMetadata") or {}) if isinstance(response, Mapping) else {}
    headers = metadata.get("HTTPHeaders") or getattr(response, "headers", None)
    return headers if isinstance(headers, Mapping) else {}


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After`, which has seconds or a date."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(header, "")
        try:
            if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
                return float(value) * unit
            return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except (ValueError, OverflowError):  # it is missing, or no date
            continue
    return None


def words_in(body: JSON, field: str = "", depth: int = 8) -> Iterator[tuple[str, str]]:
    """The texts for people in the body of an error, each with the request's field that it is about, or ""."""
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if isinstance(body, str):
        text = body.strip()
        try:
            inner = json.loads(text) if depth and text[:1] in ("{", "[") else None
        except (ValueError, RecursionError):
            inner = None
        if inner is not None:
            yield from words_in(inner, field, depth - 1)
        elif text and text != "null":
            yield field, one_line(html.unescape(_NOT_SHOWN.sub(" ", text)) if text.startswith("<") else text)
    elif isinstance(body, Mapping):
        values = {str(key).lower(): value for key, value in body.items()}
        place = values.get("loc")
        if isinstance(place, list | tuple):  # pydantic's; the first says which part of the request
            field = ".".join(str(part) for part in place if part != "body") or field
        elif isinstance(values.get("param"), str):
            field = values["param"]
        found = [
            words
            for key in _MESSAGE_KEYS
            if depth and key in values
            for words in words_in(values[key], field, depth - 1)
        ]
        yield from found or [(field, one_line(json.dumps(body, default=str)))]
    elif isinstance(body, list):
        for item in body if depth else ():
            yield from words_in(item, field, depth - 1)


def one_line(text: str) -> str:
    """The text with a blank for each run of white space."""
    return " ".join(text.split())
