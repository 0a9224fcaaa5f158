"""The parts that a prompt pack is made of, and the checks that each must pass when it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from tpo_graph.conversation import ConversationFormat
from tpo_graph.errors import PromptError
from tpo_graph.template import Syntax, Template

__all__ = [
    "PROMPT_NAMES",
    "PhasePrompt",
    "PromptName",
    "needed_variables",
    "parse_conversation",
    "parse_prompt",
    "refuse_unknown",
]

PromptName: TypeAlias = Literal[
    "sample",
    "sample_revision",
    "loss",
    "loss_revision",
    "gradient",
    "gradient_revision",
    "update",
    "update_revision",
]
PROMPT_NAMES: tuple[PromptName, ...] = get_args(PromptName)

_ALWAYS = frozenset({"query", "conversation", "preference"})
_ALLOWED: Mapping[str, frozenset[str]] = {
    "sample": _ALWAYS,
    "loss": _ALWAYS | {"best", "worst", "open_tag", "close_tag"},
    "gradient": _ALWAYS | {"best", "worst", "loss", "loss_prompt", "open_tag", "close_tag"},
    "update": _ALWAYS | {"best", "worst", "loss", "loss_prompt", "gradient", "open_tag", "close_tag"},
}
# every set needs one of its variables; in mode revision `worst` is neither needed nor allowed
_NEEDED: Mapping[str, tuple[frozenset[str], ...]] = {
    "sample": (frozenset({"query", "conversation"}),),
    "loss": (frozenset({"query", "conversation"}), frozenset({"best"}), frozenset({"worst"})),
    "gradient": (frozenset({"loss"}),),
    "update": (frozenset({"gradient"}),),
}
_SAMPLING_TYPES: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "max_new_tokens": (int,),
    "stop": (list,),
}


@dataclass(frozen=True)
class PhasePrompt:
    """What the policy is told in one phase.

    Attributes:
        user: the user message.
        system: the system message, or None for none.
        sampling: the pack's recommended `temperature`, `top_p`, `max_new_tokens` and `stop` for the phase.
    """

    user: Template
    system: Template | None
    sampling: Mapping[str, Any]  # values are checked against _SAMPLING_TYPES

    @property
    def variables(self) -> frozenset[str]:
        """Variables of both parts."""
        return self.user.variables | (self.system.variables if self.system else frozenset())


def needed_variables(name: str) -> tuple[frozenset[str], ...]:
    """What a prompt must use: one variable of each set."""
    phase = name.removesuffix("_revision")
    return tuple(choice for choice in _NEEDED[phase] if name == phase or choice != {"worst"})


def parse_prompt(name: str, table: Mapping[str, Any], syntax: Syntax, where: str) -> PhasePrompt:
    """One phase's prompt from the table of its file.

    Raises:
        PromptError: a part is missing, unknown or not as it must be.
    """
    refuse_unknown(table, {"user", "system", "sampling"}, where)
    phase = name.removesuffix("_revision")
    allowed = _ALLOWED[phase] - ({"worst"} if name != phase else set())
    if not isinstance(table.get("user"), str):
        raise PromptError(f"{where} has no text `user`.")
    system = table.get("system", "")
    sampling = table.get("sampling", {})
    _check_sampling(sampling, where)
    return PhasePrompt(
        user=Template.parse(table["user"], allowed=allowed, where=f"{where} (user)", syntax=syntax),
        system=Template.parse(system, allowed=allowed, where=f"{where} (system)", syntax=syntax) if system else None,
        sampling={key: tuple(value) if key == "stop" else value for key, value in sampling.items()},
    )


def _check_sampling(sampling: Mapping[str, Any], where: str) -> None:
    refuse_unknown(sampling, set(_SAMPLING_TYPES), f"{where} [sampling]")
    for key, value in sampling.items():
        if not isinstance(value, _SAMPLING_TYPES[key]) or isinstance(value, bool):
            raise PromptError(f"{where} [sampling]: {key} = {value!r} is not a {_SAMPLING_TYPES[key][-1].__name__}.")


def parse_conversation(table: Mapping[str, Any], syntax: Syntax) -> ConversationFormat:
    """The conversation format from its table in pack.toml.

    Raises:
        PromptError: a key or a variable is unknown.
    """
    refuse_unknown(table, {"single", "turn", "separator", "roles"}, "pack.toml [conversation]")
    role, content = ("{{role}}", "{{content}}") if syntax == "braces" else ("$role", "$content")
    where = "pack.toml [conversation]"
    roles = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
    return ConversationFormat(
        single=Template.parse(table.get("single", content), allowed={"content"}, where=where, syntax=syntax),
        turn=Template.parse(
            table.get("turn", f"{role}: {content}"), allowed={"role", "content"}, where=where, syntax=syntax
        ),
        separator=table.get("separator", "\n\n"),
        roles=roles | table.get("roles", {}),
    )


def refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise a PromptError for a key that is not known."""
    for key in table:
        if key not in known:
            raise PromptError(f"{where}: unknown key {key!r}; allowed: {', '.join(sorted(known))}.")
