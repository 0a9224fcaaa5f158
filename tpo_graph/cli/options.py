"""Options that commands share, and every field of `TPOSettings` as a flag of its own name."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tpo_graph.settings import TPOSettings
from tpo_graph.types import Options

if TYPE_CHECKING:
    from tpo_graph.prompts.pack import PromptPack

F = TypeVar("F", bound=Callable[..., Any])

MODELS_PANEL = "Models and prompts"
OUTPUT_PANEL = "Output"


def model_option(variable: str, text: str) -> Any:
    """An option that names what a run is made of.

    Args:
        variable: the environment variable that may hold the name instead.
        text: the help text.
    """
    return typer.Option(envvar=variable, metavar="NAME", help=text, rich_help_panel=MODELS_PANEL)


CriticOption: TypeAlias = Annotated[
    str | None,
    model_option("TPO_CRITIC", "The model that writes loss and gradient. Default: the policy."),
]
PromptsOption: TypeAlias = Annotated[
    str | None,
    model_option("TPO_PROMPTS", "A prompt pack, by name or folder. Default: the one that suits the policy."),
]
VariantOption: TypeAlias = Annotated[
    str | None,
    model_option("TPO_VARIANT", "Nodes in place of the paper's: fused-critique asks for loss and gradient at once."),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="A TOML file of settings. Flags and TPO_* variables come before it.",
        rich_help_panel=MODELS_PANEL,
    ),
]

_PANELS: Mapping[str, tuple[str, ...]] = {
    "The run": ("n", "depth", "mode", "preference", "seed"),
    "When to stop": (
        "tolerance",
        "patience",
        "target_reward",
        "budget_requests",
        "budget_tokens",
        "budget_seconds",
        "on_failure",
    ),
    "Critique and revised responses": (
        "open_tag",
        "close_tag",
        "max_shown_tokens",
        "keep_truncated",
    ),
}
_SAMPLING_PANEL = "Sampling by phase (else what the pack recommends, else the default)"
_OTHER_PANEL = "Other settings"


def with_setting_flags(command: F) -> F:
    """Give `command` an option for each setting in place of its `**settings`.

    All are texts that are None when not given, and `TPOSettings` alone decides what is valid, so that a value
    is refused in the same words wherever it comes from.
    """
    signature = inspect.signature(command)
    named = [
        parameter for parameter in signature.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    # Typer shows panels in the order in which they come up
    panels = [*_PANELS, _SAMPLING_PANEL, _OTHER_PANEL]
    fields = sorted(TPOSettings.model_fields.items(), key=lambda item: panels.index(_panel(item[0])))
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it, typeshed does not declare it
        parameters=[*named, *(_flag(name, field) for name, field in fields)]
    )
    return command


def explicit_settings(values: Options) -> Options:
    """The settings that were given as flags.

    Args:
        values: what Typer parsed, by the name of the setting.
    """
    return {name: value for name, value in values.items() if value is not None and value != []}


def load_prompts(name: str | None, settings: TPOSettings) -> "PromptPack | None":
    """Load the pack of `--prompts` and check that it can do what the settings ask for; None for none.

    Args:
        name: the pack's name or folder.
        settings: the settings of the run.

    Raises:
        PromptError: there is no such pack, or it can't.
    """
    if name is None:
        return None
    from tpo_graph.prompts.pack import PromptPack

    pack = PromptPack.load(name)
    pack.check(settings)
    return pack


def _panel(name: str) -> str:
    if name.partition("_")[0] in ("sample", "loss", "gradient", "update"):
        return _SAMPLING_PANEL
    return next((panel for panel, names in _PANELS.items() if name in names), _OTHER_PANEL)


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of one setting."""
    members = get_args(field.annotation) if get_origin(field.annotation) not in (Literal, tuple) else ()
    plain: Any = next((member for member in members if member is not type(None)), field.annotation)
    dashed = name.replace("_", "-")
    flags = ("-n", "--n") if name == "n" else (f"--{dashed}",)
    kind: Any = str | None
    metavar: str | None = {int: "INT", float: "NUMBER"}.get(plain, "TEXT")
    text = field.description or ""
    if plain is bool:
        kind, metavar, flags = bool | None, None, (f"--{dashed}/--no-{dashed}",)
    elif get_origin(plain) is tuple:
        kind = list[str] | None
        text += " May be given several times."
    elif get_origin(plain) is Literal:
        metavar = "|".join(get_args(plain))
    if type(None) in members:
        metavar = f"{metavar}|none"
    if field.default is None:
        text += " Default: none."
    elif field.default not in ("", False, ()):
        text += f" Default: {field.default}."
    option = typer.Option(
        *flags,
        help=text.replace("[", r"\["),  # help texts are Rich markup, in which a bracket would be a style
        metavar=metavar,
        show_default=False,
        rich_help_panel=_panel(name),
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
