"""`tpo-graph serve` with a reward model that reads the last number of a response, by the name `number`."""

import sys

import typer

from tests.tpo_script import number_reward
from tpo_graph.cli.output import report_error
from tpo_graph.cli.serve import serve
from tpo_graph.errors import TPOError
from tpo_graph.rewards.load import SCHEMES

if __name__ == "__main__":
    SCHEMES["number"] = lambda name, **options: number_reward()
    app = typer.Typer()
    app.command()(serve)
    try:
        app(standalone_mode=False)
    except TPOError as error:
        sys.exit(int(report_error(error)))
