"""How a reward function wants to be called, found from its signature."""

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from tpo_graph.errors import ConfigurationError

__all__ = ["STYLES", "FunctionStyle", "find_style"]

FunctionStyle: TypeAlias = Literal[
    "response",  # f(response) -> float
    "responses",  # f(responses) -> floats
    "messages_response",  # f(messages, response) -> float
    "messages_responses",  # f(messages, responses) -> floats
    "trl",  # f(prompts, completions, **columns) -> floats, prompts and completions being texts
    "trl_chat",  # the same, prompts and completions being lists of {"role": ..., "content": ...}
]
"""What a reward function takes. The names are those of its arguments, one text or many."""

STYLES: tuple[FunctionStyle, ...] = typing.get_args(FunctionStyle)

_ONE = {"response", "completion", "answer", "text", "candidate"}
_MANY = {"responses", "completions", "answers", "texts", "candidates"}
_MESSAGES = {"messages", "conversation"}
_HINT = f"Give style=..., one of: {', '.join(STYLES)}."


def find_style(function: Callable[..., Any]) -> FunctionStyle:  # Any: a function of a user
    """The style of a function, by the names and the annotations of its arguments.

    Example:
        >>> def brevity(response: str) -> float: ...
        >>> find_style(brevity)
        'response'

    Raises:
        ConfigurationError: the signature can be read in more than one way, or in none.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The reward function {name!r} shows no signature.", hint=_HINT) from error
    hints = _type_hints(function)
    takes_more = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if "completions" in parameters and ("prompts" in parameters or takes_more):
        if "completions" not in hints and takes_more and [*parameters][:-1] == ["prompts", "completions"]:
            # as TRL's documentation writes it; its data sets are of texts unless they are made of messages
            return "trl"
        return _trl_style(name, hints.get("completions"))
    needed = [each.name for each in parameters.values() if _is_positional(each) and each.default is each.empty]
    match needed:
        case [response]:
            count = _count(response, hints.get(response))
            if count is not None:
                return "response" if count == 1 else "responses"
        case [messages, response] if messages in _MESSAGES:
            count = _count(response, hints.get(response))
            if count is not None:
                return "messages_response" if count == 1 else "messages_responses"
    raise ConfigurationError(
        f"The arguments of the reward function {name!r} ({', '.join(parameters)}) don't tell how to call it.",
        hint=_HINT,
    )


def _trl_style(name: str, hint: object) -> FunctionStyle:
    """TRL passes texts or lists of messages, as the data set has it; only an annotation can tell which."""
    items = typing.get_args(hint)
    if items and items[0] is str:
        return "trl"
    if items and typing.get_origin(items[0]) in (list, Sequence):
        return "trl_chat"
    raise ConfigurationError(
        f"The reward function {name!r} has TRL's signature, and it isn't clear what a completion is to it.",
        hint='Give style="trl" if it is a text, style="trl_chat" if it is a list of messages.',
    )


def _count(name: str, hint: object) -> int | None:
    """1 for an argument that is one text, 2 for many, None for what can't be told. A type tells more than a name."""
    if hint is str:
        return 1
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return 2
    if hint is not None and not isinstance(hint, types.UnionType):
        return None
    return 1 if name in _ONE else 2 if name in _MANY else None


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    # an object's hints are those of its method
    target = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # a name under TYPE_CHECKING, or nothing that can have hints
        return {}
