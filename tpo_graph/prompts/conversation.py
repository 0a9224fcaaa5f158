"""A conversation as text, for prompts; and the cut that keeps a shown response in bounds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage

from tpo_graph.prompts.template import Template

ROLES: Mapping[str, str] = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
"""LangChain's message types and the roles that a prompt pack names."""

_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class ConversationFormat:
    """How a prompt pack writes `$conversation`.

    Attributes:
        single: a conversation of one user message; may use `content`.
        turn: one message of any other; may use `role` and `content`.
        separator: text between turns.
        roles: the pack's word for system, user, assistant and tool.
    """

    single: Template
    turn: Template
    separator: str
    roles: Mapping[str, str]

    def render(self, messages: Sequence[BaseMessage]) -> str:
        """The whole conversation as one text, oldest turn first."""
        if len(messages) == 1 and messages[0].type == "human":
            return self.single.render({"content": messages[0].text})
        return self.separator.join(
            self.turn.render({"role": self._role(message), "content": _content(message)}) for message in messages
        )

    def _role(self, message: BaseMessage) -> str:
        role = ROLES.get(message.type, message.type)
        return self.roles.get(role, role)


def _content(message: BaseMessage) -> str:
    """A message's text, and below it each call of a tool, as in `weather({"city": "Turku"})`."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    told = [f"{call['name']}({json.dumps(call['args'], ensure_ascii=False, default=str)})" for call in calls]
    return "\n".join([message.text, *told] if message.text else told)


def last_query(messages: Sequence[BaseMessage]) -> str:
    """Text of the last user message, or "" when there is none."""
    return next((message.text for message in reversed(messages) if message.type == "human"), "")


def cut_to_tokens(text: str, limit: int, tokenize: Callable[[str], Sequence[int]] | None = None) -> str:
    """The longest beginning of `text` that has at most `limit` tokens.

    Args:
        text: any text.
        limit: tokens, 1 or more.
        tokenize: text to token ids, where the policy has one (LangChain's `custom_get_token_ids`); without it
            a token is taken to be four bytes of UTF-8, about right for English and on the long side elsewhere.
    """
    if tokenize is None:
        data = text.encode("utf-8", errors="surrogatepass")
        if len(data) <= limit * _BYTES_PER_TOKEN:
            return text
        return data[: limit * _BYTES_PER_TOKEN].decode("utf-8", errors="ignore")
    if len(tokenize(text)) <= limit:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenize(text[:middle])) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low]
