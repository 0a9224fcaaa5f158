"""Answers as they go out, in the types of OpenAI's own client: whole, or in chunks."""

import json
import time
from collections.abc import Iterator
from typing import Literal
from uuid import uuid4

from langchain_core.messages import AIMessage
from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
)
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall

from tpo_graph.langchain.async_base import answer_chunks
from tpo_graph.policies.reading import finish_reason
from tpo_graph.types import JSONObject


def chat_completion(message: AIMessage, *, model: str) -> ChatCompletion:
    """The answer as one document.

    Args:
        message: the answer of a `ChatTPO`; the record of its run goes out as the field `tpo`.
        model: the model name that the client asked for.
    """
    tool_calls = [ChatCompletionMessageFunctionToolCall(**call) for call in _tool_calls(message)]
    content = message.text or (None if tool_calls else "")
    answer = ChatCompletionMessage(role="assistant", content=content, refusal=None)
    if tool_calls:
        answer.tool_calls = [*tool_calls]
    choice = Choice(index=0, message=answer, logprobs=None, finish_reason=_finish_reason(message))
    completion = ChatCompletion(
        id=_new_id(),
        object="chat.completion",
        created=int(time.time()),
        model=model,
        choices=[choice],
        **_run_record(message),
    )
    if (usage := _usage(message)) is not None:
        completion.usage = usage
    return completion


def chat_completion_chunks(
    message: AIMessage, *, model: str, include_usage: bool = False
) -> Iterator[ChatCompletionChunk]:
    """The answer in chunks; the one with the finish reason carries the record of the run as `tpo`.

    Args:
        message: the answer of a `ChatTPO`.
        model: the model name that the client asked for.
        include_usage: end with a chunk that has the usage and no choice.
    """
    completion_id, created = _new_id(), int(time.time())

    def chunk(*choices: ChunkChoice, **more: object) -> ChatCompletionChunk:
        fields: JSONObject = {**({"usage": None} if include_usage else {}), **more}
        return ChatCompletionChunk(
            id=completion_id,
            object="chat.completion.chunk",
            created=created,
            model=model,
            choices=list(choices),
            **fields,
        )

    def part(delta: ChoiceDelta) -> ChatCompletionChunk:
        return chunk(ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=None))

    yield part(ChoiceDelta(role="assistant", content=""))
    for piece in answer_chunks(message):
        if piece.text:
            yield part(ChoiceDelta(content=piece.text))
    for index, call in enumerate(_tool_calls(message)):
        yield part(ChoiceDelta(tool_calls=[ChoiceDeltaToolCall(index=index, **call)]))
    last = ChunkChoice(index=0, delta=ChoiceDelta(), logprobs=None, finish_reason=_finish_reason(message))
    yield chunk(last, **_run_record(message))
    if include_usage:
        yield chunk(usage=_usage(message))


def _new_id() -> str:
    return f"chatcmpl-{uuid4().hex}"


def _tool_calls(message: AIMessage) -> list[JSONObject]:
    """All tool calls, with those whose arguments are not JSON as the policy wrote them."""
    calls = [(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls]
    invalid = [(call["id"], call["name"], call["args"]) for call in message.invalid_tool_calls]
    return [
        {
            "id": call_id or f"call_{uuid4().hex}",
            "type": "function",
            "function": {"name": name or "", "arguments": arguments or ""},
        }
        for call_id, name, arguments in [*calls, *invalid]
    ]


def _finish_reason(message: AIMessage) -> Literal["stop", "length", "tool_calls"]:
    # what a filter cut is no answer of a run, and OpenAI has no word for the rest
    if message.tool_calls or message.invalid_tool_calls:
        return "tool_calls"
    return "length" if finish_reason(message) in ("length", "error") else "stop"


def _usage(message: AIMessage) -> CompletionUsage | None:
    """The sum of all requests behind the answer; None where the provider does not count."""
    usage = message.usage_metadata
    if usage is None:
        return None
    return CompletionUsage(
        prompt_tokens=usage["input_tokens"],
        completion_tokens=usage["output_tokens"],
        total_tokens=usage["total_tokens"],
    )


def _run_record(message: AIMessage) -> JSONObject:
    """The record of the run as a field; none for tool calls, which come before any run."""
    record = message.response_metadata.get("tpo")
    return {} if record is None else {"tpo": record}
