"""Texts that every encoding, JSON reader and database can hold."""

from typing import TypeVar, cast

from tpo_graph.errors import ConfigurationError

T = TypeVar("T")


def storable_text(text: str) -> str:
    """The text with U+FFFD where it has half a surrogate pair, which no encoding has, or NUL, which PostgreSQL refuses.

    Args:
        text: any text; two halves that belong together become their character.
    """
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\ufffd")


def storable(value: T) -> T:
    """The same value with storable texts, however deep they lie in lists, mappings and messages.

    Args:
        value: what a run is given; anything but texts, lists, tuples, dicts and messages is returned as it is.

    Raises:
        ConfigurationError: it is nested too deep to be read.
    """
    try:
        return _storable(value)
    except RecursionError as error:
        raise ConfigurationError("The conversation holds a value that is nested too deep.") from error


def _storable(value: T) -> T:
    from langchain_core.messages import (
        AIMessage,
        BaseMessage,
    )  # half a second that settings, which need texts alone, save

    new: object = value
    if isinstance(value, str):
        new = storable_text(value)
    elif isinstance(value, list | tuple):
        new = type(value)(map(_storable, value))
    elif isinstance(value, dict):
        new = {name: _storable(item) for name, item in value.items()}
    elif isinstance(value, BaseMessage):
        fields: dict[str, object] = {"content": _storable(value.content)}
        if isinstance(value, AIMessage) and value.tool_calls:
            fields["tool_calls"] = _storable(value.tool_calls)
        new = value.model_copy(update=fields)
    return cast("T", new)  # the same type, by each branch
