"""A run's result as the message that a chat model returns, whole or in chunks."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables.base import RunnableBindingBase

from tpo_graph._private_api import cache_key
from tpo_graph.accounting import total
from tpo_graph.graph.state import TPOState
from tpo_graph.types import StopReason

# Names the parts of a `ChatTPO` so that LangChain's cache never takes one for another.


def fingerprint(parts: Iterable[object], *, token: str) -> str:
    """A digest that differs when any of the parts does.

    Args:
        parts: names, models, reward models, settings and the like.
        token: stands for objects that have no description which would survive the process; with it in the digest, a
            cache on disk can't take an object of this process for one of another.
    """
    return hashlib.sha256("\n".join(_describe(part, token) for part in parts).encode()).hexdigest()[:32]


def _describe(part: object, token: str) -> str:
    if part is None or isinstance(part, (str, int, float, Path)):
        return repr(part)
    if isinstance(part, RunnableBindingBase):
        return f"{_describe(part.bound, token)} {part.kwargs!r} {part.config!r}"
    if isinstance(part, BaseChatModel) and (part.is_lc_serializable() or part._identifying_params):
        # what LangChain itself takes a chat model to be
        return cache_key(part)
    if isinstance(part, dict):
        return repr({name: _describe(value, token) for name, value in part.items()})
    return f"{type(part).__module__}.{type(part).__qualname__} {id(part)} {token}"


_PIECE = re.compile(r"\S*\s*")


def answer_message(state: TPOState, *, stop_reason: StopReason, model_name: str, draft: AIMessage | None) -> AIMessage:
    """The message of a run that has ended, or of one that failed after the draft was there.

    Args:
        state: the last state of the run.
        stop_reason: why it ended.
        model_name: what the message says that it comes from.
        draft: the answer that was there already; its tokens count.
    """
    best, trajectory = state.get("best"), state.get("trajectory", [])
    told = {
        "reward": best["reward"] if best else None,
        "steps": state.get("step", 0),
        "stop_reason": stop_reason,
        "trajectory": trajectory,
        "warnings": state.get("warnings", []),
    }
    return AIMessage(
        state.get("answer") or (draft.text if draft else ""),
        usage_metadata=_sum(draft.usage_metadata if draft else None, _usage(state)),
        response_metadata={
            "model_name": model_name,
            "finish_reason": "length" if best and best["truncated"] else "stop",
            "tpo": told,
        },
    )


def relayed(message: AIMessage, *, model_name: str) -> AIMessage:
    """A message of the policy that goes out as it is, under the name of this model.

    Under the policy's own name, callbacks that add up the tokens of each model would count it twice.
    """
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "model_name": model_name}})


def answer_chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """The message in pieces of a word each; the last one carries usage, metadata and tool calls."""
    pieces = _PIECE.findall(message.content)[:-1] if isinstance(message.content, str) else []
    for piece in pieces[:-1]:
        yield ChatGenerationChunk(message=AIMessageChunk(content=piece, id=message.id))
    calls = [
        tool_call_chunk(
            name=call["name"], args=json.dumps(call["args"], ensure_ascii=False), id=call["id"], index=place
        )
        for place, call in enumerate(message.tool_calls)
    ]
    wrong = [
        tool_call_chunk(name=call["name"], args=call["args"], id=call["id"], index=len(calls) + place)
        for place, call in enumerate(message.invalid_tool_calls)
    ]
    last: str | list[Any] = pieces[-1] if pieces else message.content  # Any: content blocks
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content=last,
            id=message.id,
            additional_kwargs=message.additional_kwargs if not calls else _without_calls(message.additional_kwargs),
            response_metadata=message.response_metadata,
            usage_metadata=message.usage_metadata,
            tool_call_chunks=calls + wrong,
            chunk_position="last",
        )
    )


def _without_calls(told: Mapping[str, Any]) -> dict[str, Any]:  # Any: LangChain's own
    """What the provider said besides; the raw calls are in the chunk as tool calls."""
    return {name: value for name, value in told.items() if name != "tool_calls"}


def _sum(draft: UsageMetadata | None, run: UsageMetadata | None) -> UsageMetadata | None:
    """The draft's tokens and the run's; without the draft's details, which a run does not count."""
    if draft is None or run is None:
        return draft or run
    counts = draft["input_tokens"], draft["output_tokens"], draft["total_tokens"]
    return add_usage(UsageMetadata(input_tokens=counts[0], output_tokens=counts[1], total_tokens=counts[2]), run)


def _usage(state: TPOState) -> UsageMetadata | None:
    used = total(state.get("usage", {}))
    counts = used["input_tokens"], used["output_tokens"]
    if not any(counts):
        return None  # the provider does not count
    return UsageMetadata(input_tokens=counts[0], output_tokens=counts[1], total_tokens=sum(counts))
