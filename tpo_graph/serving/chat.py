"""`/v1/chat/completions`: one request from its first byte to the last one of its answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.langchain.run import STEP_EVENT
from tpo_graph.run_parts import RunParts
from tpo_graph.serving.call import ModelName, call_arguments, check_answer
from tpo_graph.serving.errors import RequestRefusedError, error_response, status_and_body
from tpo_graph.serving.limits import ApiKeys, Limits, Slots, read_body, shutting_down
from tpo_graph.serving.metrics import Metrics, Observation
from tpo_graph.serving.requests import ChatRequest
from tpo_graph.serving.responses import chat_completion, chat_completion_chunks
from tpo_graph.types import Options, StepRecord

T = TypeVar("T")

_CLIENT_LEFT = 499  # nginx's status for it; nobody sees the response
_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


@dataclass(frozen=True)
class ChatEndpoint:
    """An ASGI app for the path of chat completions.

    Attributes:
        policies: what runs are made of, by the id of the policy; the first is the default.
        keys: who may ask.
        limits: what a request may ask for.
        slots: counts the requests that are worked on.
        metrics: counts everything else.
    """

    policies: Mapping[str, RunParts]
    keys: ApiKeys
    limits: Limits
    slots: Slots
    metrics: Metrics
    _models: dict[str, ChatTPO] = field(default_factory=dict, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self.metrics.request() as observation:
            async with AsyncExitStack() as stack:
                try:
                    response = await self._respond(Request(scope, receive), observation, stack)
                except (CancelledByEventError, ClientDisconnect):
                    # nobody reads it, but middleware takes an app that sends no response for a broken one
                    response = Response(status_code=_CLIENT_LEFT)
                except Exception as error:  # whatever it is, the client gets JSON
                    response = error_response(error)
                observation.status = response.status_code
                with suppress(ClientDisconnect):
                    await response(scope, receive, send)

    async def _respond(self, request: Request, observation: Observation, stack: AsyncExitStack) -> Response:
        """The response, ready to be sent. Where it is a stream, the run goes on until the stack is closed."""
        self.keys.check(request.headers)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            # a page of any site may make a browser send other types to this server
            raise RequestRefusedError(
                f"The content type is {content_type!r}, not 'application/json'.",
                status=415,
                code="unsupported_content_type",
            )
        # the slot is taken later, because a body may never come; this spares the reading where all are taken
        self.slots.check()
        chat = ChatRequest.parse(await read_body(request, self.limits))
        steps: asyncio.Queue[StepRecord | None] = asyncio.Queue()
        run = await stack.enter_async_context(background(self._answer(chat, observation, steps.put_nowait)))
        if not chat.stream:
            message = await cancel_on(_disconnect(request), run)
            body = chat_completion(message, model=chat.model).to_json(indent=None)
            return Response(body, media_type="application/json")
        comments = stream_progress(run, steps, silence=self.limits.keep_alive_seconds)
        # what fails before there is something to send is an HTTP error; later it is an event
        first = await cancel_on(_disconnect(request), anext(comments, ""))
        events = _events(first, comments, run, chat, observation)
        return StreamingResponse(events, headers=_STREAM_HEADERS, media_type="text/event-stream")

    async def _answer(
        self, chat: ChatRequest, observation: Observation, on_step: Callable[[StepRecord], None]
    ) -> AIMessage:
        """The answer, unless the server ends first."""
        with self.slots.one():
            name = ModelName.parse(chat.model, list(self.policies))
            observation.mode, observation.policy = name.settings["mode"], name.policy
            parts = await self.policies[name.policy].aload()
            if name.policy not in self._models:
                self._models[name.policy] = ChatTPO(**vars(parts))
            model = self._models[name.policy]
            arguments = call_arguments(chat, name, parts, self.limits)
            messages = [message.to_langchain() for message in chat.messages]
            answer = model.ainvoke(messages, {"callbacks": [_StepHandler(on_step)]}, **arguments)
            try:
                message = await cancel_on(self.slots.closing.wait_async(), answer)
            except CancelledByEventError:
                raise shutting_down() from None
            check_answer(message, arguments.get("answer_schema"))
        self.metrics.answered(observation, message)
        return message


class _StepHandler(AsyncCallbackHandler):
    """Passes on the record of each step of a run."""

    def __init__(self, on_step: Callable[[StepRecord], None]) -> None:
        self._on_step = on_step

    async def on_custom_event(self, name: str, data: StepRecord, **_: Options) -> None:
        if name == STEP_EVENT:
            self._on_step(data)


async def stream_progress(
    run: asyncio.Future[AIMessage], steps: asyncio.Queue[StepRecord | None], *, silence: float
) -> AsyncIterator[str]:
    """Comments, which clients leave out, for each step of a run and after each so many seconds of silence.

    Args:
        run: the run, already under way.
        steps: gets the record of each step as it is done.
        silence: seconds without a step until a comment is due, so that proxies keep the connection.

    Raises:
        Exception: whatever the run raises.
    """
    run.add_done_callback(lambda _: steps.put_nowait(None))
    while True:
        try:
            async with asyncio.timeout(silence):
                step = await steps.get()
        except TimeoutError:
            yield ": working\n\n"
            continue
        if step is None:
            break
        yield f": step {step['step']}: best reward {step['best_reward']:+.4g}\n\n"
    await run


async def _events(
    first: str,
    comments: AsyncIterator[str],
    run: asyncio.Future[AIMessage],
    chat: ChatRequest,
    observation: Observation,
) -> AsyncIterator[str]:
    """The server-sent events of a stream: comments, and then the answer in chunks."""
    observation.status = _CLIENT_LEFT  # until all chunks are sent
    try:
        yield first
        async for comment in comments:
            yield comment
        include_usage = chat.stream_options is not None and chat.stream_options.include_usage
        for chunk in chat_completion_chunks(await run, model=chat.model, include_usage=include_usage):
            yield f"data: {chunk.to_json(indent=None)}\n\n"
        observation.status = 200
    except Exception as error:  # as in the endpoint
        observation.status, body = status_and_body(error)
        yield f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
    yield "data: [DONE]\n\n"


class CancelledByEventError(Exception):
    """An event came before the work was done."""


async def cancel_on(event: Awaitable[object], work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled as soon as an event comes.

    Args:
        event: returns when the event has come.
        work: has ended, one way or the other, when this function has.

    Raises:
        CancelledByEventError: the event came first.
        Exception: whatever either of them raises.
    """
    async with background(event) as waiting, background(work) as working:
        await asyncio.wait((waiting, working), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            waiting.result()
            raise CancelledByEventError
        return working.result()


@asynccontextmanager
async def background(work: Awaitable[T]) -> AsyncIterator[asyncio.Future[T]]:
    """Some work as a task beside the `with` block; it is cancelled if it has not ended when the block does."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Wait until the client has left; the body of its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
