"""HTTP for OpenAI-compatible servers: aiohttp underneath, and safe to use from one event loop after another.

langchain-openai shares one async client between all models of a process. Its connections belong to the loop that
first used them, so a second `asyncio.run` fails with "Event loop is closed"; and with many requests in flight
httpx's own pool costs several times the CPU of aiohttp's.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tpo_graph.types import Options

if TYPE_CHECKING:
    import httpx2
    from langchain_core.language_models import BaseChatModel


@lru_cache(maxsize=1)
def shared_http_client() -> "httpx2.AsyncClient":
    """The process's async HTTP client: one pool of connections for each running event loop.

    A pool is closed by the shutdown of its loop (`asyncio.run` does that), so nothing is left open.
    """
    import openai

    class LoopSafeClient(openai.DefaultAioHttpClient):
        """Sends with the client of the running loop."""

        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()  # loops of several threads share this client
            self._clients: dict[asyncio.AbstractEventLoop, tuple[httpx2.AsyncClient, AsyncGenerator[None]]] = {}

        async def send(self, request: "httpx2.Request", **options: Options) -> "httpx2.Response":
            loop = asyncio.get_running_loop()
            client, closer = self._clients.get(loop, (None, None))
            if client is None:
                client = openai.DefaultAioHttpClient()
                closer = _close_with_loop(client)
                with self._lock:
                    for closed in [other for other in self._clients if other.is_closed()]:
                        del self._clients[closed]
                    self._clients[loop] = (client, closer)
                await anext(closer)
            return await client.send(request, **options)

        async def aclose(self) -> None:
            """Close the running loop's connections; the client stays usable."""
            with self._lock:
                _, closer = self._clients.pop(asyncio.get_running_loop(), (None, None))
            if closer is not None:
                await closer.aclose()

    return LoopSafeClient()


async def _close_with_loop(client: "httpx2.AsyncClient") -> AsyncGenerator[None]:
    """An async generator that waits: the loop closes it, and so the client, when it shuts down."""
    try:
        yield
    finally:
        await client.aclose()


def loop_safe(model: "BaseChatModel") -> "BaseChatModel":
    """`model` itself, or where it is an OpenAI one on langchain-openai's shared client, a copy on ours.

    A client or proxy that a person has set is left alone.
    """
    module = sys.modules.get("langchain_openai.chat_models.base")  # where it is not loaded, nobody has such a model
    openai_model: Any = model
    if module is None or not isinstance(openai_model, module.BaseChatOpenAI):
        return model
    if (
        openai_model.root_async_client is None
        or openai_model.http_async_client is not None
        or openai_model.openai_proxy
    ):
        return model
    client = openai_model.root_async_client.copy(http_client=shared_http_client())
    return model.model_copy(
        update={
            "http_async_client": shared_http_client(),
            "root_async_client": client,
            "async_client": client.chat.completions,
        }
    )
