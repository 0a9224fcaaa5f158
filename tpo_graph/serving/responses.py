"""An answer as the OpenAI API tells it, whole or in chunks."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk

from tpo_graph.langchain.answer_message import answer_chunks

__all__ = ["Completion"]


@dataclass(frozen=True)
class Completion:
    """The frame of one answer.

    Attributes:
        model: the name that the client asked for.
        id: of the answer.
        created: seconds since 1970.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, message: AIMessage) -> dict[str, Any]:  # Any: JSON
        """The answer as one document; `tpo` tells the reward, the stop reason and the trajectory."""
        calls = [
            _call(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls
        ]
        calls += [_call(call["id"], call["name"], call["args"]) for call in message.invalid_tool_calls]
        said = {"role": "assistant", "content": message.text or (None if calls else ""), "refusal": None}
        choice = {
            "index": 0,
            "message": {**said, "tool_calls": calls} if calls else said,
            "logprobs": None,
            "finish_reason": _finish_reason(message),
        }
        usage = _usage(message)
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            **({"usage": usage} if usage else {}),
            **_told(message),
        }

    def chunks(self, message: AIMessage, *, with_usage: bool) -> Iterator[dict[str, Any]]:  # Any: JSON
        """The answer in chunks; the one with the finish reason carries `tpo`.

        Args:
            message: the answer.
            with_usage: end with a chunk that has no choice and the usage.
        """
        no_usage = {"usage": None} if with_usage else {}
        head = self._head("chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:  # Any: JSON
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return {**head, "choices": [choice], **no_usage}

        yield chunk({"role": "assistant", "content": ""})
        for piece in answer_chunks(message):
            part = piece.message
            if part.text:
                yield chunk({"content": part.text})
            for call in part.tool_call_chunks if isinstance(part, AIMessageChunk) else []:
                told = _call(call["id"], call["name"], call["args"])
                yield chunk({"tool_calls": [{"index": call["index"], **told}]})
        yield {**chunk({}, _finish_reason(message)), **_told(message)}
        if with_usage:
            yield {**head, "choices": [], "usage": _usage(message)}

    def _head(self, kind: str) -> dict[str, Any]:  # Any: JSON
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _call(id_: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:  # Any: JSON
    return {
        "id": id_ or f"call_{uuid4().hex}",
        "type": "function",
        "function": {"name": name or "", "arguments": arguments or ""},
    }


def _finish_reason(message: AIMessage) -> str:
    if message.tool_calls or message.invalid_tool_calls:
        return "tool_calls"
    return str(message.response_metadata.get("finish_reason") or "stop")


def _usage(message: AIMessage) -> dict[str, int] | None:
    """The sum of all requests behind the answer; None where the provider does not count."""
    used = message.usage_metadata
    if used is None:
        return None
    return {
        "prompt_tokens": used["input_tokens"],
        "completion_tokens": used["output_tokens"],
        "total_tokens": used["total_tokens"],
    }


def _told(message: AIMessage) -> dict[str, Any]:  # Any: JSON
    """What there is to tell of the run; nothing for tool calls, before which there was none."""
    told = message.response_metadata.get("tpo")
    return {"tpo": told} if told is not None else {}
