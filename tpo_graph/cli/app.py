"""The commands put together, and the one place where their errors become lines and exit codes."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tpo_graph.cli.failures import EXIT_CODES_HELP, ExitCode, Invocation, print_error, report, with_debug_flag
from tpo_graph.cli.prompts import prompts
from tpo_graph.cli.run import run
from tpo_graph.cli.score import score
from tpo_graph.cli.serve import serve

# `tpo-graph graph`: the graph as Mermaid text.


def graph() -> None:
    """Print the graph as Mermaid text; needs no model."""
    from tpo_graph.graph.build import create_tpo_graph
    from tpo_graph.settings import TPOSettings
    from tpo_graph.testing import ScriptedChatModel, TableReward

    # the picture is the same for all models and settings
    compiled = create_tpo_graph(ScriptedChatModel([]), TableReward({}), prompts="tpo", settings=TPOSettings())
    print(compiled.get_graph().draw_mermaid().rstrip())


_NAME = "tpo-graph"

app = typer.Typer(name=_NAME, epilog=EXIT_CODES_HELP)
app.command(epilog=EXIT_CODES_HELP)(with_debug_flag(run))
app.command()(with_debug_flag(graph))
app.command()(with_debug_flag(score))
app.command()(with_debug_flag(serve))
app.add_typer(prompts, name="prompts")


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{_NAME} {version(_NAME)}")
        except PackageNotFoundError:  # run from a source tree
            print(f"{_NAME} (not installed)")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Test-time Preference Optimization: better answers from the model that you have, with no training."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def execute(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; nothing is raised.

    Args:
        arguments: those after the command's name.
    """
    invocation = Invocation()
    try:
        command = typer.main.get_command(app)
        code = command.main(list(arguments), prog_name=_NAME, standalone_mode=False, obj=invocation)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.OK
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader of the output has left; what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.UNEXPECTED
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None and getattr(error, "exit_code", None) == ExitCode.USAGE:
            return _usage_error(error, usage())
        return report(error, debug=invocation.debug)


def _usage_error(error: Exception, message: str) -> ExitCode:
    """Click's own words about an argument, in the form that all errors have."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", _NAME)
    hint = f"`{path} --help` shows what it takes."
    if "unexpected extra argument" in message.lower() and path.endswith(" run"):
        hint = f'Put a question of several words in quotes: {_NAME} run "Why is the sky blue?" {hint}'
    print_error(message, hint)
    return ExitCode.USAGE
