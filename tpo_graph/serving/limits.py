"""What one server accepts: who may ask, how large a request may be, and how many are worked on at the same time."""

import asyncio
import hashlib
import hmac
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields

from starlette.datastructures import Headers
from starlette.requests import Request

from tpo_graph.errors import ConfigurationError
from tpo_graph.serving.errors import RequestRefusedError

_RETRY_AFTER = {"Retry-After": "1"}


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_body_bytes: the most bytes that the body of a request may have.
        max_concurrency: the most requests that are worked on at the same time; more are refused with 429.
        max_n: the largest N, in a model name or in the settings of a request.
        max_depth: the largest D, likewise.
        max_body_seconds: how long the body of a request may take to arrive.
        keep_alive_seconds: how long a stream may be silent before it gets a comment, so that proxies keep it open.

    Raises:
        ConfigurationError: a limit is not above 0 (`max_depth` may be 0).
    """

    max_body_bytes: int = 20 * 1024 * 1024
    max_concurrency: int = 64
    max_n: int = 64
    max_depth: int = 20
    max_body_seconds: float = 60.0
    keep_alive_seconds: float = 10.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            # a server for best of N alone needs no steps
            if value < 0 or (value == 0 and limit.name != "max_depth"):
                raise ConfigurationError(f"The limit {limit.name}={value!r} is too small: it must be above 0.")


class ApiKeys:
    """The keys that a server accepts, compared in constant time.

    Args:
        keys: the accepted keys; without any, every request is let in.

    Raises:
        ConfigurationError: a key is empty.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        keys = [key.strip() for key in keys]
        if not all(keys):
            raise ConfigurationError("An API key is empty.", hint="Leave it out, or use one of some length.")
        # digests have the same length, so that a comparison does not reveal that of a key
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, headers: Headers) -> None:
        """Let a request in by its headers.

        Raises:
            RequestRefusedError: it has no accepted key.
        """
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Starlette decodes headers as Latin-1: this restores the bytes that were sent
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # a list, so that all are compared whichever matches
        matches = [hmac.compare_digest(digest, accepted) for accepted in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise RequestRefusedError(
                "Incorrect API key provided." if key else "No API key provided.",
                status=401,
                code="invalid_api_key",
                hint="Send it as the header Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )


class SharedEvent(threading.Event):
    """An event that any thread can set and any event loop can wait for; one of asyncio's belongs to one loop."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def set(self) -> None:
        """Set the event, for good."""
        super().set()
        for loop, event in tuple(self._waiting):
            with suppress(RuntimeError):  # the loop is closed, and nobody waits there
                loop.call_soon_threadsafe(event.set)

    async def wait_async(self) -> None:
        """Wait in this event loop until the event is set."""
        waiter = asyncio.get_running_loop(), asyncio.Event()
        self._waiting.add(waiter)
        try:
            if not self.is_set():
                await waiter[1].wait()
        finally:
            self._waiting.discard(waiter)


class Slots:
    """Counts the requests that are worked on, and refuses what is too much or comes too late.

    Args:
        most: how many requests may be worked on at the same time.

    Attributes:
        taken: how many are worked on.
        closing: set, from any thread, when the server is about to end.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self.closing = SharedEvent()

    def check(self) -> None:
        """Make sure that a slot is free.

        Raises:
            RequestRefusedError: all are taken, or the server is about to end.
        """
        if self.closing.is_set():
            raise shutting_down()
        if self.taken >= self.most:
            raise RequestRefusedError(
                f"The server is working on {self.taken} requests; it takes at most {self.most} at a time.",
                status=429,
                code="too_many_requests",
                hint="Try again in a moment.",
                headers=_RETRY_AFTER,
            )

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot for the `with` block.

        Raises:
            RequestRefusedError: as in `check`.
        """
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


def shutting_down() -> RequestRefusedError:
    """The error for clients while the server ends."""
    return RequestRefusedError(
        "The server is shutting down.", status=503, code="shutting_down", hint="Try again.", headers=_RETRY_AFTER
    )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request, which has not been read yet.

    Raises:
        RequestRefusedError: the body has too many bytes, or takes too long.
        ClientDisconnect: the client left before its end.
    """
    too_large = RequestRefusedError(
        f"The body of the request has more than {limits.max_body_bytes} bytes.", status=413, code="request_too_large"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.max_body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError:
        raise RequestRefusedError(
            f"The body of the request has not arrived within {limits.max_body_seconds:g} s.",
            status=408,
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)
