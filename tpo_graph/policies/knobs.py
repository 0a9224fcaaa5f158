"""How sampling knobs reach a chat model: as its own fields, on a copy.

Every chat model reads its fields when it is asked, while few take the same arguments. Models inside `bind`,
`with_config`, `with_retry` and `with_fallbacks` are reached too.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase

from tpo_graph.errors import ConfigurationError
from tpo_graph.settings import Sampling

__all__ = [
    "Policy",
    "change_models",
    "completion_fields",
    "knob_fields",
    "models_inside",
    "takes",
    "takes_knob",
    "usable_knobs",
]

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
