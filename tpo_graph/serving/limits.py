"""What one server takes on: bytes a request, runs at the same time, candidates and steps a run."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from starlette.requests import Request

from tpo_graph.errors import ConfigurationError
from tpo_graph.serving.cancellation import Signal
from tpo_graph.serving.errors import RequestRefusedError

__all__ = ["Limits", "Slot", "Slots", "going_down", "read_body"]

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
