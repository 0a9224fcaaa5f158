"""Finds, checks and renders prompt packs.

A pack is a folder with a `pack.toml` (tags, how a preference and a conversation are worded) and one TOML file for
each phase: `sample`, `loss`, `gradient`, `update`, and with `_revision` behind the name what is different in mode
`revision`. `critique` is loss and gradient in one, for the variant `fused-critique`. A file has a `user` part, maybe a
`system` part, and maybe a `[sampling]` table.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import get_args

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from tpo_graph.errors import PromptError
from tpo_graph.prompts.conversation import ConversationFormat
from tpo_graph.prompts.files import (
    PROMPT_NAMES,
    ConversationTable,
    PackFile,
    PhasePrompt,
    PromptFile,
    PromptName,
    needed_variables,
    parse_conversation,
    parse_preference,
    parse_prompt,
    parse_table,
    read_file,
)
from tpo_graph.prompts.template import Syntax, Template
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import Mode

_PHASES: tuple[PolicyPhase, ...] = get_args(PolicyPhase)


@dataclass(frozen=True)
class PromptPack:
    """All prompts of a run, checked. Get one with `PromptPack.load`.

    Attributes:
        name: the folder's name.
        description: one line for people.
        prompts: by name: a phase, or a phase with `_revision` behind it.
        open_tag: text before a revised response, unless the settings have another.
        close_tag: text after it.
        critique_divider: text between the loss and the gradient of a fused critique; "" when the pack has none.
        preference: how a preference is worded; "" when there is none.
        conversation: how `$conversation` is written.
        syntax: which marks are variables in this pack.
    """

    name: str
    description: str
    prompts: Mapping[str, PhasePrompt]
    open_tag: str
    close_tag: str
    preference: Template
    conversation: ConversationFormat
    critique_divider: str = ""
    syntax: Syntax = "both"

    @classmethod
    def load(cls, name: str | Path) -> "PromptPack":
        """Read a pack by name (`tpo`, `base`) or from a folder.

        Raises:
            PromptError: no such pack, or a part that is missing, unknown or not as it must be.
        """
        return _read_pack(pack_folder(name))

    def replace(self, prompt: PromptName, *, user: str | None = None, system: str | None = None) -> "PromptPack":
        """A copy of the pack with parts of one prompt in other words.

        Args:
            prompt: which one, as in `loss` or `loss_revision`.
            user: the new user part; None keeps it.
            system: the new system part; None keeps it, "" takes it away.

        Raises:
            PromptError: the name is unknown, or the text is not a valid template.
        """
        if prompt not in PROMPT_NAMES:
            raise PromptError(f"Unknown prompt {prompt!r}; allowed: {', '.join(PROMPT_NAMES)}.")
        old = self.prompts.get(prompt)
        if user is None and old is None:
            raise PromptError(f"Prompt pack {self.name!r} has no {prompt!r} yet: give its user part.")
        file = parse_table({"user": user or "", "system": system}, PromptFile, prompt)
        new = parse_prompt(prompt, file, self.syntax, prompt)
        if old is not None:
            new = PhasePrompt(
                user=new.user if user is not None else old.user,
                system=new.system if system is not None else old.system,
                sampling=old.sampling,
            )
        return _checked(dataclasses.replace(self, prompts={**self.prompts, prompt: new}))

    def prompt(self, phase: str, mode: Mode) -> PhasePrompt | None:
        """The prompt of a phase; None for `sample` where the conversation itself goes to the policy.

        `critique` is loss and gradient in one.

        Raises:
            PromptError: the pack has no such prompt in this mode.
        """
        revision = self.prompts.get(f"{phase}_revision") if mode == "revision" else None
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
            PromptError: the pack can't do it.
        """
        if settings.mode == "bon":
            self.prompt("sample", settings.mode)
            return
        for phase in (*_PHASES, critique):
            self.prompt(phase, settings.mode)
        self._check_setting_of_tags(settings)
        self._check_preference(settings, critique)

    def check_mode(self, mode: Mode) -> None:
        """Make sure that the pack can run `mode`.

        Raises:
            PromptError: it can't.
        """
        self.check(TPOSettings(mode=mode))

    def _check_setting_of_tags(self, settings: TPOSettings) -> None:
        """A tag of the settings reaches the policy only where the prompt has it as a variable."""
        update = self.prompt("update", settings.mode)
        used = update.variables if update else frozenset()
        for name, tag, own in (
            ("open_tag", settings.open_tag, self.open_tag),
            ("close_tag", settings.close_tag, self.close_tag),
        ):
            if tag not in (None, own) and name not in used:
                raise PromptError(
                    f"Prompt pack {self.name!r} asks for the tag {own!r} in its own words, so the setting "
                    f"{name}={tag!r} would find nothing.",
                    hint="Leave the setting out, or use $open_tag and $close_tag in the update prompt.",
                )

    def _check_preference(self, settings: TPOSettings, critique: str) -> None:
        """A preference must reach loss, gradient and update, each by itself or inside the loss prompt that it shows."""
        if not settings.preference:
            return
        shown = {phase: self.prompt(phase, settings.mode) for phase in (critique, "gradient", "update")}
        loss = self.prompt("loss", settings.mode)
        carriers = {"preference"} | ({"loss_prompt"} if loss and "preference" in loss.user.variables else set())
        without = [f"{phase!r}" for phase, prompt in shown.items() if prompt and not carriers & prompt.variables]
        if without:
            raise PromptError(
                f"Prompt pack {self.name!r} does not use 'preference' in {' and '.join(without)}: "
                f"the preference {settings.preference!r} would be lost there.",
                hint="Put $preference into its loss, gradient and update prompts, or use another pack.",
            )

    def render(self, prompt: PhasePrompt, values: Mapping[str, str]) -> list[BaseMessage]:
        """The messages of one request."""
        messages: list[BaseMessage] = []
        if prompt.system is not None:
            messages.append(SystemMessage(prompt.system.render(values)))
        messages.append(HumanMessage(prompt.user.render(values)))
        return messages

    def values(self, conversation: Sequence[BaseMessage], *, query: str, preference: str) -> dict[str, str]:
        """The variables that every phase has."""
        return {
            "query": query,
            "conversation": self.conversation.render(conversation),
            "preference": self.preference.render({"preference": preference}) if preference else "",
        }


def pack_roots() -> list[Path]:
    """Where packs are: in the installed package, or beside it in a source tree."""
    package = Path(str(resources.files("tpo_graph")))
    return [root for root in (package / "prompts", package.parent / "prompts") if root.is_dir()]


def available_packs() -> list[str]:
    """Names of the packs that come with the package."""
    return sorted(
        {folder.name for root in pack_roots() for folder in root.iterdir() if (folder / "pack.toml").is_file()}
    )


def pack_folder(name: str | Path) -> Path:
    """The folder of a pack: one that comes with the package, or a path.

    Raises:
        PromptError: there is none.
    """
    if isinstance(name, str) and name in available_packs():
        return next(root / name for root in pack_roots() if (root / name / "pack.toml").is_file())
    folder = Path(name).expanduser()
    if (folder / "pack.toml").is_file():
        return folder
    raise PromptError(
        f"No prompt pack {str(name)!r}: neither one of {', '.join(available_packs())} nor a folder with a pack.toml.",
        hint="`tpo-graph prompts copy tpo DIR` makes one to edit.",
    )


def _read_pack(folder: Path, extending: tuple[Path, ...] = ()) -> PromptPack:
    head = read_file(folder / "pack.toml", PackFile)
    base = _base_pack(head.extends, folder, (*extending, folder.resolve())) if head.extends else None
    syntax = head.syntax or (base.syntax if base else "both")
    prompts = dict(base.prompts) if base else {}
    for file in sorted(folder.glob("*.toml")):
        if file.name == "pack.toml":
            continue
        if file.stem not in PROMPT_NAMES:
            raise PromptError(
                f"{file.name} in prompt pack {folder.name!r} is no phase; allowed: {', '.join(PROMPT_NAMES)}."
            )
        prompts[file.stem] = parse_prompt(file.stem, read_file(file, PromptFile), syntax, file.name)
    open_tag, close_tag = head.open_tag or (base and base.open_tag), head.close_tag or (base and base.close_tag)
    if not open_tag or not close_tag:
        raise PromptError(f"pack.toml of prompt pack {folder.name!r} must have open_tag and close_tag.")
    inherits_preference = base is not None and head.preference is None
    inherits_conversation = base is not None and head.conversation is None
    return _checked(
        PromptPack(
            name=folder.name,
            description=head.description or (base.description if base else ""),
            prompts=prompts,
            open_tag=open_tag,
            close_tag=close_tag,
            preference=base.preference if base and inherits_preference else parse_preference(head.preference, syntax),
            critique_divider=head.critique_divider or (base.critique_divider if base else ""),
            conversation=base.conversation
            if base and inherits_conversation
            else parse_conversation(head.conversation or ConversationTable(), syntax),
            syntax=syntax,
        )
    )


def _base_pack(name: str, folder: Path, extending: tuple[Path, ...]) -> PromptPack:
    """The pack that the one in `folder` extends: a folder beside it, or one that comes with the package."""
    beside = folder.parent / name
    # a folder that is called like a pack of ours may extend that one
    is_itself = beside.resolve() == folder.resolve() and name in available_packs()
    other = beside if (beside / "pack.toml").is_file() and not is_itself else pack_folder(name)
    if other.resolve() in extending:
        raise PromptError(f"Prompt pack {folder.name!r} extends itself.")
    return _read_pack(other, extending)


def _checked(pack: PromptPack) -> PromptPack:
    for phase in ("loss", "gradient", "update"):
        if phase not in pack.prompts:
            raise PromptError(f"Prompt pack {pack.name!r} has no {phase}.toml.")
    for name, prompt in pack.prompts.items():
        for choice in needed_variables(name):
            if not choice & prompt.variables:
                raise PromptError(f"{name}.toml of prompt pack {pack.name!r} must use {' or '.join(sorted(choice))}.")
        if name.startswith("update"):
            _check_tags(pack, name, prompt)
        if name.startswith("critique"):
            _check_divider(pack, name, prompt)
    return pack


def _check_divider(pack: PromptPack, name: str, prompt: PhasePrompt) -> None:
    """The critic must be told what to put between the two parts: by variable, or in the pack's own words."""
    if not pack.critique_divider:
        raise PromptError(f"Prompt pack {pack.name!r} has {name}.toml, but no critique_divider in pack.toml.")
    if "critique_divider" not in prompt.variables and pack.critique_divider not in _written(prompt):
        raise PromptError(
            f"{name}.toml of prompt pack {pack.name!r} must use critique_divider or hold the text "
            f"{pack.critique_divider!r} itself."
        )


def _written(prompt: PhasePrompt) -> str:
    """What a prompt says besides its variables."""
    return prompt.user.literal + (prompt.system.literal if prompt.system else "")


def _check_tags(pack: PromptPack, name: str, prompt: PhasePrompt) -> None:
    """The policy must be told both tags, by variable or in the pack's own words; a stop text may be the closing one."""
    stops = prompt.sampling.get("stop", ())
    for variable, tag in (("open_tag", pack.open_tag), ("close_tag", pack.close_tag)):
        ended = variable == "close_tag" and any(tag.startswith(stop) for stop in stops)
        if variable not in prompt.variables and tag not in _written(prompt) and not ended:
            raise PromptError(
                f"{name}.toml of prompt pack {pack.name!r} must use {variable} or hold the tag {tag!r} itself."
            )
