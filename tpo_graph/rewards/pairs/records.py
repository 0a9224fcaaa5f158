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
    the response; without `prompt`, what comes before it in `chosen` is the conversation.

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
    _, rejected = _response(row, "rejected")
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        messages: list[BaseMessage] = [HumanMessage(prompt)]
    elif isinstance(prompt, list) and prompt:
        messages = _messages(prompt, "prompt")
    elif prompt is None and before:
        messages = before
    else:
        raise ConfigurationError(f"prompt is {_shown(prompt)}; it must be a text or a list of messages")
    columns = {name: value for name, value in row.items() if name not in _COLUMNS}
    last = next((message for message in reversed(messages) if message.type == "human"), None)
    if last is not None:
        last.additional_kwargs = {**columns, **last.additional_kwargs}
    return Pair(number, messages, chosen, rejected)


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
