"""The app: its routes, and what they share."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tpo_graph.errors import TPOError
from tpo_graph.loaded_models import LoadedModels
from tpo_graph.prompt_store import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.sampling import Policy
from tpo_graph.serving.backends import Backends
from tpo_graph.serving.chat import ChatEndpoint
from tpo_graph.serving.errors import RequestRefusedError, error_response, unexpected
from tpo_graph.serving.keys import ApiKeys
from tpo_graph.serving.limits import Limits, Slots
from tpo_graph.serving.metrics import Metrics
from tpo_graph.serving.recipes import ModelName, listed_names
from tpo_graph.settings import TPOSettings

__all__ = ["create_app"]


def create_app(
    policies: Mapping[str, Policy | str],
    reward: RewardModel | str,
    *,
    critic: Policy | str | None = None,
    prompts: PromptPack | str | Path | None = None,
    settings: TPOSettings | None = None,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    models: LoadedModels | None = None,
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
        models: what loads the names; `shared_models` of `tpo_graph.loaded_models` has each once for several apps.

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
