"""A server on loopback, in a thread, and OpenAI's own client of it."""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from tests.tpo_script import number_reward
from tpo_graph.serving import create_app


@dataclass
class Served:
    """A running server.

    Attributes:
        root: its address without `/v1`.
        client: OpenAI's client, which does not retry.
        http: a plain client.
        slots: what the app counts of its work.
        loop: the event loop that it runs in.
    """

    root: str
    client: openai.OpenAI
    http: httpx.Client
    slots: Any
    loop: asyncio.AbstractEventLoop

    def chat(self, text: str = "q", **options: Any):
        """One answer."""
        body = {"model": "tpo-d1-n2", "messages": [{"role": "user", "content": text}], **options}
        return self.client.chat.completions.create(**body)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=body, **options)

    def close(self) -> None:
        """What the command does when its grace period is over."""
        self.loop.call_soon_threadsafe(self.slots.closing.set)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextmanager
def served(app: Any) -> Iterator[Served]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", loop="asyncio"))
    loops: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()

    async def run() -> None:
        loops.put(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    # `asyncio.run` closes what belongs to the loop
    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    root = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with (
            openai.OpenAI(base_url=f"{root}/v1", api_key="any", max_retries=0) as client,
            httpx.Client(base_url=root, timeout=30) as http,
        ):
            yield Served(root, client, http, app.state.slots, loops.get(timeout=10))
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers; they end with the test. `policies` may be one chat model."""
    with ExitStack() as stack:

        def start(policies: Any, reward: Any = None, **options: Any) -> Served:
            by_id = policies if isinstance(policies, dict) else {"scripted": policies}
            app = create_app(by_id, reward if reward is not None else number_reward(), **options)
            return stack.enter_context(served(app))

        yield start
