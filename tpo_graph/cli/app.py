"""The commands put together, and the one place where their errors become lines and exit codes."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from tpo_graph.cli.output import EXIT_CODES_HELP, ExitCode, print_error, report_error
from tpo_graph.cli.prompts import prompts
from tpo_graph.cli.run import run
from tpo_graph.cli.score import score
from tpo_graph.cli.serve import serve
from tpo_graph.cli.session import work_is_left

_NAME = "tpo-graph"

app = typer.Typer(name=_NAME, epilog=EXIT_CODES_HELP)
app.command(epilog=EXIT_CODES_HELP)(run)
app.command()(score)
app.command()(serve)
app.add_typer(prompts, name="prompts")


@app.command()
def graph() -> None:
    """Print the graph as Mermaid text; needs no model."""
    from tpo_graph.graph.build import create_tpo_graph
    from tpo_graph.settings import TPOSettings
    from tpo_graph.testing import ScriptedChatModel, TableReward

    # the picture is the same for all models and settings
    compiled = create_tpo_graph(ScriptedChatModel([]), TableReward({}), prompts="tpo", settings=TPOSettings())
    print(compiled.get_graph().draw_mermaid().rstrip())


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


def main() -> NoReturn:
    """Run the command with the arguments of the process, and end the process with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # an answer that the terminal's encoding has no letters for is better than none
        sys.stdout.reconfigure(errors="backslashreplace")
    code = int(execute(sys.argv[1:]))
    if not work_is_left():
        sys.exit(code)
    # a thread inside torch, llama.cpp or a request can't be told to stop, and a normal exit would wait for it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
        return code if isinstance(code, int) else ExitCode.OK
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader of the output has left; what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.UNEXPECTED
    except Exception as error:
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
