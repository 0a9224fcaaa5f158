"""A real OpenAI-compatible chat server on loopback that follows a script and records every request."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Fault = Literal["400", "429", "500", "401", "404", "hang", "drop", "malformed", "null choices", "no choices"]
T = TypeVar("T")
Answer = Callable[["ChatRequest", int], str | None]
"""The text of one completion, from the request and the running number of the completion; None for a null content."""

_STATUS_FAULTS = {
    "400": (400, "The content was flagged"),
    "429": (429, "Rate limit reached for requests"),
    "500": (500, "The server had an error"),
    "401": (401, "Incorrect API key provided"),
    "404": (404, "The model does not exist"),
}


@dataclass(frozen=True)
class ChatRequest:
    """One request as the server received it."""

    raw: bytes
    body: dict[str, Any]
    headers: dict[str, str]
    peer: tuple[str, int]

    @property
    def n(self) -> int:
        return self.body.get("n") or 1

    @property
    def text(self) -> str:
        """All messages as one text."""
        contents = [message["content"] for message in self.body["messages"]]
        return "\n".join(content if isinstance(content, str) else json.dumps(content) for content in contents)


@dataclass
class ChatServer:
    """A server for a `with` block.

    Attributes:
        answer: writes the completions.
        faults: what goes wrong with the next requests, in order; None is nothing.
        always: what goes wrong with every request.
        most_n: completions a request may ask for.
        beyond_most_n: what it does with a request for more: "refuse" as a plain API does, "llama.cpp" in that
            server's words, or return "fewer".
        refuses_with: the status of a refusal.
        refused_knobs: request fields that it answers with 400, naming the field.
        refused_roles: roles of messages that its template does not have.
        finish_reason: of every completion, or by its text.
        tells_usage: whether it reports usage; a word counts as a token.
        counts_first_alone: whether its count of completion tokens leaves out all but the first, as llama.cpp's does.
        tokenizes: whether it has llama.cpp's `/tokenize`; a word is a token.
        seconds: how long each answer takes.
        models: what it says that it serves.
        requests: all chat requests, in order of arrival.
        headers: those of every request of any kind.
        statuses: of the answers, in order.
        disconnected: how many clients left while it hung.
        in_flight: requests that wait for their answer.
        most_in_flight: the most that ever did.
        asked: set by the first request.
    """

    answer: Answer = lambda request, number: f"text {number}"
    faults: list[Fault | None] = field(default_factory=list)
    always: Fault | None = None
    most_n: int | None = None
    beyond_most_n: Literal["refuse", "llama.cpp", "fewer"] = "refuse"
    refuses_with: int = 400
    refused_knobs: Sequence[str] = ()
    refused_roles: Sequence[str] = ()
    finish_reason: str | Callable[[str | None], str] = "stop"
    tells_usage: bool = True
    counts_first_alone: bool = False
    tokenizes: bool = False
    seconds: float = 0.0
    models: Sequence[str] = ("scripted",)
    requests: list[ChatRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    disconnected: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    asked: threading.Event = field(default_factory=threading.Event)
    _completions: int = 0

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]
        if self.tokenizes:
            routes.append(Route("/tokenize", self._tokenize, methods=["POST"]))
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_level="critical",
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            timeout_keep_alive=600,  # a busy machine must not close connections between two requests
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(10)

    def stop(self) -> None:
        """Let it end, which takes uvicorn 0.2 s, without waiting; it closes its socket then."""
        self._server.should_exit = self._server.force_exit = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request.body for request in self.requests]

    @property
    def asked_n(self) -> list[int]:
        """How many completions each request asked for."""
        return [request.n for request in self.requests]

    async def _models(self, http: Request) -> Response:
        self.headers.append(dict(http.headers))
        if self.always in _STATUS_FAULTS:
            return self._error(*_STATUS_FAULTS[self.always])
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _tokenize(self, http: Request) -> Response:
        return JSONResponse({"tokens": list(range(len((await http.json())["content"].split())))})

    async def _chat(self, http: Request) -> Response:
        raw = await http.body()
        request = ChatRequest(raw, json.loads(raw), dict(http.headers), tuple(http.client or ("", 0)))
        self.requests.append(request)
        self.headers.append(request.headers)
        self.asked.set()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._respond(http, request)
        finally:
            self.in_flight -= 1

    async def _respond(self, http: Request, request: ChatRequest) -> Response:
        fault = self.always or (self.faults.pop(0) if self.faults else None)
        if fault in _STATUS_FAULTS:
            return self._error(*_STATUS_FAULTS[fault])
        if fault == "hang":
            await self._hang(http)
        if fault == "drop":
            return _Dropped()
        if fault == "malformed":
            return Response(b'{"id": "x", "choi', media_type="application/json")
        for knob in self.refused_knobs:
            if knob in request.body:
                return self._error(400, f"Unsupported parameter: '{knob}' is not supported with this model.")
        for message in request.body["messages"]:
            if message["role"] in self.refused_roles:
                return self._error(self.refuses_with, f"{message['role'].title()} role not supported")
        n = request.n
        if self.most_n is not None and n > self.most_n:
            if self.beyond_most_n == "refuse":
                return self._error(self.refuses_with, "Only n = 1 is supported")
            if self.beyond_most_n == "llama.cpp":
                return self._error(400, f"Value must be between 1 <= value <= {self.most_n}, but got {n}")
            n = self.most_n
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return self._completion(request, n, fault)

    def _completion(self, request: ChatRequest, n: int, fault: Fault | None) -> Response:
        texts = []
        for _ in range(n):
            texts.append(self.answer(request, self._completions))
            self._completions += 1
        self.statuses.append(200)
        counted = texts[:1] if self.counts_first_alone else texts
        prompt, written = len(request.text.split()), sum(len((text or "").split()) for text in counted)
        usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        head = {"id": f"chat-{len(self.requests)}", "created": 0, "model": request.body["model"]}
        usage_field = {"usage": usage} if self.tells_usage else {}
        if request.body.get("stream"):
            return StreamingResponse(self._events(head, texts, usage_field), media_type="text/event-stream")
        choices: list[dict[str, Any]] | None = [
            {
                "index": place,
                "message": {"role": "assistant", "content": text},
                "finish_reason": self._finish(text),
                "logprobs": None,
            }
            for place, text in enumerate(texts)
        ]
        if fault == "null choices":
            choices = None
        if fault == "no choices":
            choices = []
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, **usage_field})

    async def _events(self, head: dict[str, Any], texts: Sequence[str | None], usage_field: dict[str, Any]):
        """Chunks of the choices in turn, as a batching server sends them."""
        pieces = [[(text or "")[at : at + 3] for at in range(0, len(text or ""), 3)] for text in texts]
        chunk = {**head, "object": "chat.completion.chunk"}
        for row in range(max(map(len, pieces), default=0)):
            for place, parts in enumerate(pieces):
                if row < len(parts):
                    delta = {"role": "assistant", "content": parts[row]}
                    yield _event({**chunk, "choices": [{"index": place, "delta": delta, "finish_reason": None}]})
        for place, text in enumerate(texts):
            end = {"index": place, "delta": {}, "finish_reason": self._finish(text)}
            yield _event({**chunk, "choices": [end]})
        yield _event({**chunk, "choices": [], **usage_field})
        yield "data: [DONE]\n\n"

    async def _hang(self, http: Request) -> None:
        while not self._server.should_exit:
            if await http.is_disconnected():
                self.disconnected += 1
                return
            await asyncio.sleep(0.01)

    def _finish(self, text: str | None) -> str:
        return self.finish_reason if isinstance(self.finish_reason, str) else self.finish_reason(text)

    def _error(self, status: int, message: str) -> Response:
        self.statuses.append(status)
        body = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
        return JSONResponse(body, status, headers={"Retry-After": "0"})


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


class _Dropped(Response):
    """A response that ends in the middle: the server closes the connection."""

    async def __call__(self, scope, receive, send):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id": "x"', "more_body": True})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
