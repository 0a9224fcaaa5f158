"""Every field of `TPOSettings` as a flag of its own name, for any command that runs the graph."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tpo_graph.settings import TPOSettings

F = TypeVar("F", bound=Callable[..., Any])

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
_SHORT = {"n": ("-n", "--n")}


def with_setting_flags(command: F) -> F:
    """Give `command` an option for each setting in place of its `**settings`.

    All are texts that are None when not given, and `TPOSettings` alone decides what is valid, so that a value
    is refused in the same words wherever it comes from.
    """
    signature = inspect.signature(command)
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = [_flag(name, field) for name, field in _in_order_of_panels()]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it, typeshed has no word for it
        parameters=[*named, *flags]
    )
    return command


def explicit_settings(values: Mapping[str, Any]) -> dict[str, Any]:  # Any: what Typer parsed
    """The settings that were given as flags."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _in_order_of_panels() -> list[tuple[str, FieldInfo]]:
    """Typer shows panels in the order in which they come up."""
    order = [*_PANELS, _SAMPLING_PANEL, _OTHER_PANEL]
    return sorted(TPOSettings.model_fields.items(), key=lambda item: order.index(_panel(item[0])))


def _panel(name: str) -> str:
    if name.partition("_")[0] in ("sample", "loss", "gradient", "update"):
        return _SAMPLING_PANEL
    return next((panel for panel, names in _PANELS.items() if name in names), _OTHER_PANEL)


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    plain, takes_none = _plain_type(field.annotation)
    dashed = f"--{name.replace('_', '-')}"
    kind: Any = str | None  # Any: a type form
    metavar: str | None = _metavar(plain) + ("|none" if takes_none else "")
    if plain is bool:
        kind, metavar, dashed = bool | None, None, f"{dashed}/--no-{name.replace('_', '-')}"
    elif get_origin(plain) is tuple:
        kind, metavar = list[str] | None, "TEXT"
    option = typer.Option(
        *_SHORT.get(name, (dashed,)),
        help=_help(field),
        metavar=metavar,
        show_default=False,
        rich_help_panel=_panel(name),
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _plain_type(annotation: Any) -> tuple[Any, bool]:  # Any: type forms
    """The type without None, and whether None was in it."""
    members = get_args(annotation) if get_origin(annotation) not in (Literal, tuple) else ()
    if type(None) not in members:
        return annotation, False
    return next(member for member in members if member is not type(None)), True


def _metavar(plain: Any) -> str:  # Any: a type form
    if get_origin(plain) is Literal:
        return "|".join(get_args(plain))
    return {int: "INT", float: "NUMBER"}.get(plain, "TEXT")


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if get_origin(field.annotation) is tuple:
        text += " May be given several times."
    elif field.default is None:
        text += " Default: none."
    elif field.default not in ("", False):
        text += f" Default: {field.default}."
    # help texts are Rich markup, in which a bracket would be a style
    return text.replace("[", r"\[")
