"""The process around the app: its socket, its log, and an end that lets requests finish."""

import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tpo_graph._private_api import graceful_server
from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.policies.providers import Policy
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.run_parts import ModelStore
from tpo_graph.serving.backends import Backends
from tpo_graph.serving.call import ModelName, listed_names
from tpo_graph.serving.chat import ChatEndpoint
from tpo_graph.serving.limits import ApiKeys, Limits, Slots
from tpo_graph.serving.metrics import Metrics
from tpo_graph.serving.responses import RequestRefusedError, error_response, unexpected
from tpo_graph.settings import TPOSettings

# The app: its routes, and what they share.


def create_app(
    policies: Mapping[str, Policy | str],
    reward: RewardModel | str,
    *,
    critic: Policy | str | None = None,
    prompts: PromptPack | str | Path | None = None,
    settings: TPOSettings | None = None,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    models: ModelStore | None = None,
) -> Starlette:
    """An ASGI app that serves TPO as OpenAI's API: to be run by any ASGI server, or mounted in another app.

    Example:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> app = create_app({"scripted": ScriptedChatModel(["a"])}, TableReward({"a": 1.0}))
        >>> [route.path for route in app.routes]
        ['/v1/chat/completions', '/v1/models', '/v1/models/{name:path}', '/health', '/metrics']

    Args:
        policies: chat models, or names that `load_policy` takes, by the id that clients know them by (a model name
            is `RECIPE` or `RECIPE/ID`); the first is the default.
        reward: a reward model, or a name that `load_reward` takes.
        critic: writes loss and gradient: a chat model or a name; None for the policy of the request.
        prompts: see `build_tpo_graph`.
        settings: defaults of every request; None reads the `TPO_*` variables.
        api_keys: one of these has to come with every request but `/health`; none lets everybody in.
        limits: what the server takes on; None for the defaults.
        models: what loads the names; `shared_models` of `tpo_graph.run_parts` has each once for several apps.

    Returns:
        The app. Its `state.slots` tells how many requests are worked on; its `closing` is an event that ends them.

    Raises:
        ConfigurationError: there is no policy, one of the parts is none, or a key is empty.
    """
    limits = limits or Limits()
    backends = Backends(policies, reward, critic=critic, prompts=prompts, settings=settings, models=models)
    keys, slots, metrics = ApiKeys(api_keys), Slots(limits.max_concurrency), Metrics()
    created = int(time.time())

    def described(name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": created, "owned_by": "tpo_graph"}

    async def all_models(request: Request) -> Response:
        keys.check(request.headers)
        names = listed_names(backends.policies, limits)
        return JSONResponse({"object": "list", "data": [described(name) for name in names]})

    async def model(request: Request) -> Response:
        keys.check(request.headers)
        name = request.path_params["name"]
        ModelName.parse(name, backends.policies)
        return JSONResponse(described(name))

    async def health(_: Request) -> Response:
        closing = slots.closing.is_set()
        told = {"status": "closing" if closing else "ok", "in_flight": slots.taken, "max_concurrency": slots.most}
        return JSONResponse(told, 503 if closing else 200)

    async def exposed(request: Request) -> Response:
        keys.check(request.headers)
        return metrics.exposed()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatEndpoint(backends, keys, limits, slots, metrics), methods=["POST"]),
            Route("/v1/models", all_models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", exposed),
        ],
        exception_handlers={TPOError: _ours, HTTPException: _of_starlette, Exception: _any_other},
    )
    app.state.slots = slots
    return app


async def _ours(_: Request, error: Exception) -> Response:
    return error_response(error) if isinstance(error, TPOError) else error_response(unexpected())


async def _of_starlette(request: Request, error: Exception) -> Response:
    """No such path, or no such method."""
    if not isinstance(error, HTTPException):
        return error_response(unexpected())
    said = f"{request.method} {request.url.path}: {error.detail}."
    return error_response(RequestRefusedError(said, status=error.status_code, headers=error.headers))


async def _any_other(_: Request, error: Exception) -> Response:
    # Starlette raises it again, for the server's log
    del error
    return error_response(unexpected())


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
        server = graceful_server(config, grace_seconds=grace_seconds, end_grace=app.state.slots.closing.set)
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        return  # uvicorn raises the signal again when it has ended, and ending is what it was told


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
