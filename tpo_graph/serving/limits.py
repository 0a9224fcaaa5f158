"""What one server takes on: bytes a request, runs at the same time, candidates and steps a run."""

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive

from tpo_graph.errors import ConfigurationError
from tpo_graph.serving.responses import RequestRefusedError

# Work that stops when nobody waits for its result any more.

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  # it is how an end is told, not a failure
    """What was waited for happened before the work was done."""


async def unless(happens: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T]) -> T:  # Any: what they are sent
    """The result of `work`, which is cancelled as soon as `happens` is over.

    Raises:
        Stopped: `happens` was over first.
        Exception: what either of them raises.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(happens)
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            waiting.result()
            raise Stopped
        return working.result()
    finally:
        waiting.cancel()
        working.cancel()
        # the work has to end before its slot is given to another
        await asyncio.gather(working, waiting, return_exceptions=True)


class Signal:
    """An event that any event loop can wait for, and any thread can set; one of asyncio's belongs to one loop."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Let it happen, for good."""
        self._is_set = True
        for loop, event in tuple(self._waiting):
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
                loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """Wait until it happens."""
        mine = asyncio.get_running_loop(), asyncio.Event()
        self._waiting.add(mine)
        try:
            if not self._is_set:
                await mine[1].wait()
        finally:
            self._waiting.discard(mine)


async def disconnected(receive: Receive) -> None:
    """Wait until the client has left. The body of its request has to be read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


# API keys, compared in constant time.


class ApiKeys:
    """The keys that a server takes; none at all lets everybody in.

    Raises:
        ConfigurationError: a key is empty.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        given = list(keys)
        if not all(key.strip() for key in given):
            raise ConfigurationError("An API key is empty.", hint="Leave it out, or give one of some length.")
        # digests have the same length, so that a comparison does not tell that of a key
        self._digests = [_digest(key.strip().encode()) for key in given]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Headers) -> None:
        """Let a request in, or not.

        Raises:
            RequestRefusedError: it has no key that is known.
        """
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))  # the bytes that came: Starlette reads headers so
        # all are compared, whichever fits
        fits = [hmac.compare_digest(given, each) for each in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            raise RequestRefusedError(
                "Incorrect API key provided." if key else "No API key provided.",
                status=401,
                code="invalid_api_key",
                hint="Send it as the header Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


_RETRY_AFTER = {"Retry-After": "1"}


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_body_bytes: bytes of a request's body at most.
        max_concurrency: requests that are worked on at the same time; more are refused with 429.
        max_n: N at most, wherever a client says it.
        max_depth: D at most, likewise.
        max_body_seconds: how long a body may take to arrive.
        keep_alive_seconds: how long a stream may be silent before it gets a comment, so that proxies keep it open.

    Raises:
        ConfigurationError: one is not above 0 (`max_depth` may be 0).
    """

    max_body_bytes: int = 20 * 1024 * 1024
    max_concurrency: int = 64
    max_n: int = 64
    max_depth: int = 20
    max_body_seconds: float = 60.0
    keep_alive_seconds: float = 10.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            # a server for best of N alone has no steps
            if value < 0 or (value == 0 and each.name != "max_depth"):
                raise ConfigurationError(f"The limit {each.name}={value!r} is too small: it has to be above 0.")

    def allow(self, settings: Mapping[str, Any]) -> bool:  # Any: values of settings
        """Whether N and D of these settings are within the limits."""
        return bool(settings.get("n", 0) <= self.max_n and settings.get("depth", 0) <= self.max_depth)


class Slot:
    """A place among the requests that are worked on."""

    def __init__(self, slots: "Slots") -> None:
        self._slots = slots
        self._held = True

    def release(self) -> None:
        """Give it back, before the last byte goes out: who has an answer may ask again at once."""
        if self._held:
            self._held = False
            self._slots.taken -= 1


class Slots:
    """Counts the requests that are worked on, and refuses those that are too many or come too late.

    Attributes:
        taken: how many are worked on.
        closing: set when the server is about to end, from any thread.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self.closing = Signal()

    def check(self) -> None:
        """Make sure that there is a slot.

        Raises:
            RequestRefusedError: there is none.
        """
        if self.closing.is_set():
            raise going_down()
        if self.taken >= self.most:
            raise RequestRefusedError(
                f"The server works on {self.taken} requests, and {self.most} is the most that it takes at a time.",
                status=429,
                code="too_many_requests",
                hint="Try again in a moment.",
                headers=_RETRY_AFTER,
            )

    @contextmanager
    def one(self) -> Iterator[Slot]:
        """A slot for the `with` block at most.

        Raises:
            RequestRefusedError: there is none.
        """
        self.check()
        self.taken += 1
        slot = Slot(self)
        try:
            yield slot
        finally:
            slot.release()


def going_down() -> RequestRefusedError:
    """What clients are told while the server ends."""
    return RequestRefusedError(
        "The server is shutting down.", status=503, code="shutting_down", hint="Try again.", headers=_RETRY_AFTER
    )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        RequestRefusedError: it has too many bytes, or takes too long.
        ClientDisconnect: the client left before its end.
    """
    try:
        async with asyncio.timeout(limits.max_body_seconds):
            return await _body(request, limits.max_body_bytes)
    except TimeoutError:
        raise RequestRefusedError(
            f"The body of the request has not arrived within {limits.max_body_seconds:g} s.",
            status=408,
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None


async def _body(request: Request, most: int) -> bytes:
    told = request.headers.get("content-length", "")
    length = int(told) if told.isdecimal() else 0
    body = bytearray()
    if length <= most:
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                break
        else:
            return bytes(body)
    raise RequestRefusedError(
        f"The body of the request has more than {most} bytes.", status=413, code="request_too_large"
    )
