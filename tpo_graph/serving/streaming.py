"""Server-sent events: comments while a run works, then the answer in chunks."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage
from starlette.types import Send

from tpo_graph.langchain.inner_run import STEP_EVENT
from tpo_graph.types import StepRecord

__all__ = ["DONE", "EventSender", "Progress", "Run", "Steps", "happenings"]

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
