"""From LangChain messages to the role and content dicts that chat templates take."""

import json
from collections.abc import Sequence
from typing import TypeAlias

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from tpo_graph.errors import RewardError

__all__ = ["ChatTurn", "chat_turns"]

ChatTurn: TypeAlias = dict[str, object]
"""One message as a chat template sees it: `role`, `content`, perhaps `tool_calls`."""

UNSPOKEN = frozenset({"text", "reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "function_call"})
"""Content blocks whose text alone is scored: reasoning is no part of the answer, tool calls have a key of their own."""


def chat_turns(messages: Sequence[BaseMessage]) -> list[ChatTurn]:
    """Return the conversation as a chat template takes it.

    Raises:
        RewardError: when a message holds an image or another thing that a text reward model can't see.
    """
    turns: list[ChatTurn] = []
    for message in messages:
        if not isinstance(message.content, str):
            kinds = {block.get("type", "?") for block in message.content if isinstance(block, dict)}
            if kinds - UNSPOKEN:
                raise RewardError(
                    f"A {message.type} message holds {', '.join(sorted(kinds - UNSPOKEN))}; "
                    "a local reward model reads text alone.",
                    hint="Leave images and files out of the conversation that is scored.",
                )
        turn = convert_to_openai_messages(message.model_copy(update={"content": str(message.text)}))
        for call in turn.get("tool_calls") or ():
            # templates print the arguments themselves; as a JSON text they would be quoted twice
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        turns.append(turn)
    return turns
