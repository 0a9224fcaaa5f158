"""HTTP for OpenAI-compatible servers: little CPU a request, and safe to use from one event loop after another.

langchain-openai shares one async client between all models of a process. Its connections belong to the loop that
first used them, so a second `asyncio.run` fails with "Event loop is closed"; and with many requests in flight
httpx's own pool costs several times the CPU of aiohttp's. Half of what is left goes into checks of a body that
LangChain has made of plain values, and into models of an answer that LangChain turns into plain values again.
"""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tpo_graph._private_api import reads_plain_answers
from tpo_graph.types import JSON, Options

if TYPE_CHECKING:
    import httpx2
    import openai
    from langchain_core.language_models import BaseChatModel


_AT_ONCE = 0.001  # seconds; with 0, idle connections would stay open until the next request

fresh_connection: ContextVar[bool] = ContextVar("tpo_graph_fresh_connection", default=False)
"""Set where a request must not go out over a connection that was idle."""


@lru_cache(maxsize=1)
def shared_http_client() -> "httpx2.AsyncClient":
    """The process's async HTTP client: one pool of connections for each running event loop.

    A pool is closed by the shutdown of its loop (`asyncio.run` does that), so nothing is left open.
    """
    import httpx2
    import openai

    pool = openai.DEFAULT_CONNECTION_LIMITS
    limits = {False: pool, True: httpx2.Limits(max_connections=pool.max_connections, keepalive_expiry=_AT_ONCE)}

    class LoopSafeClient(openai.DefaultAioHttpClient):
        """Sends with the client of the running loop."""

        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()  # loops of several threads share this client
            self._clients: dict[
                tuple[asyncio.AbstractEventLoop, bool], tuple[httpx2.AsyncClient, AsyncGenerator[None]]
            ] = {}

        async def send(self, request: "httpx2.Request", **options: Options) -> "httpx2.Response":
            key = asyncio.get_running_loop(), fresh_connection.get()
            client, closer = self._clients.get(key, (None, None))
            if client is None:
                client = openai.DefaultAioHttpClient(limits=limits[key[1]])
                closer = _close_with_loop(client)
                with self._lock:
                    for closed in [other for other in self._clients if other[0].is_closed()]:
                        del self._clients[closed]
                    self._clients[key] = (client, closer)
                await anext(closer)
            return await client.send(request, **options)

        async def aclose(self) -> None:
            """Close the running loop's connections; the client stays usable."""
            loop = asyncio.get_running_loop()
            with self._lock:
                closers = [self._clients.pop(key)[1] for key in [(loop, False), (loop, True)] if key in self._clients]
            for closer in closers:
                await closer.aclose()

    return LoopSafeClient()


async def _close_with_loop(client: "httpx2.AsyncClient") -> AsyncGenerator[None]:
    """An async generator that waits: the loop closes it, and so the client, when it shuts down."""
    try:
        yield
    finally:
        await client.aclose()


class PlainChatCompletions:
    """OpenAI's resource of chat completions, for bodies and answers of plain values.

    A request that is not streamed is sent as it stands, and its answer is read as JSON. Everything else is the
    resource's own.

    Args:
        client: OpenAI's async client. Address, headers, errors and retries are all its own.
    """

    def __init__(self, client: "openai.AsyncOpenAI") -> None:
        self._client = client
        self._resource = client.chat.completions
        self.with_raw_response = _PlainRawResponses(client)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resource, name)


class _PlainRawResponses:
    def __init__(self, client: "openai.AsyncOpenAI") -> None:
        self._client = client

    async def create(self, **body: Options) -> Any:
        import httpx2

        if body.get("stream") or not _FOR_THE_CLIENT.isdisjoint(body):
            return await self._client.chat.completions.with_raw_response.create(**body)
        body |= body.pop("extra_body", None) or {}
        return PlainResponse(await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body))


class PlainResponse(NamedTuple):
    """An answer that was not parsed yet."""

    http_response: "httpx2.Response"

    @property
    def headers(self) -> "httpx2.Headers":
        """Those of the answer."""
        return self.http_response.headers

    def parse(self) -> JSON:
        """The answer as plain values.

        LangChain leaves out a refusal and reasoning that stand beside the text: where there is no text, they become
        content blocks.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            answer = json.loads(self.http_response.content)
        except RecursionError as error:
            raise ValueError("it is JSON that is nested too deep") from error
        choices = answer.get("choices") if isinstance(answer, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            message = choice.get("message") if isinstance(choice, dict) else None
            if isinstance(message, dict) and not message.get("content") and not message.get("tool_calls"):
                fields = (("refusal", "refusal"), ("reasoning", "reasoning_content"), ("reasoning", "reasoning"))
                blocks = [{"type": kind, kind: str(message[field])} for kind, field in fields if message.get(field)]
                message["content"] = blocks[:1] or message.get("content")
        return answer


_FOR_THE_CLIENT = frozenset({"extra_headers", "extra_query", "timeout"})


def loop_safe(model: "BaseChatModel") -> "BaseChatModel":
    """`model` itself, or of an OpenAI one a copy that any event loop can use and that sends and reads plain values.

    A client or proxy that a person has set is kept.
    """
    module = sys.modules.get("langchain_openai.chat_models.base")  # where it is not loaded, nobody has such a model
    openai_model: Any = model
    if module is None or not isinstance(openai_model, module.BaseChatOpenAI) or openai_model.root_async_client is None:
        return model
    client, completions = openai_model.root_async_client, openai_model.async_client
    changes: dict[str, Options] = {}
    if openai_model.http_async_client is None and not openai_model.openai_proxy:
        client = client.copy(http_client=shared_http_client())
        completions = client.chat.completions
        changes = {"http_async_client": shared_http_client(), "root_async_client": client, "async_client": completions}
    if type(completions) is type(client.chat.completions) and reads_plain_answers(model):
        changes["async_client"] = PlainChatCompletions(client)
    return model.model_copy(update=changes) if changes else model
