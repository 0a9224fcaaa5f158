"""The messages of a chat request, and as LangChain has them."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["WireMessage"]

# type of a content part, the field that holds it, and the type of that field
_PARTS: Mapping[str, tuple[str, type]] = {
    "text": ("text", str),
    "image_url": ("image_url", dict),
    "input_audio": ("input_audio", dict),
    "file": ("file", dict),
}
_PARTS_OF_USERS = frozenset(_PARTS)
_ONLY_TEXT = frozenset({"text"})


class WireMessage(BaseModel):
    """One message. Fields that would not reach the policy are refused, save where they say nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = None  # Any: a text or parts, checked below so that errors name the message
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None  # Any: JSON
    tool_call_id: str | None = None
    # clients send an answer back as they got it, with these empty
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[None] | None = None
    tpo: Any = None  # Any: what this server said of an answer; it is not part of the conversation

    @model_validator(mode="after")
    def _has_what_its_role_has(self) -> Self:
        allowed = _PARTS_OF_USERS if self.role == "user" else _ONLY_TEXT
        if self.content is None:
            if self.role != "assistant" or not self.tool_calls:
                raise ValueError("content is missing")
        elif isinstance(self.content, list):
            for place, part in enumerate(self.content):
                _check_part(part, f"content[{place}]", allowed)
        elif not isinstance(self.content, str):
            raise ValueError(f"content is neither a text nor a list of parts: {self.content!r}")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are an assistant's")
        for place, call in enumerate(self.tool_calls or []):
            _check_call(call, f"tool_calls[{place}]")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id is what a message of the role tool has, and no other")
        if self.name is not None and self.role == "tool":
            raise ValueError("name is not what a message of the role tool has")
        return self

    def to_langchain(self) -> BaseMessage:
        """The message as LangChain has it."""
        if self.role == "assistant":
            return self._answer()
        if self.role == "tool":
            return ToolMessage(self.content, tool_call_id=self.tool_call_id)
        if self.role == "user":
            return HumanMessage(self.content, name=self.name)
        # LangChain's own mark of a system message that goes out as the role developer
        told = {"__openai_role__": "developer"} if self.role == "developer" else {}
        return SystemMessage(self.content, name=self.name, additional_kwargs=told)

    def _answer(self) -> AIMessage:
        calls, wrong = [], []
        for call in self.tool_calls or []:
            try:
                parsed = parse_tool_call(call)
            except OutputParserException as error:
                # the policy wrote no JSON, and is now told so: that message goes back as it was
                wrong.append(make_invalid_tool_call(call, str(error)))
                continue
            if parsed is not None:
                calls.append(parsed)
        content = "" if self.content is None else self.content
        return AIMessage(content, name=self.name, tool_calls=calls, invalid_tool_calls=wrong)


def _check_part(part: Any, place: str, allowed: frozenset[str]) -> None:  # Any: JSON
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in allowed:
        raise ValueError(f"{place} has the type {kind!r}; allowed here: {', '.join(sorted(allowed))}")
    name, held = _PARTS[kind]
    if not isinstance(part.get(name), held):
        raise ValueError(f"{place} has no {name}")


def _check_call(call: Mapping[str, Any], place: str) -> None:  # Any: JSON
    function = call.get("function")
    texts = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
    if not all(isinstance(text, str) for text in (*texts, call.get("id"))):
        raise ValueError(f'{place} is not {{"id": ..., "function": {{"name": ..., "arguments": "..."}}}}')
