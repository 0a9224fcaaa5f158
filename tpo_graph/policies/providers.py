"""What came with an error: OpenAI's client raises when one of a request's completions was cut.

It does so where a response format was sent, and the completions that are whole are in the error.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase

from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.settings import Sampling

# How sampling knobs reach a chat model: as its own fields, on a copy.
#
# Every chat model reads its fields when it is asked, while few take the same arguments. Models inside `bind`,
# `with_config`, `with_retry` and `with_fallbacks` are reached too.

Policy: TypeAlias = Runnable[Any, Any]  # Any: LangChain types a chat model's input and output so, once bound or wrapped
"""A chat model, or one with arguments bound, fallbacks or retries around it."""

# the first of these that a model has as a field takes the knob
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_new_tokens": ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "seed": ("seed",),
}


def takes(model: BaseChatModel, field: str) -> bool:
    """Whether the model's class has the field."""
    return field in type(model).model_fields


def models_inside(policy: Policy) -> list[BaseChatModel]:
    """Every chat model in the policy."""
    found: list[BaseChatModel] = []

    def note(model: BaseChatModel) -> BaseChatModel:
        found.append(model)
        return model

    change_models(policy, note)
    return found


def takes_knob(policy: Policy, knob: str) -> bool:
    """Whether every chat model in the policy has a field for the knob; False where there is none to be seen."""
    models = models_inside(policy)
    return bool(models) and all(any(takes(model, field) for field in _FIELDS[knob]) for model in models)


def change_models(policy: Policy, change: Callable[[BaseChatModel], BaseChatModel]) -> Policy:
    """The policy with `change` applied to every chat model in it; wrappers are copied around what changes."""
    if isinstance(policy, BaseChatModel):
        return change(policy)
    if isinstance(policy, RunnableBindingBase):
        return policy.model_copy(update={"bound": change_models(policy.bound, change)})
    if isinstance(policy, RunnableWithFallbacks):
        inner = change_models(policy.runnable, change)
        others = [change_models(each, change) for each in policy.fallbacks]
        return policy.model_copy(update={"runnable": inner, "fallbacks": others})
    return policy


def usable_knobs(sampling: Sampling, refused: AbstractSet[str]) -> dict[str, float]:
    """The knobs that have a value and that the provider has not refused."""
    wanted = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
    }
    return {name: value for name, value in wanted.items() if value is not None and name not in refused}


def knob_fields(model: BaseChatModel, knobs: Mapping[str, float], explicit: AbstractSet[str]) -> dict[str, Any]:
    """The model's fields for these knobs; a default is left out where the model has no field for it.

    Raises:
        ConfigurationError: a knob that a person has set has no field.
    """
    fields: dict[str, Any] = {}  # Any: values of any field
    for name, value in knobs.items():
        field = next((field for field in _FIELDS[name] if takes(model, field)), "")
        if not field:
            if name in explicit:
                raise ConfigurationError(
                    f"{type(model).__name__} has no way to take {name}={value}.",
                    hint="Leave that setting out, and set it on the model itself.",
                )
            continue
        # the model's own limit is kept unless a person set another for this phase
        if name == "max_new_tokens" and name not in explicit and getattr(model, field, None):
            continue
        fields[field] = value
    return fields


def completion_fields(model: BaseChatModel, n: int) -> dict[str, Any]:  # Any: values of any field
    """Fields for `n` completions: no cached text twice, and no N completions merged into one stream."""
    fields: dict[str, Any] = {"cache": False, "disable_streaming": True}
    if takes(model, "streaming"):
        fields["streaming"] = False
    if takes(model, "n"):
        optional = type(None) in getattr(type(model).model_fields["n"].annotation, "__args__", ())
        fields["n"] = n if n > 1 else None if optional else 1
    return fields


# What an error of a model provider means: how its kinds are told apart, and what to do about each.

# what servers answer to more completions than they give; 404 is a wrong model or address
_NOT_TAKEN = frozenset({400, 413, 422, 501})
_SERVER_ERROR = 500
_HINTS = {
    401: "Check the API key: the provider does not accept it.",
    403: "Check the API key: the provider does not accept it.",
    404: "Check the model name and the address: the provider does not know them.",
    429: "The provider limits the rate or the quota: wait, or ask for less at a time.",
}
_CONTEXT = re.compile(r"context (length|size|window)|maximum context|too many tokens|prompt is too long", re.IGNORECASE)
_TOO_LONG = (
    "Prompt and answers do not fit into the model's context: lower max_shown_tokens, the phases' max_new_tokens or n, "
    'or give the server a larger context (load_policy("local", context_tokens=...)).'
)
# of two that a provider does not take together, top_p goes first
_KNOB_WORDS = {
    "top_p": ("top_p",),
    "temperature": ("temperature",),
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "seed": ("seed",),
}


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of any client library, where it has one."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def may_refuse_n(error: object) -> bool:
    """Whether a failed request for several completions may be one that asks for too many."""
    if isinstance(error, TypeError | ValueError | NotImplementedError) and not isinstance(error, TPOError):
        return True
    if not isinstance(error, Exception):
        return False
    status = status_of(error) or 0
    return status in _NOT_TAKEN or (status >= _SERVER_ERROR and _has_word_n(error))


def names_n(error: Exception, n: int) -> bool:
    """Whether the error of a request for `n` completions speaks of their number."""
    return _has_word_n(error) or re.search(rf"\b{n}\b", _said(error)) is not None


def smaller_n(error: Exception, n: int) -> int:
    """How many completions to ask for after `n` were refused.

    The most that the error names; else half, or one where the server calls it a failure of its own.
    """
    named = [int(number) for number in re.findall(r"\b\d{1,4}\b", _said(error)) if 0 < int(number) < n]
    return max(named, default=1 if (status_of(error) or 0) >= _SERVER_ERROR else n // 2)


def _has_word_n(error: Exception) -> bool:
    # a line break in a quoted text is no n
    return getattr(error, "param", None) == "n" or re.search(r"(?<!\\)\bn\b", _said(error)) is not None


def _said(error: Exception) -> str:
    """What the provider says, without the status that OpenAI's client puts before it."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, Mapping) else None
    return str(message or error)


def refused_knob(error: Exception, knobs: AbstractSet[str]) -> str | None:
    """The one of `knobs` that the provider says it does not take, or None."""
    return next((knob for knob in _named_knobs(error) if knob in knobs), None)


def _named_knobs(error: Exception) -> Iterator[str]:
    """The knobs that an error names as not taken; `seed` is one that is never left out by itself."""
    if status_of(error) not in (400, 422):
        return
    # OpenAI's errors name the parameter; a text may also repeat the request
    text = getattr(error, "param", None) or str(error)
    for knob, words in _KNOB_WORDS.items():
        if any(re.search(rf"\b{word}\b", text) for word in words):
            yield knob


def one_line(error: BaseException) -> str:
    """An error as one line: its kind and what it says."""
    if _is_refused_connection(error):
        return "the connection was refused"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}".rstrip(": .") if text else type(error).__name__


def hint_for(error: Exception, address: str = "") -> str:
    """What a person can do about a provider's error; "" where there is nothing to say.

    Args:
        error: what the provider's client raised.
        address: where the provider was asked, if that is known.
    """
    no_server = (
        f"Is the server at {address} running?" if address else "Is the server running, and is its address right?"
    )
    hint = _HINTS.get(status_of(error) or 0, "") or _hint_for_request(error)
    if hint:
        return hint
    if _is_refused_connection(error):
        return no_server
    name = type(error).__name__
    if "Timeout" in name:
        return "The provider did not answer in time: try again, or raise the model's timeout."
    return no_server if "Connect" in name else ""


def _hint_for_request(error: Exception) -> str:
    """What to change in a request that the provider refused, or that was too much for it."""
    if status_of(error) is None:
        return ""
    if _CONTEXT.search(_said(error)):
        return _TOO_LONG
    knob = next(_named_knobs(error), "")
    if knob == "seed":
        return "The provider takes no seed: set seed to none."
    if knob:
        return f"Set {knob} of the phase to none to leave it to the provider, as in sample_{knob}=none."
    param = getattr(error, "param", None)
    return f"The provider does not take {param!r} as it was sent." if param else ""


def _is_refused_connection(error: BaseException) -> bool:
    """Whether there is no server; aiohttp's transport tells that as a timeout, so its causes are looked at."""
    return any(
        isinstance(cause, ConnectionRefusedError) or type(cause).__name__.startswith("ClientConnector")
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def result_inside(error: Exception) -> LLMResult | None:
    """All completions of the request, and its usage; None where the error is another."""
    openai = sys.modules.get("openai")
    if openai is None or not isinstance(error, openai.LengthFinishReasonError):
        return None
    answer = error.completion
    generations: list[Any] = [  # Any: LangChain's list may have other kinds too
        ChatGeneration(
            message=AIMessage(
                choice.message.content or "",
                # that there are some; what they say may be cut as well
                tool_calls=[{"name": "", "args": {}, "id": call.id} for call in choice.message.tool_calls or []],
                response_metadata={"finish_reason": choice.finish_reason},
            )
        )
        for choice in answer.choices
    ]
    return LLMResult(
        generations=[generations], llm_output={"token_usage": answer.usage.model_dump() if answer.usage else None}
    )
