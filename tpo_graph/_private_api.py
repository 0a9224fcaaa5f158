"""Everything that this package uses of other packages' private API.

Each entry names the version it was checked on and why there is no public way to do the same. After an upgrade of one of
these packages, this is the file to read again. Nothing is imported before an entry is used.

LangChain documents some methods with an underscore for authors of chat models (`_generate`, `_agenerate`, `_stream`,
`_astream`, `_llm_type`, `_identifying_params`, `_get_ls_params`). These are public in all but their name, and are not
listed.
"""

from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    import torch
    import uvicorn
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatResult
    from langgraph.graph.state import CompiledStateGraph
    from transformers import PreTrainedConfig
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

    from tpo_graph.types import PartialState
else:
    BaseChatModel = object  # langchain-core is imported by whoever makes a chat model, not here

# langchain-core 1.7.2


def cache_key(model: "BaseChatModel") -> str:
    """The text by which LangChain's cache tells a chat model from others.

    `_get_llm_string` is private, and `dumps` alone leaves out what `_identifying_params` adds.
    """
    return model._get_llm_string()


# langchain-openai 1.7.3


def reads_plain_answers(model: "BaseChatModel") -> bool:
    """Whether an OpenAI chat model reads an answer of plain values as it reads OpenAI's own object.

    langchain-openai's `_create_chat_result` takes both. Integrations that override it (DeepSeek's, xAI's) take the
    object's extra fields alone, and no public name tells them apart.
    """
    from langchain_openai.chat_models.base import BaseChatOpenAI

    own = BaseChatOpenAI._create_chat_result
    return isinstance(model, BaseChatOpenAI) and type(model)._create_chat_result is own


def client_retries(model: "BaseChatModel") -> int:
    """How often the client of a chat model, made when the model was, sends a request again by itself.

    Its `async_client` is a resource of a client of the kind that OpenAI's is; no public name leads to the client.
    """
    resource = getattr(model, "async_client", None)
    retries = getattr(getattr(resource, "_client", resource), "max_retries", 0)
    return retries if isinstance(retries, int) else 0


# langchain-core 1.7.2


class GenerationContext(BaseChatModel):
    """A base to name before `BaseChatModel`: runs a whole generation, streamed or not, inside a context manager.

    `_generate` and `_agenerate` are given the run's callbacks, but when a handler asks for a stream, LangChain calls
    `_stream` and `_astream` from these two private methods without them.
    """

    @abstractmethod
    def generation_context(
        self, run_manager: "AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None"
    ) -> "AbstractContextManager[object]":
        """The context manager for one generation.

        Args:
            run_manager: the callbacks of the generation's run.
        """

    async def _agenerate_with_cache(
        self,
        messages: "list[BaseMessage]",
        stop: list[str] | None = None,
        run_manager: "AsyncCallbackManagerForLLMRun | None" = None,
        **kwargs: Any,
    ) -> "ChatResult":
        with self.generation_context(run_manager):
            return await super()._agenerate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)

    def _generate_with_cache(
        self,
        messages: "list[BaseMessage]",
        stop: list[str] | None = None,
        run_manager: "CallbackManagerForLLMRun | None" = None,
        **kwargs: Any,
    ) -> "ChatResult":
        with self.generation_context(run_manager):
            return super()._generate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)


class WholeGeneration(BaseChatModel):
    """A base to name before a chat model's class: the model's run ends with what `whole_generation` makes of its own.

    `_agenerate` alone is no place for that: it is not called where a handler asks for a stream, and LangChain waits for
    a rate limit before it.
    """

    @abstractmethod
    async def whole_generation(
        self, generate: "Callable[[], Awaitable[ChatResult]]", run_manager: "AsyncCallbackManagerForLLMRun | None"
    ) -> "ChatResult":
        """The result of one generation.

        Args:
            generate: the model's own.
            run_manager: the callbacks of the generation's run; None where there are no callbacks.
        """

    async def _agenerate_with_cache(
        self,
        messages: "list[BaseMessage]",
        stop: list[str] | None = None,
        run_manager: "AsyncCallbackManagerForLLMRun | None" = None,
        **kwargs: Any,
    ) -> "ChatResult":
        generate = super()._agenerate_with_cache
        return await self.whole_generation(
            lambda: generate(messages, stop=stop, run_manager=run_manager, **kwargs), run_manager
        )


# langgraph 1.2.22


def write_at_start(graph: "CompiledStateGraph[Any, Any, Any, Any]", values: "Callable[[], PartialState]") -> None:
    """Let a graph write values whenever it is given an input, before its first node and beside the input's own keys.

    A node of the graph would do that as a step of its own, drawn and streamed.

    Args:
        graph: the compiled graph.
        values: makes them, by key of the state; `Overwrite` where its reducer is not meant.
    """
    from langgraph.constants import START
    from langgraph.pregel._write import ChannelWrite, ChannelWriteTupleEntry

    def writes(given: object) -> list[tuple[str, Any]]:
        # whoever draws the graph gives None, and writes nothing
        return [] if given is None else [*values().items()]

    graph.nodes[START].writers.append(ChannelWrite((ChannelWriteTupleEntry(writes),)))


# transformers 5.23.0


def attention_of(config: "PreTrainedConfig") -> str | None:
    """The attention that a model was loaded with, such as "sdpa"; it is kept in a private attribute alone."""
    attention: str | None = config._attn_implementation
    return attention


def layer_types_of(config: "PreTrainedConfig") -> "list[str]":
    """What each layer's cache is, such as "full_attention", for configs that do not list it as well."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    layer_types, _ = get_layer_types_and_kwargs(config)
    return list(layer_types)


def keys_and_values(cache: "DynamicCache") -> "tuple[tuple[torch.Tensor, torch.Tensor], ...]":
    """The keys and values of each layer of a filled cache, which has no public reader since its layers are objects."""
    from transformers.cache_utils import DynamicLayer

    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        layers.append((layer.keys, layer.values))
    return tuple(layers)


def prefix_cache(layers: "Sequence[tuple[torch.Tensor, torch.Tensor]]") -> "Cache":
    """A cache for one forward pass over any number of rows that all begin with the same prefix.

    The library's own cache holds a copy of the prefix for each row and keeps what it computes; its sliding layers
    can't be cut at any token.

    Args:
        layers: keys and values of the prefix for each layer, each (1, heads, tokens, head size).
    """
    from transformers.cache_utils import Cache

    layer = _prefix_layer()
    return Cache(layers=[layer(keys, values) for keys, values in layers])


@cache
def _prefix_layer() -> "Callable[[torch.Tensor, torch.Tensor], DynamicLayer]":
    import torch
    from transformers.cache_utils import DynamicLayer

    class PrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # the library leaves its class hook untyped
        """One layer's keys and values of a prefix, the same for every row of a batch.

        `update` returns prefix and new states together and stores neither: scoring makes one pass, so a copy per row
        lives only while its layer runs. Sliding-window layers hold the whole prefix too (the window is in the mask).
        """

        def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__()  # type: ignore[no-untyped-call]  # untyped in the library
            self.keys, self.values = keys, values
            self.dtype, self.device = keys.dtype, keys.device
            self.is_initialized = True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Return keys and values (rows, heads, prefix + new tokens, head size) for new states of the rows."""
            assert self.keys is not None and self.values is not None
            rows = key_states.shape[0]
            return (
                torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
                torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
            )

    return PrefixLayer


# uvicorn 0.54.0


def graceful_server(
    config: "uvicorn.Config", *, grace_seconds: float, end_grace: "Callable[[], object]"
) -> "uvicorn.Server":
    """A server that lets requests finish when it is told to end, and reports when they have had their time.

    uvicorn's own `timeout_graceful_shutdown` cancels what still runs, so that clients get no answer at all. The methods
    overridden here have public names but are not documented as places to extend.

    Args:
        config: of the server.
        grace_seconds: how long requests may go on after the first signal.
        end_grace: called in the server's event loop after these seconds, or on a second signal. A third signal ends
            the process without waiting. A terminal that closes sends several SIGHUPs, which are one.
    """
    import asyncio
    import signal
    import threading
    from contextlib import contextmanager

    import uvicorn

    class GracefulServer(uvicorn.Server):
        loop: asyncio.AbstractEventLoop | None = None
        grace_has_ended = False

        def end_grace(self) -> None:
            self.grace_has_ended = True
            end_grace()

        async def startup(self, sockets: "list[socket.socket] | None" = None) -> None:
            self.loop = asyncio.get_running_loop()
            await super().startup(sockets)

        async def shutdown(self, sockets: "list[socket.socket] | None" = None) -> None:
            ending = asyncio.get_running_loop().call_later(grace_seconds, self.end_grace)
            await super().shutdown(sockets)
            ending.cancel()

        @contextmanager
        def capture_signals(self) -> "Iterator[None]":
            with super().capture_signals():
                before = signal.getsignal(signal.SIGHUP)
                # ignored, as `nohup` has it, it stays so; and no other thread than the main one may listen
                if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
                    yield
                    return
                signal.signal(signal.SIGHUP, self.handle_exit)
                try:
                    yield
                finally:
                    signal.signal(signal.SIGHUP, before)

        def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
            if self.should_exit and sig == signal.SIGHUP:
                return
            if self.should_exit and self.loop is not None and not self.grace_has_ended:
                self.loop.call_soon_threadsafe(self.end_grace)
            else:
                self.force_exit = self.should_exit
                super().handle_exit(sig, frame)

    return GracefulServer(config)
