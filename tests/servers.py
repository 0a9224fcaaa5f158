"""Servers on loopback: a chat server for the tests of the package, and a port that many small servers share."""

import socket
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

import uvicorn
from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tpo_graph.testing import ErrorAnswer, FaultServer, ServedRequest
from tpo_graph.testing.fault_server import error_response
from tpo_graph.testing.served_request import ROLES

ChatRequest = ServedRequest
T = TypeVar("T")

_FAULTS = {"drop": "cut_off", "malformed": "half_json", "null choices": "null_choices", "no choices": "no_choices"}


class ChatServer(FaultServer):
    """A fault server that writes `text 0`, `text 1` and so on, and can do what llama.cpp's does.

    Attributes:
        faults: what goes wrong with the next requests, in order; None is nothing.
        always: what goes wrong with every request.
        refuses_with: the status of refusals of more completions and of roles.
        refused_roles: roles of messages that its template does not have.
        counts_first_alone: whether its count of completion tokens leaves out all but the first, as llama.cpp's does.
        tokenizes: whether it has llama.cpp's `/tokenize`.
        seconds: how long each answer takes.
        headers: those of every request of any kind.
    """

    def __init__(
        self,
        answer=lambda request, number: f"text {number}",
        *,
        faults: Sequence[str | None] = (),
        always: str | None = None,
        most_n: int | None = None,
        beyond_most_n: str = "refuse",
        refuses_with: int = 400,
        refused_knobs: Sequence[str] = (),
        refused_roles: Sequence[str] = (),
        tells_usage: bool = True,
        counts_first_alone: bool = False,
        tokenizes: bool = False,
        seconds: float = 0.0,
        models: Sequence[str] = ("scripted",),
        **options: Any,
    ) -> None:
        refusal = ErrorAnswer(refuses_with, "Only n = 1 is supported")
        super().__init__(
            answer,
            script=[_FAULTS.get(fault, fault) for fault in faults],
            faults={_FAULTS.get(always, always): 1.0} if always else {},
            most_n=most_n,
            beyond_most_n=refusal if beyond_most_n == "refuse" else beyond_most_n,
            refused_fields=refused_knobs,
            roles=[role for role in ROLES if role not in refused_roles],
            role_refusal=ErrorAnswer(refuses_with, f"{''.join(refused_roles[:1]).title()} role not supported"),
            usage=tells_usage,
            first_token=seconds,
            models=models,
            **options,
        )
        self.always, self.counts_first_alone, self.tokenizes = always, counts_first_alone, tokenizes
        self.headers: list[dict[str, str]] = []

    def _routes(self):
        return [*super()._routes(), *([web.post("/tokenize", self._tokenize)] if self.tokenizes else [])]

    async def _tokenize(self, http: web.Request) -> web.Response:
        return web.json_response({"tokens": list(range(len((await http.json())["content"].split())))})

    async def _list_models(self, http: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in http.headers.items()})
        if self.always in ("401", "500"):
            return error_response(ErrorAnswer(int(self.always)))
        return await super()._list_models(http)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in http.headers.items()})
        return await super()._chat(http)

    def _completion(self, request, fault):
        completion = super()._completion(request, fault)
        if self.counts_first_alone:
            completion["usage"]["completion_tokens"] = len(completion["choices"][0]["message"]["content"].split())
        return completion


class Host:
    """A port on loopback for many servers, each under a path of its own: starting one for each test takes long."""

    def __init__(self) -> None:
        self._servers: dict[str, Any] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        routes = [Route("/{name}/{path:path}", self._dispatch, methods=["POST", "GET"])]
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="critical", lifespan="off", ws="none", loop="asyncio", http="h11"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def add(self, server: T) -> T:
        """Serve it: its `handle(path, http)` answers, and its `url` is set."""
        name = f"server-{len(self._servers)}"
        self._servers[name] = server
        server.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/{name}"
        return server

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    async def _dispatch(self, http: Request) -> Response:
        return await self._servers[http.path_params["name"]].handle(f"/{http.path_params['path']}", http)
