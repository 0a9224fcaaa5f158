"""The app, and the process that `tpo-graph serve` runs it in."""

import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from openai.types import Model
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
from tpo_graph.run_parts import ModelStore, RunParts
from tpo_graph.serving.call import ModelName, listed_names
from tpo_graph.serving.chat import ChatEndpoint
from tpo_graph.serving.errors import RequestRefusedError, error_response
from tpo_graph.serving.limits import ApiKeys, Limits, Slots
from tpo_graph.serving.metrics import Metrics
from tpo_graph.settings import TPOSettings
from tpo_graph.types import JSONObject, Node


def create_app(
    policies: Mapping[str, Policy | str],
    reward: RewardModel | str,
    *,
    critic: Policy | str | None = None,
    prompts: PromptPack | str | Path | None = None,
    nodes: Mapping[str, Node] | str | None = None,
    settings: TPOSettings | None = None,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    models: ModelStore | None = None,
) -> Starlette:
    """An ASGI app that serves TPO as OpenAI's API: for any ASGI server, or to be mounted in another app.

    Examples:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> app = create_app({"scripted": ScriptedChatModel(["a"])}, TableReward({"a": 1.0}))
        >>> [route.path for route in app.routes]
        ['/v1/chat/completions', '/v1/models', '/v1/models/{name:path}', '/health', '/metrics']

    Args:
        policies: chat models, or names for `load_policy`, by the id that clients know them by (a model name is
            `RECIPE` or `RECIPE/ID`); the first is the default.
        reward: a reward model, or a name for `load_reward`.
        critic: the chat model that writes loss and gradient, or its name; None for the policy of the request.
        prompts: a prompt pack, its name or its folder; None for the one that suits the policy.
        nodes: replacements of nodes by name, or the name of a variant such as `fused-critique`.
        settings: defaults of every request; None reads the `TPO_*` variables.
        api_keys: every request but those to `/health` must have one of these; without any, everybody may ask.
        limits: what the server accepts; None for the defaults.
        models: where models by name are loaded; `shared_models` of `tpo_graph.run_parts` shares them between apps.

    Returns:
        The app. Its `state.slots` counts the requests that are worked on; setting its `closing` ends them.

    Raises:
        ConfigurationError: there is no policy, a part is of the wrong kind, or a key is empty.
    """
    if not policies:
        raise ConfigurationError("There is no policy to serve.", hint='For example {"gpt": "openai:gpt-4o-mini"}.')
    limits, settings, models = limits or Limits(), settings or TPOSettings.load(), models or ModelStore()
    parts = {
        name: RunParts(
            policy=policy, reward=reward, critic=critic, prompts=prompts, nodes=nodes, settings=settings, models=models
        )
        for name, policy in policies.items()
    }
    keys, slots, metrics = ApiKeys(api_keys), Slots(limits.max_concurrency), Metrics()
    created = int(time.time())

    def described(name: str) -> JSONObject:
        return Model(id=name, object="model", created=created, owned_by="tpo_graph").to_dict()

    async def all_models(request: Request) -> Response:
        keys.check(request.headers)
        names = listed_names(list(parts), limits)
        return JSONResponse({"object": "list", "data": [described(name) for name in names]})

    async def one_model(request: Request) -> Response:
        keys.check(request.headers)
        name = request.path_params["name"]
        ModelName.parse(name, list(parts))
        return JSONResponse(described(name))

    async def health(_: Request) -> Response:
        closing = slots.closing.is_set()
        status = {"status": "closing" if closing else "ok", "in_flight": slots.taken, "max_concurrency": slots.most}
        return JSONResponse(status, 503 if closing else 200)

    async def all_metrics(request: Request) -> Response:
        keys.check(request.headers)
        return metrics.response()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatEndpoint(parts, keys, limits, slots, metrics), methods=["POST"]),
            Route("/v1/models", all_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
            Route("/metrics", all_metrics),
        ],
        # what is not ours, Starlette raises again after the response, for the server's log
        exception_handlers={TPOError: _failed, HTTPException: _failed, Exception: _failed},
    )
    app.state.slots = slots
    return app


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # Starlette's: no such path, or no such method
        message = f"{request.method} {request.url.path}: {error.detail}."
        error = RequestRefusedError(message, status=error.status_code, headers=error.headers)
    return error_response(error)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allow_only_local_hosts(app: Starlette, host: str) -> None:
    """Answer only to the names of this machine, for a server that asks for no key.

    A page in a browser may point a name of its own at this machine, and then ask as if it came from here. `host`, where
    the app is served, is allowed as well.
    """
    names = ["localhost", "127.0.0.1", "[::1]", "::1", host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes one that is free.

    Raises:
        ConfigurationError: the address can't be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(
            f"The server can't use the address {host}:{port}: {reason}.",
            hint="Choose another with --host and --port; --port 0 takes a port that is free.",
        ) from error


def serve(app: Starlette, listening: socket.socket, *, grace_seconds: float, log_requests: bool) -> None:
    """Serve until Ctrl-C or SIGTERM; a second one ends the grace period.

    Args:
        app: from `create_app`.
        listening: from `bind`.
        grace_seconds: how long requests may go on when the server ends; then they are cancelled with a 503.
        log_requests: write a line for each request to standard error.
    """
    # everything goes to standard error: standard output is for results, and a server has none
    level = {"level": "WARNING", "handlers": ["stderr"], "propagate": False}
    log_config: JSONObject = {
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
    config = uvicorn.Config(app, log_config=log_config, access_log=log_requests, lifespan="off", server_header=False)
    server = graceful_server(config, grace_seconds=grace_seconds, end_grace=app.state.slots.closing.set)
    # uvicorn raises the signal again when it has ended, but Ctrl-C asked for no more than the end
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
