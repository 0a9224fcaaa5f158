"""`tpo-graph score`: how well a reward model agrees with people."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, Annotated

import typer

from tpo_graph.cli.display import one_line, plural
from tpo_graph.errors import ConfigurationError

if TYPE_CHECKING:
    from tpo_graph.evaluation.pairs_report import Accuracy, PairReport, PairScore, PairTally

_LISTED = 10


def score(
    pairs: Annotated[
        str, typer.Argument(metavar="PAIRS.jsonl", help="Lines with prompt, chosen and rejected; - is stdin.")
    ],
    reward: Annotated[str, typer.Option(help='The reward model, as in "local", "hf:owner/name" or "recipe.toml".')],
    concurrency: Annotated[int, typer.Option(min=1, help="Pairs that are scored at the same time.")] = 8,
    scores: Annotated[bool, typer.Option("--scores", help="Print the rewards of each pair before the report.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report, with the rewards of each pair, as one line of JSON.")
    ] = False,
) -> None:
    """Score pairs of a preference data set, and tell how often the reward model prefers the chosen one.

    Beside it stands the rule that prefers the longer response, over the same pairs. Ties count half.
    """
    import asyncio

    from tpo_graph.evaluation.pairs import score_pairs
    from tpo_graph.rewards.load import load_reward

    with _opened(pairs) as lines:
        typer.echo(f"loading {one_line(reward)}", err=True)
        model = load_reward(reward)
        told: list[PairScore] = []
        keep = told.append if scores or as_json else None
        try:
            with _progress() as show:
                scoring = score_pairs(model, lines, max_concurrency=concurrency, on_progress=show, on_scores=keep)
                report = asyncio.run(scoring)
        finally:
            getattr(model, "close", lambda: None)()
    told.sort(key=lambda pair: pair["line"])
    if as_json:
        print(json.dumps({**report, "scores": told}, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join([*(_scores(told) if scores else ()), _table(report)]))
    _tell_what_is_missing(report)


def _opened(path: str) -> AbstractContextManager[IO[bytes]]:
    if path == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")  # noqa: PTH123  # the caller's `with` closes it
    except OSError as error:
        raise ConfigurationError(f"{path!r} can't be read: {error.strerror}.") from error


@contextmanager
def _progress() -> "Iterator[Callable[[PairTally], None]]":
    """A line on stderr that counts, on a terminal alone."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("scoring") as status:
        yield lambda tally: status.update(f"scored {plural(tally.pairs, 'pair')}")


def _scores(told: "Sequence[PairScore]") -> "Iterator[str]":
    yield f"{'line':>8}{'chosen':>12}{'rejected':>12}{'margin':>12}"
    for pair in told:
        margin = pair["chosen"] - pair["rejected"]
        yield f"{pair['line']:>8}{pair['chosen']:>12.5g}{pair['rejected']:>12.5g}{margin:>+12.5g}"
    yield ""


def _table(report: "PairReport") -> str:
    low, high = report["advantage_low"], report["advantage_high"]
    return "\n".join(
        (
            f"{'':14}{'accuracy':>9}  {'95% interval':<16}{'wins':>7}{'ties':>7}{'losses':>8}",
            _row("reward", report["reward"]),
            _row("length rule", report["length_rule"]),
            f"{'difference':14}{100 * report['advantage']:>+8.1f}%  {100 * low:+.1f}% to {100 * high:+.1f}%",
            f"{plural(report['pairs'], 'pair')}, mean margin {report['mean_margin']:+.4g}",
        )
    )


def _row(name: str, told: "Accuracy") -> str:
    interval = f"{100 * told['low']:.1f}% to {100 * told['high']:.1f}%"
    counts = f"{told['wins']:>7}{told['ties']:>7}{told['losses']:>8}"
    return f"{name:14}{100 * told['accuracy']:>8.1f}%  {interval:<16}{counts}"


def _tell_what_is_missing(report: "PairReport") -> None:
    if cut := report["truncated"]:
        lines = ", ".join(map(str, report["truncated_lines"][:_LISTED])) + (", ..." if cut > _LISTED else "")
        typer.echo(
            f"{plural(cut, 'pair')} too long for the reward model, scored without the start of the conversation or the "
            f"end of a response: line {lines}",
            err=True,
        )
    for count, lost, word in (
        (report["bad"], report["bad_lines"], "no pair"),
        (report["unscored"], report["unscored_lines"], "without a reward"),
    ):
        if count:
            typer.echo(f"{plural(count, 'line')} left out, {word}:", err=True)
            for each in lost[:_LISTED]:
                typer.echo(f"  line {each['line']}: {one_line(each['reason'])}", err=True)
            if count > _LISTED:
                typer.echo(f"  and {count - _LISTED} more; --json names the first 100", err=True)
