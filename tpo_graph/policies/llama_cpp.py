"""llama.cpp's server as a chat model: ChatOpenAI with its count of tokens put right."""

import asyncio
from typing import Any

import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI

__all__ = ["ChatLlamaCpp"]


class ChatLlamaCpp(ChatOpenAI):
    """A chat model behind llama.cpp's OpenAI-compatible server.

    For a request with n > 1 that server counts the completion tokens of one completion alone. The texts are counted
    with its own `/tokenize` instead; where that is not answered, its number stays.
    """

    @property
    def _llm_type(self) -> str:
        return "llama-cpp-chat"

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> ChatResult:
        result = await super()._agenerate(messages, stop, run_manager, **kwargs)
        if len(result.generations) < 2:
            return result
        try:
            counts = await asyncio.gather(*(self._count(made.text) for made in result.generations))
        except openai.OpenAIError:
            return result
        _correct(result, sum(counts))
        return result

    async def _count(self, text: str) -> int:
        """Tokens of a text, by the server."""
        address = str(self.root_async_client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
        answer = await self.root_async_client.post(address, body={"content": text}, cast_to=dict[str, Any])
        return len(answer["tokens"])


def _correct(result: ChatResult, output_tokens: int) -> None:
    told = (result.llm_output or {}).get("token_usage")
    if told:
        told["completion_tokens"] = output_tokens
        told["total_tokens"] = (told.get("prompt_tokens") or 0) + output_tokens
    for made in result.generations:
        if isinstance(made.message, AIMessage) and made.message.usage_metadata:
            usage = made.message.usage_metadata
            usage["output_tokens"] = output_tokens
            usage["total_tokens"] = usage["input_tokens"] + output_tokens
