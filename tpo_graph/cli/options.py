"""Options that commands share, and every field of `TPOSettings` as a flag of its own name."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tpo_graph.settings import TPOSettings
from tpo_graph.types import Options

F = TypeVar("F", bound=Callable[..., Any])


def option(panel: str, text: str, *flags: str, **more: Options) -> Any:
    """An option of Typer's, with its help text.

    Args:
        panel: the heading that it stands under in `--help`.
        text: the help text.
        *flags: its flags; none for the name of the parameter.
        **more: further arguments of `typer.Option`.
    """
    return typer.Option(*flags, help=text, rich_help_panel=panel, **more)


model_option = partial(option, "Models and prompts", metavar="NAME")
output_option = partial(option, "Output")

CriticOption: TypeAlias = Annotated[
    str | None, model_option("The model that writes loss and gradient. Default: the policy.", envvar="TPO_CRITIC")
]
PromptsOption: TypeAlias = Annotated[
    str | None,
    model_option("A prompt pack, by name or folder. Default: the one that suits the policy.", envvar="TPO_PROMPTS"),
]
VariantOption: TypeAlias = Annotated[
    str | None,
    model_option(
        "Nodes in place of the paper's: fused-critique asks for loss and gradient at once.", envvar="TPO_VARIANT"
    ),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    model_option("A TOML file of settings. Flags and TPO_* variables come before it.", metavar="FILE.toml"),
]

_PANELS = {
    "The run": "n depth mode preference seed",
    "When to stop": "tolerance patience target_reward budget_requests budget_tokens budget_seconds on_failure",
    "Requests": "timeout max_retries",
    "Critique and revised responses": "open_tag close_tag max_shown_tokens keep_truncated",
    "Models that think": "thinking_tokens keep_thinking",
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


def _panel(name: str) -> str:
    if name.partition("_")[0] in ("sample", "loss", "gradient", "update"):
        return _SAMPLING_PANEL
    return next((panel for panel, names in _PANELS.items() if name in names.split()), _OTHER_PANEL)


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
    text = text.replace("[", r"\[")  # help texts are Rich markup, in which a bracket would be a style
    annotation = Annotated[kind, option(_panel(name), text, *flags, metavar=metavar, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
