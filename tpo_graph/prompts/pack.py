"""Finds, checks and renders prompt packs.

A pack is a folder with a `pack.toml` (tags, and how a preference and a conversation are worded) and one TOML file for
each phase: `sample`, `loss`, `gradient`, `update`, and with `_revision` appended what differs in mode `revision`.
`critique` is loss and gradient in one, for the fused critique. A file has a `user` part, and may have a `system` part
and a `[sampling]` table.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_graph.errors import PromptError
from tpo_graph.prompts.template import ConversationFormat, Sections, Syntax, Template
from tpo_graph.settings import PolicyPhase, TPOSettings, read_toml
from tpo_graph.types import Mode

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

_PHASES: tuple[PolicyPhase, ...] = get_args(PolicyPhase)
_ALWAYS = frozenset({"query", "conversation", "preference"})
_ALLOWED: Mapping[str, frozenset[str]] = {
    "sample": _ALWAYS,
    "loss": _ALWAYS | {"best", "worst", "open_tag", "close_tag"},
    "critique": _ALWAYS | {"best", "worst", "open_tag", "close_tag", "critique_divider"},
    "gradient": _ALWAYS | {"best", "worst", "loss", "loss_prompt", "open_tag", "close_tag"},
    "update": _ALWAYS | {"best", "worst", "loss", "loss_prompt", "gradient", "open_tag", "close_tag"},
}
# a prompt needs one variable of each set; in mode revision `worst` is neither needed nor allowed
_NEEDED: Mapping[str, tuple[frozenset[str], ...]] = {
    "sample": (frozenset({"query", "conversation"}),),
    "loss": (frozenset({"query", "conversation"}), frozenset({"best"}), frozenset({"worst"})),
    "critique": (frozenset({"query", "conversation"}), frozenset({"best"}), frozenset({"worst"})),
    "gradient": (frozenset({"loss"}),),
    "update": (frozenset({"gradient"}),),
}


@dataclass(frozen=True)
class PhasePrompt:
    """What a model is asked in one phase.

    Attributes:
        user: the user message.
        system: the system message, or None for none.
        sampling: the pack's recommended `temperature`, `top_p`, `max_new_tokens` and `stop` for the phase.
    """

    user: Template
    system: Template | None
    sampling: Mapping[str, Any]

    @property
    def variables(self) -> frozenset[str]:
        """Variables of both parts."""
        return self.user.variables | (self.system.variables if self.system else frozenset())

    @property
    def literal(self) -> str:
        """The text of both parts without their variables."""
        return self.user.literal + (self.system.literal if self.system else "")


@dataclass(frozen=True)
class PromptPack:
    """All prompts of a run, checked. Get one with `PromptPack.load`.

    Attributes:
        name: the folder's name.
        description: one line for people.
        prompts: by name: a phase, or a phase with `_revision` appended.
        open_tag: text before a revised response, unless the settings have another. "" where a whole completion of
            `update` is the revised response.
        close_tag: text after it; "" likewise.
        preference: how a preference is worded.
        conversation: how `$conversation` is written.
        critique_divider: text between the loss and the gradient of a fused critique; "" when the pack has none.
        syntax: which marks are variables in this pack.
    """

    name: str
    description: str
    prompts: Mapping[str, PhasePrompt]
    open_tag: str
    close_tag: str
    preference: Template = field(default_factory=lambda: Template(("", "preference", "")))
    conversation: ConversationFormat = field(default_factory=ConversationFormat)
    critique_divider: str = ""
    syntax: Syntax = "both"

    @classmethod
    def load(cls, name: str | Path) -> "PromptPack":
        """Read a pack.

        Args:
            name: the name of a pack that comes with the package (`tpo`, `base`), or a folder.

        Raises:
            PromptError: there is no such pack, or a file, key or variable of it is missing, unknown or wrong.
        """
        return _read_pack(pack_folder(name))

    def replace(self, prompt: PromptName, *, user: str | None = None, system: str | None = None) -> "PromptPack":
        """A copy of the pack in which one prompt is worded differently.

        Args:
            prompt: which one, as in `loss` or `loss_revision`.
            user: the new user message; None keeps the present one.
            system: the new system message; None keeps the present one, "" removes it.

        Raises:
            PromptError: the name is unknown, or the text is not a valid template.
        """
        if prompt not in PROMPT_NAMES:
            raise PromptError(f"Unknown prompt {prompt!r}; allowed: {', '.join(PROMPT_NAMES)}.")
        old = self.prompts.get(prompt)
        if user is None and old is None:
            raise PromptError(f"Prompt pack {self.name!r} has no {prompt!r} yet: its user message is needed.")
        new = _parse_prompt(prompt, _PromptFile(user=user or "", system=system), self.syntax, where=prompt)
        if old is not None:
            new = PhasePrompt(
                user=old.user if user is None else new.user,
                system=old.system if system is None else new.system,
                sampling=old.sampling,
            )
        return _checked(dataclasses.replace(self, prompts={**self.prompts, prompt: new}))

    def prompt(self, phase: str, mode: Mode, *, tie: bool = False) -> PhasePrompt | None:
        """The prompt of a phase; None for `sample` where the conversation itself goes to the policy.

        Args:
            phase: which phase, or `critique` for loss and gradient in one.
            mode: the mode of the run.
            tie: best and worst are one candidate, so that the prompt of mode `revision` is taken where the pack has
                one; another shows that candidate in both places.

        Raises:
            PromptError: the pack has no such prompt in this mode.
        """
        revision = self.prompts.get(f"{phase}_revision") if mode == "revision" or tie else None
        found = revision or self.prompts.get(phase)
        if found is None and phase != "sample":
            hint = "Add one, or leave out the fused critique." if phase == "critique" else ""
            raise PromptError(f"Prompt pack {self.name!r} has no {phase}.toml.", hint=hint)
        if mode == "revision" and found is not None and "worst" in found.variables:
            raise PromptError(
                f"Prompt pack {self.name!r} can't run mode 'revision': its {phase!r} prompt shows the worst response.",
                hint=f"Add {phase}_revision.toml without the variable 'worst'.",
            )
        return found

    def check(self, settings: TPOSettings, *, critique: str = "loss") -> None:
        """Make sure, before anything is paid for, that the pack can do what the settings ask for.

        Args:
            settings: the settings of a call.
            critique: name of the prompt for the textual loss.

        Raises:
            PromptError: a prompt is missing or shows what its mode must not show, or a tag or the preference of the
                settings would not reach the model.
        """
        mode = settings.mode
        if mode == "bon":
            self.prompt("sample", mode)
            return
        # any step may have a tie
        for tie in (False, True) if mode == "tpo" else (False,):
            prompts = {phase: self.prompt(phase, mode, tie=tie) for phase in (*_PHASES, critique)}
            update, loss = prompts["update"], prompts["loss"]
            for name, tag, own in (
                ("open_tag", settings.open_tag, self.open_tag),
                ("close_tag", settings.close_tag, self.close_tag),
            ):
                if update and tag not in (None, own) and name not in update.variables:
                    asks = f"the tag {own!r} in its own words" if own else "the response alone"
                    raise PromptError(
                        f"Prompt pack {self.name!r} asks for {asks}, so the setting {name}={tag!r} would find nothing.",
                        hint="Leave the setting out, or use $open_tag and $close_tag in the update prompt.",
                    )
            # a prompt has the preference by itself or inside the loss prompt that it shows
            carriers = {"preference"} | ({"loss_prompt"} if loss and "preference" in loss.user.variables else set())
            lacking = [
                next(repr(name) for name, other in self.prompts.items() if other is prompt)
                for phase in (critique, "gradient", "update")
                if (prompt := prompts[phase]) and not carriers & prompt.variables
            ]
            if settings.preference and lacking:
                raise PromptError(
                    f"Prompt pack {self.name!r} does not use 'preference' in {' and '.join(lacking)}: "
                    f"the preference {settings.preference!r} would be lost there.",
                    hint="Put $preference into its loss, gradient and update prompts, or use another pack.",
                )

    @cached_property
    def sections(self) -> Sections:
        """The sections of all prompts: a text is shown alike in each, so that requests share what they begin with."""
        parts = [part for prompt in self.prompts.values() for part in (prompt.user, prompt.system) if part]
        turn, roles = self.conversation.turn, self.conversation.roles.values()
        turns = [turn.render({"role": role, "content": "\0"}) for role in roles]
        return Sections([part.blank for part in (*parts, self.preference, self.conversation.single)] + turns)

    def render(self, prompt: PhasePrompt, values: Mapping[str, str]) -> list[BaseMessage]:
        """The messages of one request.

        Args:
            prompt: one of this pack's prompts.
            values: a text for each variable that it uses.
        """
        system: list[BaseMessage] = [SystemMessage(prompt.system.render(values))] if prompt.system else []
        return [*system, HumanMessage(prompt.user.render(values))]

    def values(self, conversation: Sequence[BaseMessage], *, query: str, preference: str) -> dict[str, str]:
        """The variables that every phase has.

        Args:
            conversation: all messages of it.
            query: text of its last user message.
            preference: what the answer is to satisfy; "" for nothing in particular.
        """
        guard = self.sections.guard
        return {
            "query": guard(query),
            "conversation": self.conversation.render(conversation, guard),
            "preference": self.preference.render({"preference": guard(preference)}) if preference else "",
        }


def available_packs() -> list[str]:
    """Names of the packs that come with the package."""
    return sorted({file.parent.name for root in _pack_roots() for file in root.glob("*/pack.toml")})


def pack_folder(name: str | Path) -> Path:
    """The folder of a pack.

    Args:
        name: the name of a pack that comes with the package, or a folder.

    Raises:
        PromptError: there is no such pack.
    """
    if isinstance(name, str) and name in available_packs():
        return next(root / name for root in _pack_roots() if (root / name / "pack.toml").is_file())
    folder = Path(name).expanduser()
    if (folder / "pack.toml").is_file():
        return folder
    raise PromptError(
        f"No prompt pack {str(name)!r}: neither one of {', '.join(available_packs())} nor a folder with a pack.toml.",
        hint="`tpo-graph prompts copy tpo DIR` makes one to edit.",
    )


def _pack_roots() -> list[Path]:
    """Where packs are: in the installed package, or beside it in a source tree."""
    package = Path(str(resources.files("tpo_graph")))
    return [package / "prompts", package.parent / "prompts"]


# The files of a pack, as they may be written.

_NotBlank = Annotated[str, Field(pattern=r"\S")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class _Sampling(_Table):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] | None = None


class _PromptFile(_Table):
    user: str
    system: str | None = None
    sampling: _Sampling = _Sampling()


class _Conversation(_Table):
    single: str | None = None
    turn: str | None = None
    separator: str | None = None
    roles: dict[Literal["system", "user", "assistant", "tool"], str] = {}


class _PackFile(_Table):
    """`pack.toml`; what is None comes from the pack that this one extends."""

    description: str | None = None
    extends: str | None = None
    syntax: Syntax | None = None
    open_tag: _NotBlank | None = None
    close_tag: _NotBlank | None = None
    critique_divider: _NotBlank | None = None
    preference: str | None = None
    conversation: _Conversation | None = None


_File = TypeVar("_File", bound=_Table)


def _read_file(path: Path, kind: type[_File]) -> _File:
    try:
        return kind.model_validate(read_toml(path, title="Prompt file", error=PromptError))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            inner: dict[str, type[_Table]] = {"sampling": _Sampling, "conversation": _Conversation}
            allowed = inner.get(str(problem["loc"][0]), kind).model_fields
            raise PromptError(f"{path.name}: unknown key {key!r}; allowed: {', '.join(allowed)}.") from error
        if problem["type"] == "missing":
            raise PromptError(f"{path.name} has no {key!r}.") from error
        raise PromptError(f"{path.name}: {key} = {problem['input']!r}: {problem['msg']}.") from error


def _read_pack(folder: Path, extending: tuple[Path, ...] = ()) -> PromptPack:
    """Read a pack and those that it extends.

    Args:
        folder: of the pack.
        extending: folders of the packs that extend this one, to find a circle.
    """
    head = _read_file(folder / "pack.toml", _PackFile)
    base = PromptPack(name="", description="", prompts={}, open_tag="", close_tag="")
    if head.extends:
        beside = folder.parent / head.extends
        # a folder with the name of a pack of ours may extend that one
        is_itself = beside.resolve() == folder.resolve() and head.extends in available_packs()
        other = beside if (beside / "pack.toml").is_file() and not is_itself else pack_folder(head.extends)
        if other.resolve() in (*extending, folder.resolve()):
            raise PromptError(f"Prompt pack {folder.name!r} extends itself.")
        base = _read_pack(other, (*extending, folder.resolve()))
    syntax = head.syntax or base.syntax
    prompts = dict(base.prompts)
    for file in sorted(folder.glob("*.toml")):
        if file.name == "pack.toml":
            continue
        if file.stem not in PROMPT_NAMES:
            raise PromptError(
                f"{file.name} in prompt pack {folder.name!r} is not a phase; allowed: {', '.join(PROMPT_NAMES)}."
            )
        prompts[file.stem] = _parse_prompt(file.stem, _read_file(file, _PromptFile), syntax, where=file.name)
    own: dict[str, Any] = head.model_dump(
        exclude_none=True, include={"description", "open_tag", "close_tag", "critique_divider"}
    )
    if head.preference is not None:
        own["preference"] = Template.parse(
            head.preference, allowed={"preference"}, where="pack.toml (preference)", syntax=syntax
        )
    if head.conversation is not None:
        default, changes = ConversationFormat(), head.conversation.model_dump(exclude_none=True)
        for name, allowed in (("single", {"content"}), ("turn", {"role", "content"})):
            if name in changes:
                text = changes[name]
                changes[name] = Template.parse(text, allowed=allowed, where="pack.toml [conversation]", syntax=syntax)
        changes["roles"] = {**default.roles, **changes["roles"]}
        own["conversation"] = dataclasses.replace(default, **changes)
    pack = dataclasses.replace(base, name=folder.name, prompts=prompts, syntax=syntax, **own)
    if bool(pack.open_tag) != bool(pack.close_tag):
        raise PromptError(
            f"pack.toml of prompt pack {folder.name!r} must have both open_tag and close_tag, or neither."
        )
    return _checked(pack)


def _parse_prompt(name: str, file: _PromptFile, syntax: Syntax, *, where: str) -> PhasePrompt:
    phase = name.removesuffix("_revision")
    allowed = _ALLOWED[phase] - ({"worst"} if name != phase else set())

    def parse(text: str, part: str) -> Template:
        return Template.parse(text, allowed=allowed, where=f"{where} ({part})", syntax=syntax)

    system = parse(file.system, "system") if file.system else None
    return PhasePrompt(parse(file.user, "user"), system, file.sampling.model_dump(exclude_none=True))


def _checked(pack: PromptPack) -> PromptPack:
    """The pack itself, once its prompts are found to use and to say what they must."""
    for required in ("loss", "gradient", "update"):
        if required not in pack.prompts:
            raise PromptError(f"Prompt pack {pack.name!r} has no {required}.toml.")
    for name, prompt in pack.prompts.items():
        where = f"{name}.toml of prompt pack {pack.name!r}"
        phase = name.removesuffix("_revision")
        for choice in _NEEDED[phase]:
            if not choice & prompt.variables and (name == phase or choice != {"worst"}):
                raise PromptError(f"{where} must use {' or '.join(sorted(choice))}.")
        # the model has to see these, as a variable or in the pack's own words
        shown = {}
        if phase == "update" and pack.open_tag:
            shown = {"open_tag": pack.open_tag, "close_tag": pack.close_tag}
        elif phase == "critique":
            if not pack.critique_divider:
                raise PromptError(f"Prompt pack {pack.name!r} has {name}.toml, but no critique_divider in pack.toml.")
            shown = {"critique_divider": pack.critique_divider}
        for variable, text in shown.items():
            # a stop text may be the closing tag
            ended = variable == "close_tag" and any(text.startswith(stop) for stop in prompt.sampling.get("stop", ()))
            if variable not in prompt.variables and text not in prompt.literal and not ended:
                raise PromptError(f"{where} must use {variable} or contain the text {text!r} itself.")
    return pack
