"""One line of a preference data set: a prompt, what was chosen and what was rejected."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages

from tpo_graph.errors import ConfigurationError

__all__ = ["BadLine", "Pair", "read_pairs"]

_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two responses to one conversation.

    Attributes:
        line: its line in the file, from 1.
        messages: the conversation; other columns of the line travel with its last user message.
        chosen: the response that people preferred.
        rejected: the other one.
    """

    line: int
    messages: list[BaseMessage]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class BadLine:
    """A line that is no pair, and why."""

    line: int
    reason: str


def read_pairs(lines: Iterable[str | bytes]) -> Iterator[Pair | BadLine]:
    """Read JSON Lines one by one; empty lines are passed over.

    `prompt` is a text or a list of messages. `chosen` and `rejected` are texts or lists of messages, whose last one is
    the response; what comes before it is the conversation, the same in both. It may go on from `prompt`, or take its
    place.

    Args:
        lines: the lines of a file.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _pair(number, json.loads(line))
        except UnicodeDecodeError:
            yield BadLine(number, "it is not UTF-8")
        except json.JSONDecodeError as error:
            yield BadLine(number, f"it is not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            yield BadLine(number, "it is nested too deep")
        except ConfigurationError as error:
            yield BadLine(number, error.message)


_Row: TypeAlias = Mapping[str, Any]  # Any: raw JSON


def _pair(number: int, row: _Row) -> Pair:
    if not isinstance(row, dict):
        raise ConfigurationError(f"it is {type(row).__name__}, not an object")
    before, chosen = _response(row, "chosen")
    other, rejected = _response(row, "rejected")
    if before and other and not _same(before, other):
        raise ConfigurationError("chosen and rejected answer different conversations")
    messages = _conversation(row.get("prompt"), before or other)
    columns = {name: value for name, value in row.items() if name not in _COLUMNS}
    last = next((message for message in reversed(messages) if message.type == "human"), None)
    if last is not None:
        last.additional_kwargs = {**columns, **last.additional_kwargs}
    return Pair(number, messages, chosen, rejected)


def _conversation(prompt: object, before: list[BaseMessage]) -> list[BaseMessage]:
    """The fuller of the prompt and what comes before the responses."""
    if prompt is None and before:
        return before
    if isinstance(prompt, str) and prompt.strip():
        messages: list[BaseMessage] = [HumanMessage(prompt)]
    elif isinstance(prompt, list) and prompt:
        messages = _messages(prompt, "prompt")
    else:
        raise ConfigurationError(f"prompt is {_shown(prompt)}; it must be a text or a list of messages")
    if not before:
        return messages
    # either may leave the system message to the other
    mine, theirs = _without_system(messages), _without_system(before)
    systems = messages[: len(messages) - len(mine)], before[: len(before) - len(theirs)]
    if not _same(mine, theirs[: len(mine)]) or (all(systems) and not _same(*systems)):
        raise ConfigurationError("chosen and rejected do not go on from prompt")
    return (systems[0] or systems[1]) + theirs


def _without_system(messages: list[BaseMessage]) -> list[BaseMessage]:
    return messages[1:] if messages[0].type == "system" else messages


def _same(left: list[BaseMessage], right: list[BaseMessage]) -> bool:
    return [(each.type, each.text) for each in left] == [(each.type, each.text) for each in right]


def _response(row: _Row, name: str) -> tuple[list[BaseMessage], str]:
    value = row.get(name)
    if isinstance(value, str):
        return [], value
    if not isinstance(value, list) or not value:
        raise ConfigurationError(f"{name} is {_shown(value)}; it must be a text or a list of messages")
    *before, last = _messages(value, name)
    if last.type != "ai":
        raise ConfigurationError(f"{name} ends with a {last.type} message; the last one must be the assistant's")
    return before, last.text


def _messages(value: list[Any], name: str) -> list[BaseMessage]:
    try:
        return convert_to_messages(value)
    except Exception as error:  # LangChain has no error of its own for a message that it can't read
        raise ConfigurationError(f"{name} can't be read as messages: {str(error).splitlines()[0]}") from error


def _shown(value: object) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
