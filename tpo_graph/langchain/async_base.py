"""A chat model written as one async body, from which LangChain's eight ways to call it follow."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing
from itertools import chain
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig

from tpo_graph._private_api import GenerationContext
from tpo_graph.graph.bridge import run_coroutine
from tpo_graph.langchain.answer import answer_chunks
from tpo_graph.langchain.run import InnerCallbacks, inner_callbacks, noted, with_own_run


class OneBodyChatModel(GenerationContext, BaseChatModel):
    """A chat model that works for a while, in runs of its own, and then has its whole answer."""

    @abstractmethod
    async def _answer(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        callbacks: InnerCallbacks,
        arguments: Mapping[str, Any],  # Any: as the call has them
    ) -> AIMessage:
        """The answer to a conversation.

        Args:
            messages: the conversation.
            stop: texts at which the answer ends.
            callbacks: for the runs inside, which belong under the run of this model.
            arguments: what else the call says.
        """

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> ChatResult:
        message = await self._answer(messages, stop, inner_callbacks(run_manager), kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> ChatResult:
        message = run_coroutine(self._answer(messages, stop, inner_callbacks(run_manager), kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in answer_chunks(await self._answer(messages, stop, inner_callbacks(run_manager), kwargs)):
            yield chunk

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> Iterator[ChatGenerationChunk]:
        yield from answer_chunks(run_coroutine(self._answer(messages, stop, inner_callbacks(run_manager), kwargs)))

    def generation_context(
        self, run_manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None
    ) -> AbstractContextManager[object]:
        """Note the run for `_stream` and `_astream`, which LangChain calls without it."""
        return noted(inner_callbacks(run_manager))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> AsyncIterator[AIMessageChunk]:
        """Stream the answer; see `BaseChatModel.astream`."""
        config, callbacks = with_own_run(config, AsyncCallbackManager)
        # a generator's first piece comes from the context in which it is asked for, later ones may not
        async with aclosing(super().astream(input, config, stop=stop, **kwargs)) as chunks:  # type: ignore[type-var]
            with noted(callbacks):
                first = await anext(chunks, None)
            if first is not None:
                yield first
            async for chunk in chunks:
                yield chunk

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> Iterator[AIMessageChunk]:
        """Stream the answer; see `BaseChatModel.stream`."""
        config, callbacks = with_own_run(config, CallbackManager)
        chunks = super().stream(input, config, stop=stop, **kwargs)
        with noted(callbacks):
            first = list(zip(range(1), chunks, strict=False))
        yield from chain((chunk for _, chunk in first), chunks)
