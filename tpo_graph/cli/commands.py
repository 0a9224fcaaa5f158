"""The commands put together, and the one place where their errors become lines and exit codes."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tpo_graph.cli.export import export
from tpo_graph.cli.models import models
from tpo_graph.cli.output import EXIT_CODES_HELP, ExitCode, print_error, report_error
from tpo_graph.cli.process import discard_stdout, interrupt_code, stdout_is_lost
from tpo_graph.cli.prompts import prompts
from tpo_graph.cli.replay import replay
from tpo_graph.cli.report import report
from tpo_graph.cli.run import run
from tpo_graph.cli.score import score
from tpo_graph.cli.serve import serve

_NAME = "tpo-graph"

app = typer.Typer(name=_NAME, epilog=EXIT_CODES_HELP)
app.command(epilog=EXIT_CODES_HELP)(run)
app.command()(replay)
app.command()(report)
app.command()(export)
app.command()(score)
app.command()(serve)
app.add_typer(prompts, name="prompts")
app.add_typer(models, name="models")


@app.command()
def graph() -> None:
    """Print the graph as Mermaid text; needs no model."""
    from langchain_core.runnables.graph import NodeStyles

    from tpo_graph.graph.build import create_tpo_graph
    from tpo_graph.settings import TPOSettings
    from tpo_graph.testing import ScriptedChatModel, TableReward

    # the picture is the same for all models and settings
    compiled = create_tpo_graph(ScriptedChatModel([]), TableReward({}), prompts="tpo", settings=TPOSettings())
    # with a colour for the text too: that of a page in dark mode is near white
    colours = "stroke:#7c6ff0,color:#1f1b3d"
    styles = NodeStyles(f"fill:#e9e6ff,{colours},line-height:1.2", f"fill:#ffffff,{colours}", f"fill:#cfc8ff,{colours}")
    print(compiled.get_graph().draw_mermaid(node_colors=styles).rstrip())


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[  # noqa: ARG001  # `execute` reads it, so that it counts for errors in other options too
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand after the command as well.")
    ] = False,
) -> None:
    """Test-time Preference Optimization: better answers from the model that you have, with no training."""
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed_version

        try:
            print(f"{_NAME} {installed_version(_NAME)}")
        except PackageNotFoundError:  # run from a source tree
            print(f"{_NAME} (not installed)")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def execute(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; nothing is raised.

    Args:
        arguments: those after the command's name.
    """
    debug = "--debug" in arguments
    arguments = [*(["--debug"] if debug else []), *(argument for argument in arguments if argument != "--debug")]
    try:
        code = typer.main.get_command(app).main(arguments, prog_name=_NAME, standalone_mode=False)
        sys.stdout.flush()
    except SystemExit:  # so Click and Rich end where the reader of stdout has left
        discard_stdout()
        return ExitCode.OUTPUT
    except Exception as error:
        if isinstance(error, OSError) and stdout_is_lost():
            discard_stdout()
            if not isinstance(error, BrokenPipeError):
                print_error(f"Standard output can't be written: {error.strerror}.", "")
            return ExitCode.OUTPUT
        if getattr(error, "exit_code", None) != ExitCode.USAGE or not hasattr(error, "format_message"):
            return report_error(error, debug=debug)
        # Click's own words about an argument, in the form that all errors have
        message = error.format_message()
        path = getattr(getattr(error, "ctx", None), "command_path", _NAME)
        hint = f"`{path} --help` shows what it takes."
        if "unexpected extra argument" in message.lower() and path.endswith(" run"):
            hint = f'Put a question of several words in quotes: {_NAME} run "Why is the sky blue?" {hint}'
        print_error(message, hint)
        return ExitCode.USAGE
    if code != ExitCode.INTERRUPTED:
        return code if isinstance(code, int) else ExitCode.OK
    if not isinstance(code, ExitCode):  # Typer's, where no command handled the interrupt
        print("interrupted", file=sys.stderr)
    return interrupt_code()
