"""What callbacks see of a request: its tokens once, and an end also where it was cancelled.

LangChain leaves both to the chat model. Asked for N completions, most repeat the usage of all on each of them, without
the model's name, so that LangSmith's tracer counts N times as much and `get_usage_metadata_callback` nothing at all. A
request that is cancelled, as by a time limit, never ends in a trace.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from types import new_class

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatResult

from tpo_graph._private_api import WholeGeneration
from tpo_graph.types import JSONObject


def traced(model: BaseChatModel) -> BaseChatModel:
    """A copy of the model whose runs, sent from async code, have their tokens once and always end.

    Args:
        model: any chat model; the copy looks to callbacks as it does.
    """
    if isinstance(model, _Traced):
        return model
    copy = model.model_copy()
    copy.__class__ = _traced_class(type(model))
    return copy


def request_usage(messages: Sequence[BaseMessage], llm_output: JSONObject | None) -> UsageMetadata | None:
    """The tokens of one request; None where the provider does not count.

    Args:
        messages: all its completions. Where each has a usage of its own, the prompt that they share counts once.
        llm_output: what LangChain has about the whole request.
    """
    counts = [message.usage_metadata for message in messages if isinstance(message, AIMessage)]
    counted = [count for count in counts if count]
    whole = (llm_output or {}).get("token_usage") or {}
    if whole.get("prompt_tokens") is not None or whole.get("completion_tokens") is not None:
        read, wrote = whole.get("prompt_tokens") or 0, whole.get("completion_tokens") or 0
    elif counted:
        is_repeated = all(count == counted[0] for count in counted)
        read = counted[0]["input_tokens"]
        wrote = sum(count["output_tokens"] for count in (counted[:1] if is_repeated else counted))
    else:
        return None
    if counted and (counted[0]["input_tokens"], counted[0]["output_tokens"]) == (read, wrote):
        return counted[0]  # with its details
    return UsageMetadata(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)


@asynccontextmanager
async def ended_if_cancelled(run_manager: AsyncCallbackManagerForLLMRun | None) -> AsyncIterator[None]:
    """Tell callbacks that a model's run has ended where the block is cancelled; LangChain does not."""
    began = time.monotonic()
    try:
        yield
    except asyncio.CancelledError:
        if run_manager is not None:
            seconds = time.monotonic() - began
            await run_manager.on_llm_error(asyncio.CancelledError(f"no answer within {seconds:.2g} s"))
        raise


class _Traced(WholeGeneration):
    async def whole_generation(
        self, generate: Callable[[], Awaitable[ChatResult]], run_manager: AsyncCallbackManagerForLLMRun | None
    ) -> ChatResult:
        async with ended_if_cancelled(run_manager):
            result = await generate()
        messages = [generation.message for generation in result.generations]
        usage = request_usage(messages, result.llm_output)
        for place, (generation, message) in enumerate(zip(result.generations, messages, strict=True)):
            if isinstance(message, AIMessage) and message.usage_metadata != (usage if place == 0 else None):
                generation.message = message.model_copy(update={"usage_metadata": None if place else usage})
        if len(messages) > 1:
            # LangChain does it for a single one, and counters of tokens want the model's name
            first = result.generations[0]
            metadata = {**(result.llm_output or {}), **first.message.response_metadata}
            first.message = first.message.model_copy(update={"response_metadata": metadata})
        return result


@lru_cache(maxsize=64)
def _traced_class(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """The class with `_Traced` before it, under its own name: traces and LangChain's cache tell models by that."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return new_class(kind.__name__, (_Traced, kind), {"defer_build": True}, lambda namespace: namespace.update(names))
