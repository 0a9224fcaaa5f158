"""What came with an error: OpenAI's client raises when one of a request's completions was cut.

It does so where a response format was sent, and the completions that are whole are in the error.
"""

import sys
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult

__all__ = ["result_inside"]


def result_inside(error: Exception) -> LLMResult | None:
    """All completions of the request, and its usage; None where the error is another."""
    openai = sys.modules.get("openai")
    if openai is None or not isinstance(error, openai.LengthFinishReasonError):
        return None
    answer = error.completion
    generations: list[Any] = [  # Any: LangChain's list may have other kinds too
        ChatGeneration(
            message=AIMessage(
                choice.message.content or "",
                # that there are some; what they say may be cut as well
                tool_calls=[{"name": "", "args": {}, "id": call.id} for call in choice.message.tool_calls or []],
                response_metadata={"finish_reason": choice.finish_reason},
            )
        )
        for choice in answer.choices
    ]
    return LLMResult(
        generations=[generations], llm_output={"token_usage": answer.usage.model_dump() if answer.usage else None}
    )
