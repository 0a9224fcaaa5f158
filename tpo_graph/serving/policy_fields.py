"""What a request wants of the policy: refused by the client's own name where it would not reach it."""

from collections.abc import Iterator
from typing import Any, get_args

from langchain_core.language_models import BaseChatModel

from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.policies.knobs import models_inside, takes_knob
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.requests import POLICY_FIELDS, ChatRequest
from tpo_graph.settings import PolicyPhase
from tpo_graph.types import Mode

__all__ = ["check_policy"]

_KNOBS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "seed": "seed",
}
_CRITICS: tuple[PolicyPhase, ...] = ("loss", "gradient")


def check_policy(chat: ChatRequest, mode: Mode, model: ChatTPO) -> None:
    """Look at everything in a request that is meant for the policy.

    Raises:
        RequestRefusedError: the policy can't take it; `param` names the field.
    """
    for field, policy, knob in _knobs(chat, model):
        if not takes_knob(policy, knob):
            raise _refused(field, "the policy has no way to take it")
    for field in POLICY_FIELDS:
        if getattr(chat, field) is not None and not _is_openai_compatible(model.policy):
            raise _refused(field, "the policy is not an OpenAI-compatible one")
    if chat.tools and not _takes_tools(model.policy):
        raise _refused("tools", "the policy takes none")
    _check_parts(chat, mode, model)


def _knobs(chat: ChatRequest, model: ChatTPO) -> Iterator[tuple[str, Any, str]]:  # Any: a policy
    """The knobs that a request names: the client's name, who is to take it, and our name."""
    for field, knob in _KNOBS.items():
        if getattr(chat, field) is not None:
            yield field, model.policy, knob
    critic = model.policy if model.critic is None else model.critic
    named = {name for name, value in chat.tpo.items() if value not in (None, "none", "null")}
    if "seed" in named:
        yield "tpo.seed", model.policy, "seed"
    for phase in get_args(PolicyPhase):
        for knob in ("temperature", "top_p", "max_new_tokens"):
            if f"{phase}_{knob}" in named:
                yield f"tpo.{phase}_{knob}", critic if phase in _CRITICS else model.policy, knob


def _check_parts(chat: ChatRequest, mode: Mode, model: ChatTPO) -> None:
    """Refuse images and the like where a prompt of the pack shows the policy the text alone."""
    if model.prompts.prompt("sample", mode) is None:
        return
    for place, message in enumerate(chat.messages):
        for at, part in enumerate(message.content if isinstance(message.content, list) else []):
            if part["type"] != "text":
                why = f"the prompt pack {model.prompts.name!r} shows the policy texts alone"
                raise _refused(f"messages[{place}].content[{at}]", why)


def _takes_tools(policy: Any) -> bool:  # Any: a policy
    models = models_inside(policy)
    return bool(models) and all(type(model).bind_tools is not BaseChatModel.bind_tools for model in models)


def _is_openai_compatible(policy: Any) -> bool:  # Any: a policy
    from langchain_openai.chat_models.base import BaseChatOpenAI

    models = models_inside(policy)
    return bool(models) and all(isinstance(model, BaseChatOpenAI) for model in models)


def _refused(field: str, why: str) -> RequestRefusedError:
    return RequestRefusedError(f"{field} can't be passed on: {why}.", param=field, code="unsupported_parameter")
