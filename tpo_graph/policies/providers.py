"""What chat models and their providers take, and what it means when one of them fails.

A policy is a chat model, or one inside `bind`, `with_config`, `with_retry` or `with_fallbacks`: `models_inside` and
`change_models` find it there. Sampling knobs are set as fields on a copy of the model, because every chat model reads
its fields when it is asked, while few accept the same arguments. `ProviderFailure` is the only reader of errors:
those of any client library, and the answers of servers that are asked without one.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs

from tpo_graph.errors import ConfigurationError, PolicyError, TPOError
from tpo_graph.types import JSON, Options, PhaseUsage

Policy: TypeAlias = Runnable[Any, Any]
"""A chat model, or one with arguments bound, fallbacks or retries around it."""


def models_inside(policy: object) -> list[BaseChatModel]:
    """Every chat model in a policy, in the order in which they are asked; none where there is none to be seen."""
    if isinstance(policy, BaseChatModel):
        return [policy]
    if isinstance(policy, RunnableBindingBase):
        return models_inside(policy.bound)
    if isinstance(policy, RunnableWithFallbacks):
        return [model for runnable in policy.runnables for model in models_inside(runnable)]
    return []


def change_models(policy: Policy, change: Callable[[BaseChatModel], Policy]) -> Policy:
    """The policy with `change` applied to every chat model in it; wrappers are copied around what changes."""
    if isinstance(policy, BaseChatModel):
        return change(policy)
    if isinstance(policy, RunnableBindingBase):
        return policy.model_copy(update={"bound": change_models(policy.bound, change)})
    if isinstance(policy, RunnableWithFallbacks):
        first = change_models(policy.runnable, change)
        fallbacks = [change_models(fallback, change) for fallback in policy.fallbacks]
        return policy.model_copy(update={"runnable": first, "fallbacks": fallbacks})
    return policy


def unbind(policy: Policy) -> tuple[Policy, dict[str, Options], RunnableConfig]:
    """What `bind` and `with_config` are around, the arguments that they bind, and the config that they add."""
    arguments: dict[str, Options] = {}
    config: RunnableConfig = {}
    while isinstance(policy, RunnableBinding):
        arguments = {**policy.kwargs, **arguments}
        config = merge_configs(policy.config, config)
        policy = policy.bound
    return policy, arguments, config


def is_openai_compatible(policy: object) -> bool:
    """Whether every chat model in the policy is one of langchain-openai's, which take all fields of OpenAI's API."""
    module = sys.modules.get("langchain_openai.chat_models.base")  # where it is not loaded, nobody has such a model
    models = models_inside(policy)
    return module is not None and bool(models) and all(isinstance(model, module.BaseChatOpenAI) for model in models)


# the first of these that a model has as a field takes the knob
_KNOB_FIELDS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_new_tokens": ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "seed": ("seed",),
}


def takes(model: BaseChatModel, field: str) -> bool:
    """Whether the model's class has the field."""
    return field in type(model).model_fields


def knob_field(model: BaseChatModel, knob: str) -> str | None:
    """The name of the model's field for a sampling knob; None where it has none."""
    return next((field for field in _KNOB_FIELDS[knob] if takes(model, field)), None)


def takes_knob(policy: Policy, knob: str) -> bool:
    """Whether every chat model in the policy has a field for the knob; False where there is none to be seen."""
    models = models_inside(policy)
    return bool(models) and all(knob_field(model, knob) is not None for model in models)


def knob_fields(model: BaseChatModel, knobs: Mapping[str, float], explicit: AbstractSet[str]) -> dict[str, Options]:
    """The model's fields for sampling knobs.

    Args:
        model: a chat model.
        knobs: values by the settings' names: `temperature`, `top_p`, `max_new_tokens` and `seed`.
        explicit: those that a person has set. Of the others, one is left out where the model has no field for it, and
            the token limit where the model has a limit of its own.

    Raises:
        ConfigurationError: the model has no field for a knob that a person has set.
    """
    fields: dict[str, Options] = {}
    for knob, value in knobs.items():
        field = knob_field(model, knob)
        if field is None:
            if knob in explicit:
                raise ConfigurationError(
                    f"{type(model).__name__} has no way to take {knob}={value}.",
                    hint="Leave that setting out, and set it on the model itself.",
                )
        elif knob != "max_new_tokens" or knob in explicit or not getattr(model, field, None):
            fields[field] = value
    return fields


def completion_fields(model: BaseChatModel, n: int) -> dict[str, Options]:
    """Fields for `n` completions: no cached text twice, and no N completions merged into one stream."""
    fields: dict[str, Options] = {"cache": False, "disable_streaming": True}
    if takes(model, "streaming"):
        fields["streaming"] = False
    if takes(model, "n"):
        optional = type(None) in getattr(type(model).model_fields["n"].annotation, "__args__", ())
        fields["n"] = n if n > 1 else None if optional else 1
    return fields


FailureKind: TypeAlias = Literal[
    "refused",  # the provider does not take this request; another one, or one in another form, may go through
    "unsupported",  # the client library can't send such a request, or can't read the answer
    "key",  # the API key is not accepted
    "not_found",  # no such model or path
    "transient",  # the same request may go through later
    "timeout",  # no answer in time
    "unreachable",  # no server, or the connection was lost
    "other",
]

_REFUSED = frozenset({400, 413, 422, 424, 501})
_TRANSIENT = frozenset({408, 425, 429})
_SHOWN_CHARACTERS = 300  # of a server's answer, which may be a whole page
_CONTEXT = re.compile(r"context (length|size|window)|maximum context|too many tokens|prompt is too long", re.IGNORECASE)
# how providers call the knobs; of two that one of them does not take together, top_p goes first
_KNOB_WORDS: Mapping[str, str] = {
    "top_p": r"\btop_p\b",
    "temperature": r"\btemperature\b",
    "max_new_tokens": r"\b(max_tokens|max_completion_tokens|max_output_tokens)\b",
    "seed": r"\bseed\b",
}


@dataclass(frozen=True)
class ProviderFailure:
    """What the failure of a request means, whichever client library or server reported it.

    Attributes:
        kind: what is wrong, in one word.
        summary: the kind of error and its message as one line, for people.
        message: the provider's own words.
        status: of the HTTP answer; None where there was none, or where the client library does not say.
        param: the field of the request that the provider names as the cause.
    """

    kind: FailureKind
    summary: str
    message: str
    status: int | None = None
    param: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> "ProviderFailure":
        """What an exception of any client library means."""
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        status = status if isinstance(status, int) else None
        text = " ".join(str(error).split())
        return cls(
            kind=_kind_of_error(error) if status is None else _kind_of_status(status),
            summary="the connection was refused"
            if _is_refused_connection(error)
            else f"{type(error).__name__}: {text}".rstrip(": ."),
            message=_message_in(getattr(error, "body", None)) or text,
            status=status,
            param=getattr(error, "param", None),
        )

    @classmethod
    def of_response(cls, status: int, body: str) -> "ProviderFailure":
        """What an answer with a status of 400 or more means.

        Args:
            status: of the answer.
            body: its text.
        """
        try:
            message = _message_in(json.loads(body))
        except ValueError:
            message = " ".join(body.split())
        if len(message) > _SHOWN_CHARACTERS:
            message = message[:_SHOWN_CHARACTERS] + "..."
        return cls(_kind_of_status(status), f"status {status}: {message}".rstrip(": ."), message, status)

    def hint(self, address: str = "") -> str:
        """What to do about it; "" where there is nothing to say.

        Args:
            address: where the provider was asked, if that is known.
        """
        if self.status == 429:
            return "The provider limits the rate or the quota: wait, or ask for less at a time."
        if self.kind == "unreachable" and address:
            return f"Is the server at {address} running?"
        hints: Mapping[FailureKind, str] = {
            "key": "Check the API key: the provider does not accept it.",
            "not_found": "Check the model name and the address: the provider does not know them.",
            "timeout": "The provider did not answer in time: try again, or raise the model's timeout.",
            "unreachable": "Is the server running, and is its address right?",
        }
        return hints.get(self.kind, "")

    def settings_hint(self) -> str:
        """Which setting of a run to change, where the request asked for what the provider does not take."""
        if self.status is None:
            return ""
        if _CONTEXT.search(self.message):
            return (
                "Prompt and answers do not fit into the model's context: lower max_shown_tokens, the phases' "
                "max_new_tokens or n, or give the server a larger context "
                '(load_policy("local", context_tokens=...)).'
            )
        knob = self.refused_knob(_KNOB_WORDS.keys())
        if knob == "seed":
            return "The provider takes no seed: set seed to none."
        if knob:
            return f"Set {knob} of the phase to none to leave it to the provider, as in sample_{knob}=none."
        return f"The provider does not take {self.param!r} as it was sent." if self.param else ""

    def refused_knob(self, knobs: AbstractSet[str]) -> str | None:
        """The one of `knobs` that the provider says it does not take, or None."""
        if self.status not in (400, 422):
            return None
        text = self.param or self.message  # a message may also repeat the request
        return next((knob for knob, word in _KNOB_WORDS.items() if knob in knobs and re.search(word, text)), None)

    @property
    def may_refuse_n(self) -> bool:
        """Whether a request for several completions may have failed because it asked for too many."""
        return self.kind in ("refused", "unsupported") or (self._is_server_error and self._has_word_n)

    def names_n(self, n: int) -> bool:
        """Whether the failure of a request for `n` completions is about their number."""
        return self._has_word_n or re.search(rf"\b{n}\b", self.message) is not None

    def smaller_n(self, n: int) -> int:
        """How many completions to ask for after `n` were refused.

        The most that the message names; else half, or one where the server calls it a failure of its own.
        """
        named = [int(number) for number in re.findall(r"\b\d{1,4}\b", self.message) if 0 < int(number) < n]
        return max(named, default=1 if self._is_server_error else n // 2)

    @property
    def _has_word_n(self) -> bool:
        # the \n of a quoted text does not count
        return self.param == "n" or re.search(r"(?<!\\)\bn\b", self.message) is not None

    @property
    def _is_server_error(self) -> bool:
        return self.status is not None and self.status >= 500


def policy_failed(error: Exception, *, address: str = "", usage: PhaseUsage | None = None) -> PolicyError:
    """The error to raise for one of a policy's provider.

    Args:
        error: what the provider's client raised; of a `PolicyError` the message and the hint are kept.
        address: where the provider was asked, if that is known.
        usage: what the failed requests cost.
    """
    if isinstance(error, PolicyError):
        return PolicyError(error.message, hint=error.hint, usage=usage)
    failure = ProviderFailure.of(error)
    hint = failure.hint(address) or failure.settings_hint()
    return PolicyError(f"The policy failed: {failure.summary}.", hint=hint, usage=usage)


def partial_completions(error: Exception) -> LLMResult | None:
    """All completions of the failed request and its usage; None where the error holds none.

    OpenAI's client raises when one completion of a request with a response format reached the token limit. The error
    holds those that are whole as well.
    """
    openai = sys.modules.get("openai")
    if openai is None or not isinstance(error, openai.LengthFinishReasonError):
        return None
    answer = error.completion
    generations = [
        ChatGeneration(
            message=AIMessage(
                choice.message.content or "",
                # only that there are calls: their arguments may be cut as well
                tool_calls=[{"name": "", "args": {}, "id": call.id} for call in choice.message.tool_calls or []],
                response_metadata={"finish_reason": choice.finish_reason},
            )
        )
        for choice in answer.choices
    ]
    token_usage = answer.usage.model_dump() if answer.usage else None
    return LLMResult(generations=[list(generations)], llm_output={"token_usage": token_usage})


def _kind_of_status(status: int) -> FailureKind:
    if status in _REFUSED:
        return "refused"
    if status in (401, 403):
        return "key"
    if status in (404, 405):
        return "not_found"
    return "transient" if status in _TRANSIENT or status >= 500 else "other"


def _kind_of_error(error: BaseException) -> FailureKind:
    """The kind of an error without a status. Client libraries share no base class, so names have to do."""
    name = type(error).__name__
    if isinstance(error, TPOError):
        return "other"
    if isinstance(error, TypeError | ValueError | NotImplementedError):
        return "unsupported"
    if "Connect" in name or isinstance(error, ConnectionError) or _is_refused_connection(error):
        return "unreachable"
    if "Timeout" in name:
        return "timeout"
    is_transport_error = any(base.__name__ == "TransportError" for base in type(error).__mro__)  # httpx and its forks
    return "unreachable" if is_transport_error else "other"


def _is_refused_connection(error: BaseException) -> bool:
    """Whether there is no server. aiohttp's transport reports that as a timeout, so the causes are looked at."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, ConnectionRefusedError) or type(cause).__name__.startswith("ClientConnector"):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _message_in(body: JSON) -> str:
    """The message in the body of an error: servers put it into `error`, `error.message`, `message` or `detail`."""
    for _ in range(2):
        if isinstance(body, Mapping):
            body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), "")
    text = body if isinstance(body, str) else "" if body is None else json.dumps(body, default=str)
    return " ".join(text.split())
