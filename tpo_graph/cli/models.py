"""`tpo-graph models`: lists the embedded models, and fetches them."""

from typing import Annotated

import typer

from tpo_graph.cli.output import stderr_console
from tpo_graph.errors import ConfigurationError

models = typer.Typer(help="List and fetch the models that `--policy local:NAME` runs.", no_args_is_help=False)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the embedded models, their size and licence, and which of them are here."""
    if context.invoked_subcommand is not None:
        return
    from tpo_graph.policies.models import CATALOGUE, DEFAULT_MODEL, cached

    width = max(map(len, CATALOGUE))
    for name, model in CATALOGUE.items():
        place = "here" if cached(model) else "to be fetched"
        default = " (local)" if name == DEFAULT_MODEL else ""
        size = f"{model.size // 10**6:,} MB"
        print(f"{name.ljust(width)}  {size:>8}  {place:<13}  {model.licence:<10}  {model.description}{default}")


@models.command()
def get(name: Annotated[str, typer.Argument(metavar="NAME", help="One of the list, as in: 0.5b.")]) -> None:
    """Fetch a model into the user's cache, unless it is there, and print its path."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from tpo_graph.policies.models import CATALOGUE, fetch

    model = CATALOGUE.get(name)
    if model is None:
        raise ConfigurationError(f"There is no embedded model {name!r}; there are: {', '.join(CATALOGUE)}.")
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr_console()) as bar:
        task = bar.add_task(name, total=model.size)
        path = fetch(model, lambda done, size: bar.update(task, completed=done, total=size))
        bar.update(task, completed=model.size)
    print(path)
