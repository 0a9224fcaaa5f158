"""The process around the app: its socket, its log, and an end that lets requests finish."""

import asyncio
import ipaddress
import socket
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tpo_graph.errors import ConfigurationError
from tpo_graph.serving.limits import Slots

__all__ = ["bind", "is_loopback", "refuse_other_names", "serve"]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_other_names(app: Starlette, host: str) -> None:
    """Answer only to the names of this machine, for a server that asks for no key.

    A page that a browser has open may point a name of its own at this machine, and then ask as if it came from here.
    """
    names = ["localhost", "127.0.0.1", "[::1]", "::1", host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes one that is free.

    Raises:
        ConfigurationError: the address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(
            f"The address {host}:{port} can't be served at: {why}.",
            hint="Choose another with --host and --port; --port 0 takes a port that is free.",
        ) from error


def serve(app: Starlette, listening: socket.socket, *, grace_seconds: float, log_requests: bool) -> None:
    """Serve until Ctrl-C or SIGTERM; a second one ends the grace.

    Args:
        app: from `create_app`.
        listening: from `bind`.
        grace_seconds: how long requests may go on when the server ends; then they are cancelled and told so.
        log_requests: write a line for each request to standard error.
    """
    config = uvicorn.Config(
        app, log_config=_log_config(log_requests), access_log=log_requests, lifespan="off", server_header=False
    )
    try:
        _Server(config, app.state.slots, grace_seconds).run(sockets=[listening])
    except KeyboardInterrupt:
        return  # uvicorn raises the signal again when it has ended, and ending is what it was told


class _Server(uvicorn.Server):
    """Lets requests finish. Those that may not get an answer of ours; uvicorn would cut them off."""

    def __init__(self, config: uvicorn.Config, slots: Slots, grace_seconds: float) -> None:
        super().__init__(config)
        self._slots = slots
        self._grace_seconds = grace_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.get_running_loop().call_later(self._grace_seconds, self._slots.closing.set)
        await super().shutdown(sockets)
        closing.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second ends the grace, and a third does not wait at all."""
        if self.should_exit and self._loop is not None and not self._slots.closing.is_set():
            self._loop.call_soon_threadsafe(self._slots.closing.set)
        else:
            super().handle_exit(sig, frame)


def _log_config(log_requests: bool) -> dict[str, Any]:  # Any: as the logging module has it
    """All to standard error: results are what belongs on standard output, and a server has none."""
    level = {"level": "WARNING", "handlers": ["stderr"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "loggers": {
            "uvicorn": level,
            "uvicorn.access": {**level, "level": "INFO" if log_requests else "WARNING"},
            "tpo_graph.serving": level,
        },
    }
