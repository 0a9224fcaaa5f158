"""What one call of the command has to remember beside its arguments."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

__all__ = ["Invocation", "with_debug_flag"]


@dataclass
class Invocation:
    """The object of the call's context.

    Attributes:
        debug: show tracebacks.
    """

    debug: bool = False


def with_debug_flag(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a flag `--debug`, which counts from where it is parsed: errors in other options come later."""

    @functools.wraps(command)
    def debuggable(*, debug: bool, **values: Any) -> None:  # Any: what Typer parsed
        del debug  # its callback has remembered it
        command(**values)

    signature = inspect.signature(command)
    flag = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_DEBUG)
    debuggable.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it, typeshed has no word for it
        parameters=[*signature.parameters.values(), flag]
    )
    return debuggable


def _remember(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, Invocation):
        context.obj.debug = True
    return value


_DEBUG = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the traceback of an error.", callback=_remember, is_eager=True, rich_help_panel="Output"
    ),
]
