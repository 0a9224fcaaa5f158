"""An OpenAI-compatible chat server on loopback that goes wrong on purpose, as often as it is told."""

import asyncio
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from tpo_graph.errors import ConfigurationError
from tpo_graph.testing.fault_kinds import (
    Choices,
    ErrorAnswer,
    Fault,
    error_answer,
    events_of,
    faulty_body,
    faulty_choices,
)
from tpo_graph.testing.served_request import ROLES, ServedRequest, marked_text, objection, tokens_of

if TYPE_CHECKING:
    from aiohttp import web

_NO_SYSTEM_ROLE = ErrorAnswer(400, "System role not supported")
_ONE_AT_A_TIME = ErrorAnswer(400, "Only n = 1 is supported", param="n")
_BYTES_AT_MOST = 1 << 26
Answer: TypeAlias = Callable[[ServedRequest, int], str | None]


@dataclass
class FaultServer:
    """An OpenAI-compatible chat server for a `with` block, in a thread of this process.

    It refuses what real servers refuse: unknown fields and roles, values out of range, empty contents. Which requests
    fail is drawn from the seed, the request's body and how often that has come, so that the same requests have the
    same faults in whatever order they arrive.

    Examples:
        >>> from langchain_openai import ChatOpenAI
        >>> with FaultServer(lambda request, number: "fine", script=["502"]) as server:
        ...     model = ChatOpenAI(model="any", base_url=server.url, api_key="any", max_retries=1)
        ...     model.invoke("hi").text, server.statuses
        ('fine', [502, 200])

    Attributes:
        answer: the text of one completion, from the request and the running number of the completion (from 0, over
            all requests), None for a null text; without it, `marked_text` writes.
        faults: how often each fault happens, as in `{"half_json": 0.05, "disconnect": 0.2}`; see `FAULT_KINDS`.
        script: what happens to the next requests, in order; None is nothing. It comes before `faults`.
        seed: of the faults drawn.
        first_token: seconds to the first token.
        per_token: seconds for each token of the longest completion. A word is a token.
        trickle: seconds between two bytes of a `trickle`.
        strict: whether it looks at fields, roles, values and contents at all.
        roles: the roles that its template knows; `("user", "assistant")` is a template without a system role.
        role_refusal: the answer to another role.
        alternating: whether user and assistant must take turns, as many templates want it.
        most_n: completions that a request may ask for.
        beyond_most_n: the answer to a request for more: your own, `llama.cpp`'s words, or `fewer`, which is `most_n`.
        refused_fields: fields that it does not take, with the answer to each; of a plain sequence, OpenAI's words.
        ignored_fields: fields that it takes and does not heed, as Ollama does `max_completion_tokens`.
        models: what it says that it serves; it takes any name.
        api_key: what a request must bear.
        finish_reason: of every whole completion, or by its text.
        usage: whether it reports tokens.
        keep_alive: seconds after which it closes an idle connection.
        requests: all chat requests, in order of arrival.
        injected: how often each fault happened.
        in_flight: requests that wait for their answer.
        most_in_flight: the most that ever did.
        disconnected: how many clients left before their answer was sent.
        asked: set by the first request.
    """

    answer: Answer | None = None
    faults: Mapping[str, float] | Mapping[Fault, float] = field(default_factory=dict)
    script: list[Fault | None] = field(default_factory=list)
    seed: int = 0
    first_token: float = 0.0
    per_token: float = 0.0
    trickle: float = 0.05
    strict: bool = True
    roles: Sequence[str] = ROLES
    role_refusal: ErrorAnswer = _NO_SYSTEM_ROLE
    alternating: bool = False
    most_n: int | None = None
    beyond_most_n: ErrorAnswer | Literal["llama.cpp", "fewer"] = _ONE_AT_A_TIME
    refused_fields: Mapping[str, ErrorAnswer] | Sequence[str] = ()
    ignored_fields: Sequence[str] = ()
    models: Sequence[str] = ("any",)
    api_key: str | None = None
    finish_reason: str | Callable[[str | None], str] = "stop"
    usage: bool = True
    keep_alive: float = 600.0
    requests: list[ServedRequest] = field(default_factory=list, init=False)
    injected: Counter[str] = field(default_factory=Counter, init=False)
    in_flight: int = field(default=0, init=False)
    most_in_flight: int = field(default=0, init=False)
    disconnected: int = field(default=0, init=False)
    asked: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        for fault in [*self.faults, *self.script]:
            if fault is not None:
                error_answer(fault)
        if sum(self.faults.values()) > 1 or min(self.faults.values(), default=0) < 0:
            raise ConfigurationError(f"The rates of faults must be 0 to 1 together, not {dict(self.faults)}.")
        self.script = list(self.script)
        self._completions = 0
        self._attempts: Counter[bytes] = Counter()

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(10)

    def stop(self) -> None:
        """Let it end without waiting for it: it closes its connections and its socket."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    @property
    def url(self) -> str:
        """Its address, to be used as `base_url`."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    @property
    def statuses(self) -> list[int | None]:
        """Of the answers, by request; None where there was none."""
        return [request.status for request in self.requests]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of all requests."""
        return [request.body for request in self.requests]

    @property
    def asked_n(self) -> list[int]:
        """How many completions each request asked for."""
        return [request.n for request in self.requests]

    def statistics(self) -> dict[str, Any]:
        """What happened so far, as JSON: requests by n, status and fault, and how many bodies took how many tries."""
        return {
            "requests": len(self.requests),
            "by_n": dict(sorted(Counter(self.asked_n).items())),
            "by_status": dict(Counter(str(status or "none") for status in self.statuses)),
            "faults": dict(self.injected),
            "bodies_by_tries": dict(sorted(Counter(self._attempts.values()).items())),
            "most_in_flight": self.most_in_flight,
            "disconnected": self.disconnected,
        }

    def _serve(self) -> None:
        from aiohttp import web

        async def serve() -> None:
            app = web.Application(client_max_size=_BYTES_AT_MOST)
            app.add_routes(self._routes())
            runner = web.AppRunner(
                app, access_log=None, handler_cancellation=True, keepalive_timeout=self.keep_alive, shutdown_timeout=0
            )
            await runner.setup()
            await web.SockSite(runner, self._socket).start()
            await self._stopping.wait()
            await runner.cleanup()

        try:
            self._loop.run_until_complete(serve())
        finally:
            self._loop.close()
            self._socket.close()

    def _routes(self) -> "list[web.RouteDef]":
        from aiohttp import web

        return [web.post("/v1/chat/completions", self._chat), web.get("/v1/models", self._list_models)]

    async def _list_models(self, _: "web.Request") -> "web.Response":
        from aiohttp import web

        models = [{"id": name, "object": "model"} for name in self.models]
        return web.json_response({"object": "list", "data": models})

    async def _chat(self, http: "web.Request") -> "web.StreamResponse":
        raw = await http.read()
        self._attempts[raw] += 1
        peer = http.transport.get_extra_info("peername") if http.transport else ("", 0)
        headers = {name.lower(): value for name, value in http.headers.items()}
        try:
            body = json.loads(raw)
        except ValueError:
            return error_response(ErrorAnswer(400, "We could not parse the JSON body of your request."))
        request = ServedRequest(len(self.requests), self._attempts[raw], raw, body, headers, peer)
        self.requests.append(request)
        self.asked.set()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._respond(http, request)
        except asyncio.CancelledError:
            self.disconnected += 1
            raise
        finally:
            self.in_flight -= 1

    async def _respond(self, http: "web.Request", request: ServedRequest) -> "web.StreamResponse":
        from aiohttp import web

        refusal = next(self._refusals(request), None)
        fault = None if refusal else self._next_fault(request)
        error = refusal or (error_answer(fault) if fault else None)
        if error:
            request.status = error.status
            return error_response(error)
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "disconnect" and http.transport:
            http.transport.abort()
            return web.Response()
        completion = self._completion(request, fault)
        choices = completion["choices"]
        tokens = max(len(tokens_of(choice["message"]["content"] or "")) for choice in choices)
        if self.first_token or self.per_token:
            await asyncio.sleep(self.first_token + (0 if request.body.get("stream") else self.per_token * tokens))
        request.status = 200
        if request.body.get("stream") or fault in ("cut_off", "trickle"):
            return await self._stream(http, request, completion, fault)
        body, content_type = faulty_body(fault, completion)
        return web.Response(body=body, content_type=content_type)

    async def _stream(
        self, http: "web.Request", request: ServedRequest, completion: Mapping[str, Any], fault: Fault | None
    ) -> "web.StreamResponse":
        """Send the answer in pieces; with a fault, only its beginning."""
        from aiohttp import web

        is_events = bool(request.body.get("stream"))
        body, content_type = faulty_body(fault, completion)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream" if is_events else content_type})
        await response.prepare(http)
        if fault == "trickle":
            while True:
                await response.write(b" ")
                await asyncio.sleep(self.trickle)
        pieces = [event.encode() for event in events_of(completion)] if is_events else [body]
        if fault == "cut_off":
            sent = b"".join(pieces)
            await response.write(sent[: len(sent) // 2])
            if http.transport:
                http.transport.close()
            return response
        if fault in ("half_json", "html", "empty_body", "invalid_utf8", "error_429", "error_500"):
            pieces = [b"data: " + body + b"\n\n"]
        for piece in pieces:
            await response.write(piece)
            if self.per_token:
                await asyncio.sleep(self.per_token)
        await response.write_eof()
        return response

    def _refusals(self, request: ServedRequest) -> Iterator[ErrorAnswer]:
        """What a server that is in order answers to a request that is not; the first counts."""
        body = request.body
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            yield ErrorAnswer(401)
        for name in self.refused_fields:
            if body.get(name) is not None:
                words = f"Unsupported parameter: '{name}' is not supported with this model."
                given = self.refused_fields[name] if isinstance(self.refused_fields, Mapping) else None
                yield given or ErrorAnswer(400, words, param=name)
        roles = [message.get("role") for message in body.get("messages") or []]
        if any(role in ROLES and role not in self.roles for role in roles):
            yield self.role_refusal
        turns = [role for role in roles if role in ("user", "assistant")]
        if self.alternating and turns != [("user", "assistant")[place % 2] for place in range(len(turns))]:
            yield ErrorAnswer(400, "Conversation roles must alternate user/assistant/user/assistant/...")
        if self.strict and (problem := objection(body)):
            yield problem
        if self.most_n is not None and request.n > self.most_n and self.beyond_most_n != "fewer":
            words = f"Value must be between 1 <= value <= {self.most_n}, but got {request.n}"
            yield ErrorAnswer(400, words) if self.beyond_most_n == "llama.cpp" else self.beyond_most_n

    def _next_fault(self, request: ServedRequest) -> Fault | None:
        fault: Fault | None = None
        if self.script:
            fault = self.script.pop(0)
        else:
            key = f"{self.seed}|{request.attempt}|".encode() + request.raw
            chance = random.Random(sha256(key).digest()).random()
            for kind, rate in self.faults.items():
                chance -= rate
                if chance < 0:
                    fault = kind
                    break
        if fault == "fewer" and request.n == 1:
            fault = None
        request.fault = fault
        if fault is not None:
            self.injected[fault if isinstance(fault, str) else f"{fault.status}:{fault.shape}"] += 1
        return fault

    def _completion(self, request: ServedRequest, fault: Fault | None) -> dict[str, Any]:
        body = {name: value for name, value in request.body.items() if name not in self.ignored_fields}
        cap = body.get("max_completion_tokens") or body.get("max_tokens")
        stops = body.get("stop") or []
        choices: Choices = []
        for index in range(min(request.n, self.most_n or request.n)):
            text = self.answer(request, self._completions) if self.answer else marked_text(request, index)
            self._completions += 1
            finish = self.finish_reason if isinstance(self.finish_reason, str) else self.finish_reason(text)
            if text:
                for stop in [stops] if isinstance(stops, str) else stops:
                    text = text.partition(stop)[0]
                if cap and len(tokens_of(text)) > cap:
                    text, finish = "".join(tokens_of(text)[:cap]), "length"
            message = {"role": "assistant", "content": text}
            choices.append({"index": index, "message": message, "finish_reason": finish, "logprobs": None})
        choices = faulty_choices(fault, choices)
        read = len(tokens_of(request.text))
        written = sum(len(tokens_of(choice["message"]["content"] or "")) for choice in choices)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {
            "id": f"chat-{request.number}",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model"),
            "choices": choices,
            **({"usage": usage} if self.usage else {}),
        }


def error_response(error: ErrorAnswer) -> "web.Response":
    """The answer as aiohttp sends it."""
    from aiohttp import web

    headers = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:g}"}
    return web.Response(body=error.body, status=error.status, content_type=error.content_type, headers=headers)
