"""`tpo-graph report`: a run as one self-contained page."""

from pathlib import Path
from typing import Annotated

import typer

from tpo_graph.cli.output import OutputError
from tpo_graph.errors import ConfigurationError


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="A run, as `tpo-graph run --json` prints it.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE.html", help="Where to write it. Default: beside FILE.json."),
    ] = None,
) -> None:
    """Make one HTML page of a run: rewards by step, who was revised from whom, what changed, what it cost.

    The page needs nothing else and asks for nothing: open it from disk, or send it to somebody.
    """
    from tpo_graph.report import read_run, report_page

    output = output or file.with_suffix(".html")
    if output.resolve() == file.resolve():
        raise ConfigurationError(f"The page would replace the run: {str(output)!r}.", hint="Name another file with -o.")
    page = report_page(read_run(file))
    try:
        output.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(
            f"The page {str(output)!r} can't be written: {error.strerror}.", hint="Name another file with -o."
        ) from error
    print(output)
