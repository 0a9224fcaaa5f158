"""A chat model written as one async method, from which LangChain's eight ways to call it follow.

What the method does belongs under the model's own run in a trace, however the model is called. LangChain hands a chat
model its run manager for `invoke`, but not for `stream`, nor for an `invoke` that it turns into a stream. The callbacks
for inner runs are therefore set aside on the way in, and picked up where LangChain passes none.

The inner runs tell callbacks which tokens they used. So that a trace counts them once, the model's own run ends with a
message without usage, and who called the model gets the message with it.
"""

import asyncio
import json
import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManager, CallbackManagerForLLMRun
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, set_config_context
from langchain_core.utils.uuid import uuid7

from tpo_graph._private_api import GenerationContext
from tpo_graph.graph.bridge import run_coroutine
from tpo_graph.policies.tracing import ended_if_cancelled
from tpo_graph.types import Options

RUN_USAGE = "run_usage"
"""Where `response_metadata` has the `usage_metadata` of an answer, also in a trace and in a stream of events."""

_WORD = re.compile(r"\S*\s*")
_Message = TypeVar("_Message", bound=BaseMessage)
_set_aside: ContextVar[CallbackManager | None] = ContextVar("tpo_graph_inner_callbacks", default=None)


class AsyncChatModel(GenerationContext, BaseChatModel):
    """A chat model that works for a while, in runs of its own, and then has its whole answer."""

    @abstractmethod
    async def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None, arguments: Mapping[str, Options]
    ) -> AIMessage:
        """The answer to a conversation. Runs in it become children of this model's run, and used what it says was used.

        Args:
            messages: the conversation.
            stop: texts at which the answer ends.
            arguments: all other arguments of the call.
        """

    async def _answer_in_run(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: BaseRunManager | None,
        arguments: Mapping[str, Options],
    ) -> AIMessage:
        config = ensure_config()
        callbacks = _inner_callbacks(run_manager)
        if callbacks is not None:
            # LangGraph merges the callbacks that a graph is given with those around the call, whose parent would win
            config["callbacks"] = callbacks
        with set_config_context(config) as context:
            message = await asyncio.create_task(self._answer(messages, stop, arguments), context=context)
        if message.usage_metadata is None:
            return message
        metadata = {**message.response_metadata, RUN_USAGE: message.usage_metadata}
        return message.model_copy(update={"response_metadata": metadata, "usage_metadata": None})

    async def agenerate(self, *arguments: Any, **options: Any) -> LLMResult:
        """Generate answers; see `BaseChatModel.agenerate`."""
        return _results_with_usage(await super().agenerate(*arguments, **options))

    def generate(self, *arguments: Any, **options: Any) -> LLMResult:
        """Generate answers; see `BaseChatModel.generate`."""
        return _results_with_usage(super().generate(*arguments, **options))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Options,
    ) -> ChatResult:
        async with ended_if_cancelled(run_manager):
            message = await self._answer_in_run(messages, stop, run_manager, kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Options,
    ) -> ChatResult:
        message = run_coroutine(self._answer_in_run(messages, stop, run_manager, kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Options,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in answer_chunks(await self._answer_in_run(messages, stop, run_manager, kwargs)):
            yield chunk

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Options,
    ) -> Iterator[ChatGenerationChunk]:
        yield from answer_chunks(run_coroutine(self._answer_in_run(messages, stop, run_manager, kwargs)))

    def generation_context(
        self, run_manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None
    ) -> AbstractContextManager[object]:
        """Set the callbacks for inner runs aside for `_stream` and `_astream`, which LangChain calls without them."""
        return _callbacks_set_aside(_inner_callbacks(run_manager))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Options,
    ) -> AsyncIterator[AIMessageChunk]:
        """Stream the answer; see `BaseChatModel.astream`."""
        config, callbacks = _with_own_run(config)
        async with aclosing(super().astream(input, config, stop=stop, **kwargs)) as chunks:  # type: ignore[type-var]
            # the first chunk comes from the context in which it is asked for, later ones may come from another
            with _callbacks_set_aside(callbacks):
                first = await anext(chunks, None)
            if first is not None:
                yield _with_usage(first)
            async for chunk in chunks:
                yield _with_usage(chunk)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Options,
    ) -> Iterator[AIMessageChunk]:
        """Stream the answer; see `BaseChatModel.stream`."""
        config, callbacks = _with_own_run(config)
        chunks = super().stream(input, config, stop=stop, **kwargs)
        with _callbacks_set_aside(callbacks):
            first = next(chunks, None)
        if first is not None:
            yield _with_usage(first)
        yield from map(_with_usage, chunks)


def answer_chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """A message in chunks of a word; the last one carries metadata and tool calls.

    Args:
        message: a whole answer. Content that is not text is one chunk.
    """
    words = _WORD.findall(message.content)[:-1] if isinstance(message.content, str) else []
    for word in words[:-1]:
        yield ChatGenerationChunk(message=AIMessageChunk(content=word, id=message.id))
    calls: list[tuple[str | None, str | None, str | None]]
    calls = [(call["name"], json.dumps(call["args"], ensure_ascii=False), call["id"]) for call in message.tool_calls]
    calls += [(call["name"], call["args"], call["id"]) for call in message.invalid_tool_calls]
    extra = message.additional_kwargs
    if message.tool_calls:
        # the raw calls are in the chunk as tool calls already
        extra = {name: value for name, value in extra.items() if name != "tool_calls"}
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content=words[-1] if words else message.content,
            id=message.id,
            additional_kwargs=extra,
            response_metadata=message.response_metadata,
            tool_call_chunks=[
                tool_call_chunk(name=name, args=args, id=id, index=index)
                for index, (name, args, id) in enumerate(calls)
            ],
            chunk_position="last",
        )
    )


def _results_with_usage(result: LLMResult) -> LLMResult:
    """Copies of the answers, because handlers may keep the answers themselves."""
    copies = [
        [
            generation.model_copy(update={"message": _with_usage(generation.message)})
            if isinstance(generation, ChatGeneration)
            else generation
            for generation in answers
        ]
        for answers in result.generations
    ]
    return result.model_copy(update={"generations": copies})


def _with_usage(message: _Message) -> _Message:
    """The message of an answer, or its chunk, as whoever called the model gets it."""
    usage = message.response_metadata.get(RUN_USAGE)
    return message if usage is None else message.model_copy(update={"usage_metadata": usage})


@contextmanager
def _callbacks_set_aside(callbacks: CallbackManager | None) -> Iterator[None]:
    token = _set_aside.set(callbacks)
    try:
        yield
    finally:
        _set_aside.reset(token)


def _inner_callbacks(run_manager: BaseRunManager | None) -> CallbackManager | None:
    """Callbacks for inner runs: children of `run_manager`, or those set aside where LangChain passes none."""
    if run_manager is None:
        return _set_aside.get()
    # chains and tools have `get_child` for this; the run of a chat model does not
    child = CallbackManager(handlers=[], parent_run_id=run_manager.run_id)
    child.set_handlers(run_manager.inheritable_handlers)
    child.add_tags(run_manager.inheritable_tags)
    child.add_metadata(run_manager.inheritable_metadata)
    return child


def _with_own_run(config: RunnableConfig | None) -> tuple[RunnableConfig, CallbackManager]:
    """A config that fixes the id of the run to come, and callbacks that are children of that run."""
    config = ensure_config(config)
    manager = CallbackManager.configure(
        config.get("callbacks"),
        inheritable_tags=config.get("tags"),
        inheritable_metadata=config.get("metadata"),
    )
    child = manager.copy()
    child.parent_run_id = config.get("run_id") or uuid7()
    return {**config, "callbacks": manager, "run_id": child.parent_run_id}, child
