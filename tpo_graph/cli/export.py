"""`tpo-graph export`: a saved run in the format of another tool."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tpo_graph.cli.output import OutputError
from tpo_graph.errors import ConfigurationError


class Format(StrEnum):
    """What a run can be exported to."""

    INSPECT = "inspect"


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="A run, as `tpo-graph run --save` writes it.")],
    to: Annotated[Format, typer.Option("--to", help="inspect: a log that `inspect view` shows (extra `inspect`).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN.eval", help="Where to write it. Default: beside FILE.json."),
    ] = None,
) -> None:
    """Write a saved run as a log of inspect_ai: spans for nodes, all candidates as choices, a score for each."""
    assert to is Format.INSPECT
    from tpo_graph.report.document import read_run
    from tpo_graph.report.inspect_log import inspect_log

    output = output or file.with_suffix(".eval")
    if output.suffix not in (".eval", ".json") or output.resolve() == file.resolve():
        raise ConfigurationError(
            f"A log of inspect_ai can't be written to {str(output)!r}.",
            hint="Name another file with -o that ends in .eval or .json.",
        )
    run = read_run(file)
    log = inspect_log(run, ended=datetime.fromtimestamp(file.stat().st_mtime, UTC))
    from inspect_ai.log import write_eval_log

    try:
        write_eval_log(log, output)
    except OSError as error:
        raise OutputError(
            f"The log {str(output)!r} can't be written: {error.strerror}.", hint="Name another file with -o."
        ) from error
    print(output)
