"""The parts that a prompt pack is made of, and the checks that each must pass when it is read."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_graph.errors import PromptError
from tpo_graph.prompts.conversation import ConversationFormat
from tpo_graph.prompts.template import Syntax, Template

# The TOML files of a prompt pack, as they may be written.

NotBlank = Annotated[str, Field(pattern=r"\S")]
Role = Literal["system", "user", "assistant", "tool"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SamplingTable(_Table):
    """What a pack recommends for a phase; names and bounds are those of the settings."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | None = None


class PromptFile(_Table):
    """A phase's file."""

    user: str
    system: str | None = None
    sampling: SamplingTable = SamplingTable()


class ConversationTable(_Table):
    """How the pack writes `$conversation`; None takes the default."""

    single: str | None = None
    turn: str | None = None
    separator: str = "\n\n"
    roles: dict[Role, str] = {}


class PackFile(_Table):
    """`pack.toml`; what is None comes from the pack that this one extends."""

    description: str | None = None
    extends: str | None = None
    syntax: Syntax | None = None
    open_tag: NotBlank | None = None
    close_tag: NotBlank | None = None
    critique_divider: NotBlank | None = None
    preference: str | None = None
    conversation: ConversationTable | None = None


Table = TypeVar("Table", bound=_Table)


def read_file(path: Path, kind: type[Table]) -> Table:
    """Read one file of a pack.

    Raises:
        PromptError: it can't be read, or a key or a value is not as it must be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PromptError(f"{path} can't be read: {error}.") from error
    return parse_table(table, kind, path.name)


def parse_table(table: dict[str, object], kind: type[Table], where: str) -> Table:
    """Check what a file of a pack holds.

    Raises:
        PromptError: a key or a value is not as it must be.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            inner: dict[str, type[_Table]] = {"sampling": SamplingTable, "conversation": ConversationTable}
            known = inner.get(str(problem["loc"][0]), kind)
            raise PromptError(f"{where}: unknown key {key!r}; allowed: {', '.join(known.model_fields)}.") from error
        if problem["type"] == "missing":
            raise PromptError(f"{where} has no {key!r}.") from error
        raise PromptError(f"{where}: {key} = {problem['input']!r}: {problem['msg']}.") from error


PromptName: TypeAlias = Literal[
    "sample",
    "sample_revision",
    "loss",
    "loss_revision",
    "gradient",
    "gradient_revision",
    "critique",
    "critique_revision",
    "update",
    "update_revision",
]
PROMPT_NAMES: tuple[PromptName, ...] = get_args(PromptName)

_ALWAYS = frozenset({"query", "conversation", "preference"})
_ALLOWED: Mapping[str, frozenset[str]] = {
    "sample": _ALWAYS,
    "loss": _ALWAYS | {"best", "worst", "open_tag", "close_tag"},
    "critique": _ALWAYS | {"best", "worst", "open_tag", "close_tag", "critique_divider"},
    "gradient": _ALWAYS | {"best", "worst", "loss", "loss_prompt", "open_tag", "close_tag"},
    "update": _ALWAYS | {"best", "worst", "loss", "loss_prompt", "gradient", "open_tag", "close_tag"},
}
# every set needs one of its variables; in mode revision `worst` is neither needed nor allowed
_NEEDED: Mapping[str, tuple[frozenset[str], ...]] = {
    "sample": (frozenset({"query", "conversation"}),),
    "loss": (frozenset({"query", "conversation"}), frozenset({"best"}), frozenset({"worst"})),
    "critique": (frozenset({"query", "conversation"}), frozenset({"best"}), frozenset({"worst"})),
    "gradient": (frozenset({"loss"}),),
    "update": (frozenset({"gradient"}),),
}
_ROLE_WORDS: Mapping[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


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
    sampling: Mapping[str, Any]  # Any: values of the settings of the same names

    @property
    def variables(self) -> frozenset[str]:
        """Variables of both parts."""
        return self.user.variables | (self.system.variables if self.system else frozenset())


def needed_variables(name: str) -> tuple[frozenset[str], ...]:
    """What a prompt must use: one variable of each set."""
    phase = name.removesuffix("_revision")
    return tuple(choice for choice in _NEEDED[phase] if name == phase or choice != {"worst"})


def parse_prompt(name: str, file: PromptFile, syntax: Syntax, where: str) -> PhasePrompt:
    """One phase's prompt from its file.

    Raises:
        PromptError: a variable is unknown, or not allowed in this phase.
    """
    phase = name.removesuffix("_revision")
    allowed = _ALLOWED[phase] - ({"worst"} if name != phase else set())
    user = Template.parse(file.user, allowed=allowed, where=f"{where} (user)", syntax=syntax)
    system = None
    if file.system:
        system = Template.parse(file.system, allowed=allowed, where=f"{where} (system)", syntax=syntax)
    sampling = file.sampling.model_dump(exclude_none=True)
    if "stop" in sampling:
        sampling["stop"] = tuple(sampling["stop"])
    return PhasePrompt(user=user, system=system, sampling=sampling)


def parse_preference(text: str | None, syntax: Syntax) -> Template:
    """How a preference is worded; None is the preference itself.

    Raises:
        PromptError: a variable is unknown.
    """
    text = text if text is not None else "{{preference}}" if syntax == "braces" else "$preference"
    return Template.parse(text, allowed={"preference"}, where="pack.toml (preference)", syntax=syntax)


def parse_conversation(table: ConversationTable, syntax: Syntax) -> ConversationFormat:
    """The conversation format from its table in pack.toml.

    Raises:
        PromptError: a variable is unknown.
    """
    role, content = ("{{role}}", "{{content}}") if syntax == "braces" else ("$role", "$content")
    where = "pack.toml [conversation]"
    single, turn = table.single, table.turn
    single = content if single is None else single
    turn = f"{role}: {content}" if turn is None else turn
    return ConversationFormat(
        single=Template.parse(single, allowed={"content"}, where=where, syntax=syntax),
        turn=Template.parse(turn, allowed={"role", "content"}, where=where, syntax=syntax),
        separator=table.separator,
        roles={role: table.roles.get(role, word) for role, word in _ROLE_WORDS.items()},
    )
