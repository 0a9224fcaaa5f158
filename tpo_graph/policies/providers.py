"""What chat models take: the models inside a policy, and their fields for what is asked of them.

A policy is a chat model, or one inside `bind`, `with_config`, `with_retry` or `with_fallbacks`: `models_inside` and
`change_models` find it there. Sampling knobs are set as fields on a copy of the model, because every chat model reads
its fields when it is asked, while few accept the same arguments.
"""

import sys
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.retry import RunnableRetry

from tpo_graph.errors import ConfigurationError
from tpo_graph.types import Options

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
    """The policy with `change` applied to every chat model in it; wrappers are copied around what changes.

    A token limit that is bound to one of langchain-openai's models becomes the model's own, which `rename_limit` sees.
    """
    if isinstance(policy, BaseChatModel):
        return change(policy)
    if isinstance(policy, RunnableBinding) and is_openai_compatible(policy.bound):
        own = {field: policy.kwargs[name] for name, field in _LIMIT_ARGUMENTS.items() if name in policy.kwargs}
        left = {name: value for name, value in policy.kwargs.items() if name not in _LIMIT_ARGUMENTS}
        bound = change_models(policy.bound, lambda model: change(model.model_copy(update=own) if own else model))
        return policy.model_copy(update={"bound": bound, "kwargs": left})
    if isinstance(policy, RunnableBindingBase):
        return policy.model_copy(update={"bound": change_models(policy.bound, change)})
    if isinstance(policy, RunnableWithFallbacks):
        first = change_models(policy.runnable, change)
        fallbacks = [change_models(fallback, change) for fallback in policy.fallbacks]
        return policy.model_copy(update={"runnable": first, "fallbacks": fallbacks})
    return policy


def has_retries(policy: Policy) -> bool:
    """Whether `with_retry` is somewhere in the policy."""
    if isinstance(policy, RunnableWithFallbacks):
        return any(has_retries(runnable) for runnable in policy.runnables)
    return isinstance(policy, RunnableRetry) or (isinstance(policy, RunnableBindingBase) and has_retries(policy.bound))


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


_LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
# what may be bound to say the token limit, and the model's field for it
_LIMIT_ARGUMENTS = {**dict.fromkeys(_LIMIT_NAMES, "max_tokens"), "extra_body": "extra_body"}
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


def limit_names(model: object) -> tuple[str, ...]:
    """The names that the token limit may have in a request of one of langchain-openai's models, the likeliest first.

    OpenAI's newer models know `max_completion_tokens` alone. Most other servers know `max_tokens`; some of them
    refuse the other name, and some ignore it.
    """
    if not isinstance(model, BaseChatModel) or not is_openai_compatible(model):
        return ()
    client: Any = getattr(model, "root_async_client", None)
    is_openai = client is not None and client.base_url.host.endswith(("openai.com", "azure.com"))
    return _LIMIT_NAMES[::-1] if is_openai and _own_limit_name(model) != _LIMIT_NAMES[0] else _LIMIT_NAMES


def rename_limit(
    model: BaseChatModel, fields: dict[str, Options], refused: AbstractSet[str] = frozenset()
) -> dict[str, Options]:
    """The fields with the token limit, be it the model's own, under the name that its server knows.

    Args:
        model: a chat model.
        fields: those that will be set on a copy of it.
        refused: names that its server refused.
    """
    name = next((name for name in limit_names(model) if name not in refused), None)
    limit = fields.get("max_tokens", getattr(model, "max_tokens", None))
    extra = {**(getattr(model, "extra_body", None) or {})}
    if name is None or limit is None or name == _own_limit_name(model) or not extra.keys().isdisjoint(_LIMIT_NAMES):
        return fields
    return {**fields, "max_tokens": None, "extra_body": {**extra, name: limit}}


def _own_limit_name(model: BaseChatModel) -> str:
    """The name under which one of langchain-openai's models sends its token limit."""
    return type(model).model_fields["max_tokens"].alias or "max_tokens"


def knob_fields(
    model: BaseChatModel,
    knobs: Mapping[str, float],
    explicit: AbstractSet[str],
    refused: AbstractSet[str] = frozenset(),
) -> dict[str, Options]:
    """The model's fields for sampling knobs.

    Args:
        model: a chat model.
        knobs: values by the settings' names: `temperature`, `top_p`, `max_new_tokens` and `seed`.
        explicit: those that a person has set. Of the others, one is left out where the model has no field for it, and
            the token limit where the model has a limit of its own.
        refused: names of the token limit that the model's server refused.

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
    return rename_limit(model, fields, refused)


def token_limit(model: BaseChatModel, knobs: Mapping[str, float], explicit: AbstractSet[str]) -> int | None:
    """The limit of completion tokens of a request: the knob's or the model's own, as in `knob_fields`; None for none.

    Args:
        model: a chat model.
        knobs: values of the knobs.
        explicit: those that a person has set.
    """
    field = knob_field(model, "max_new_tokens")
    if field is None:
        return None
    own, limit = getattr(model, field, None), knobs.get("max_new_tokens")
    limit = limit if limit is not None and ("max_new_tokens" in explicit or not own) else own
    return int(limit) if limit else None


def completion_fields(model: BaseChatModel, n: int) -> dict[str, Options]:
    """Fields for `n` completions: no cached text twice, and no N completions merged into one stream."""
    fields: dict[str, Options] = {"cache": False, "disable_streaming": True}
    if takes(model, "streaming"):
        fields["streaming"] = False
    if takes(model, "n"):
        optional = type(None) in getattr(type(model).model_fields["n"].annotation, "__args__", ())
        fields["n"] = n if n > 1 else None if optional else 1
    return fields


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
                additional_kwargs={"refusal": choice.message.refusal},
                response_metadata={"finish_reason": choice.finish_reason},
            )
        )
        for choice in answer.choices
    ]
    token_usage = answer.usage.model_dump() if answer.usage else None
    return LLMResult(generations=[list(generations)], llm_output={"token_usage": token_usage})
