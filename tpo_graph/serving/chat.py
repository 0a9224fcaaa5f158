"""`/v1/chat/completions`."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tpo_graph.errors import TPOError
from tpo_graph.langchain.run import STEP_EVENT
from tpo_graph.serving.backends import Backends
from tpo_graph.serving.call import Call, ModelName
from tpo_graph.serving.limits import ApiKeys, Limits, Slot, Slots, Stopped, disconnected, going_down, read_body, unless
from tpo_graph.serving.metrics import Metrics, Observation
from tpo_graph.serving.requests import ChatRequest
from tpo_graph.serving.responses import (
    Completion,
    RequestRefusedError,
    error_object,
    error_response,
    status_for,
    unexpected,
)
from tpo_graph.types import StepRecord

# Server-sent events: comments while a run works, then the answer in chunks.

Progress: TypeAlias = Callable[[StepRecord], None]
Run: TypeAlias = Callable[[Progress], Coroutine[Any, Any, AIMessage]]  # Any: what a coroutine is sent

DONE = "[DONE]"


class Steps(AsyncCallbackHandler):
    """Hands the steps of a run on as they are done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def on_custom_event(self, name: str, data: Any, **_: Any) -> None:  # Any: LangChain's own
        """Take a step."""
        if name == STEP_EVENT:
            self._progress(data)


async def happenings(run: Run, *, silence: float) -> AsyncGenerator[StepRecord | AIMessage | None, None]:
    """The steps of a run as they are done, None after each silence of so many seconds, and the answer last.

    Raises:
        Exception: what `run` raises.
    """
    steps: asyncio.Queue[StepRecord] = asyncio.Queue()
    work = asyncio.ensure_future(run(steps.put_nowait))
    try:
        while not work.done() or not steps.empty():
            step = asyncio.ensure_future(steps.get())
            await asyncio.wait((work, step), timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                yield step.result()
                continue
            step.cancel()
            if not work.done():
                yield None
        yield work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


class EventSender:
    """Sends events over an ASGI connection."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def begin(self) -> None:
        """Send the head of the response."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def data(self, document: Any) -> None:  # Any: JSON, or the word at the end
        """Send one event."""
        text = document if document == DONE else json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        await self._write(f"data: {text}\n\n")

    async def comment(self, text: str) -> None:
        """Send a comment, which clients leave out: it keeps the connection alive, and tells people how far it is."""
        await self._write(f": {text}\n\n")

    async def end(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})


_log = logging.getLogger(__name__)
_CLIENT_LEFT = 499  # nginx's word for it; nobody sees the response


class _WayBack:
    """ASGI's `send`, which remembers whether a response has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


@dataclass(frozen=True)
class _Exchange:
    """One request and the way back.

    Attributes:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        slot: what the request holds while it is worked on.
        seen: what metrics will tell of it.
    """

    scope: Scope
    receive: Receive
    send: Send
    slot: Slot
    seen: Observation


@dataclass(frozen=True)
class ChatEndpoint:
    """An ASGI app for one path: it watches for the client from the request to the last byte."""

    backends: Backends
    keys: ApiKeys
    limits: Limits
    slots: Slots
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        way_back = _WayBack(send)
        with self.metrics.request() as seen:
            try:
                request = Request(scope, receive)
                self.keys.check(request.headers)
                _check_content_type(request)
                # before there is a body to read; a slot is taken when it is there, for it may never come
                self.slots.check()
                chat = ChatRequest.parse(await read_body(request, self.limits))
                with self.slots.one() as slot:
                    exchange = _Exchange(scope, receive, way_back, slot, seen)
                    await unless(disconnected(receive), self._serve(chat, exchange))
            except (Stopped, ClientDisconnect):
                seen.status = _CLIENT_LEFT
                if not way_back.begun:
                    # nobody reads it, and middleware around this app takes no response for a defect
                    await Response(status_code=_CLIENT_LEFT)(scope, receive, send)
            except Exception as error:  # whatever it is, a client gets JSON
                told = _told(error)
                seen.status = status_for(told)
                if not way_back.begun:
                    await error_response(told)(scope, receive, send)

    async def _serve(self, chat: ChatRequest, exchange: _Exchange) -> None:
        name = ModelName.parse(chat.model, self.backends.policies)
        seen = exchange.seen
        seen.mode, seen.policy = name.mode, name.policy
        call = Call.of(chat, name, await self.backends.model(name.policy), self.limits)

        async def run(progress: Progress) -> AIMessage:
            message = await self._answer(call, progress)
            self.metrics.answered(seen, message)
            return message

        completion = Completion(chat.model)
        if chat.stream:
            await self._stream(run, completion, exchange, with_usage=chat.wants_usage)
            return
        response = JSONResponse(completion.whole(await run(lambda _: None)))
        seen.status = 200
        exchange.slot.release()
        await response(exchange.scope, exchange.receive, exchange.send)

    async def _stream(self, run: Run, completion: Completion, exchange: _Exchange, *, with_usage: bool) -> None:
        """Send the answer as events. What fails before the first one is an HTTP error; later it is an event."""
        events = EventSender(exchange.send)
        async with aclosing(happenings(run, silence=self.limits.keep_alive_seconds)) as happened:
            first = await anext(happened)
            exchange.seen.status = 200
            await events.begin()
            try:
                await _send(first, completion, with_usage, events)
                async for each in happened:
                    await _send(each, completion, with_usage, events)
            except Exception as error:  # as in `__call__`
                told = _told(error)
                exchange.seen.status = status_for(told)
                await events.data(error_object(told))
        exchange.slot.release()
        await events.data(DONE)
        await events.end()

    async def _answer(self, call: Call, progress: Progress) -> AIMessage:
        """The answer, unless the server ends first."""
        config: RunnableConfig = {"callbacks": [Steps(progress)]}
        try:
            message = await unless(
                self.slots.closing.wait(), call.model.ainvoke(call.messages, config, **call.arguments)
            )
        except Stopped:
            raise going_down() from None
        call.check(message)
        return message


async def _send(
    happened: StepRecord | AIMessage | None, completion: Completion, with_usage: bool, events: EventSender
) -> None:
    if isinstance(happened, AIMessage):
        for chunk in completion.chunks(happened, with_usage=with_usage):
            await events.data(chunk)
    elif happened is None:
        await events.comment("working")
    else:
        await events.comment(f"step {happened['step']}: best reward {happened['best_reward']:+.4g}")


def _told(error: Exception) -> TPOError:
    """The error that a client is told; the log gets what is a defect."""
    if isinstance(error, TPOError):
        return error
    _log.error("A request failed.", exc_info=error)
    return unexpected()


def _check_content_type(request: Request) -> None:
    """Take JSON that is called so: a page of any site may make a browser send other types to this server."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise RequestRefusedError(
            f"The content type is {given!r}, not 'application/json'.", status=415, code="unsupported_content_type"
        )
