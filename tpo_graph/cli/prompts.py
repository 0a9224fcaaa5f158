"""`tpo-graph prompts`: lists, shows, copies and checks prompt packs."""

import shutil
from pathlib import Path
from typing import Annotated, get_args

import typer

from tpo_graph.errors import PromptError
from tpo_graph.settings import read_text
from tpo_graph.types import Mode

prompts = typer.Typer(help="List, show, copy and check prompt packs.", no_args_is_help=False)

Pack = Annotated[str, typer.Argument(metavar="PACK", help="A pack's name, or its folder.")]


@prompts.callback(invoke_without_command=True)
def _no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


@prompts.command("list")
def list_packs() -> None:
    """List the packs that come with the package."""
    from tpo_graph.prompts.pack import PromptPack, available_packs

    names = available_packs()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name.ljust(width)}  {PromptPack.load(name).description}")


@prompts.command()
def show(
    pack: Pack,
    prompt: Annotated[str | None, typer.Argument(help="One file of it, as in: loss. Default: all of them.")] = None,
) -> None:
    """Print the files of a pack as they are."""
    from tpo_graph.prompts.pack import pack_folder

    files = {file.stem: file for file in sorted(pack_folder(pack).glob("*.toml"))}
    names = sorted(files, key=lambda name: name != "pack")  # pack.toml first
    if prompt is not None:
        name = prompt.removesuffix(".toml")
        if name not in files:
            raise PromptError(f"Prompt pack {pack!r} has no {prompt!r}; it has: {', '.join(names)}.")
        names = [name]
    for name in names:
        text = read_text(files[name], title="Prompt file", error=PromptError)
        if prompt is None:
            text = f"{'' if name == names[0] else chr(10)}# ---- {name}.toml ----\n{text}"
            text += "" if text.endswith("\n") else "\n"
        print(text, end="")


@prompts.command()
def copy(
    pack: Pack,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")],
) -> None:
    """Copy a pack into a new folder, for editing."""
    from tpo_graph.prompts.pack import PromptPack, available_packs, pack_folder

    source = pack_folder(pack)
    if folder.exists():
        raise PromptError(f"{str(folder)!r} is there already, and is left as it is.", hint="Name a folder that is new.")
    try:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    except (OSError, shutil.Error) as error:
        raise PromptError(f"Prompt pack {pack!r} can't be copied to {str(folder)!r}: {error}.") from error
    PromptPack.load(folder)
    # a bare name that a pack of ours has would mean that one
    path = f"./{folder}" if str(folder) in available_packs() else str(folder)
    print(path)
    typer.echo(f"Edit its files, then: tpo-graph prompts check {path}", err=True)
    typer.echo(f'Use it: tpo-graph run "..." --prompts {path}', err=True)


@prompts.command()
def check(
    pack: Pack,
    mode: Annotated[
        str | None, typer.Option(metavar="|".join(get_args(Mode)), help="A mode that the pack must be able to run.")
    ] = None,
) -> None:
    """Check a pack, and report which modes it can run."""
    from tpo_graph.prompts.pack import PromptPack
    from tpo_graph.settings import TPOSettings

    required = TPOSettings.load(mode=mode).mode if mode is not None else None
    loaded = PromptPack.load(pack)
    problems: dict[Mode, PromptError] = {}
    for name in get_args(Mode):
        try:
            loaded.check(TPOSettings(mode=name))
        except PromptError as error:
            problems[name] = error
        print(f"mode {name}: {problems[name].message if name in problems else 'ok'}")
    using = [name for name, prompt in loaded.prompts.items() if "preference" in prompt.variables]
    print(f"preference: {'used in ' + ', '.join(using) if using else 'not used'}")
    # a pack for one mode alone is fine, unless that mode is what was asked for
    failed = problems.get(required) if required else (problems.get("tpo") if "revision" in problems else None)
    if failed is not None:
        raise failed
