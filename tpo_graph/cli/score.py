"""`tpo-graph score`: how well a reward model agrees with people."""

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from tpo_graph.cli.output import deliver, one_line, plural, stderr_console
from tpo_graph.errors import ConfigurationError
from tpo_graph.settings import MOST_BYTES, MOST_MIB

if TYPE_CHECKING:
    from tpo_graph.evaluation.pairs import PairReport, PairScore, PairTally

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
    """Score pairs of a preference data set, and report how often the reward model prefers the chosen one.

    Beside it stands the rule that prefers the longer response, over the same pairs. Ties count half.
    """
    import asyncio

    from tpo_graph.evaluation.pairs import score_pairs
    from tpo_graph.rewards.load import load_reward

    scored: list[PairScore] = []
    counted: PairTally | None = None
    ended: BaseException | None = None
    reported: Future[PairReport] = Future()

    def show(tally: "PairTally") -> None:
        nonlocal counted
        counted = tally
        status.update(f"scored {plural(tally.pairs, 'pair')}")

    def work() -> None:
        scoring = score_pairs(
            model,
            _lines(file, pairs),
            max_concurrency=concurrency,
            on_progress=show,
            on_scores=scored.append if scores or as_json else None,
        )
        try:
            reported.set_result(asyncio.run(scoring))
        except BaseException as error:  # whatever happened, the main thread reports it
            reported.set_exception(error)

    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if pairs == "-" else stack.enter_context(open(pairs, "rb"))  # noqa: PTH123
        except OSError as error:
            raise ConfigurationError(f"{pairs!r} can't be read: {error.strerror}.") from error
        typer.echo(f"loading {one_line(reward)}", err=True)
        model = load_reward(reward)
        stack.callback(getattr(model, "close", lambda: None))
        with stderr_console().status("scoring") as status:  # shown on a terminal only
            try:
                # a thread of its own leaves the main one free for Ctrl-C, whatever a pipe or a model is waiting for
                threading.Thread(target=work, name="tpo-graph-score", daemon=True).start()
                report = reported.result()
            except BaseException as error:
                if not reported.done():
                    stack.pop_all()  # the thread still uses file and model
                if counted is None or not counted.pairs:
                    raise
                report, ended = counted.report(), error  # what was scored was paid for
    scored = sorted(scored, key=lambda pair: pair["line"])
    if as_json:
        document = json.dumps({**report, "scores": scored}, ensure_ascii=False, allow_nan=False)
        deliver(document, suffix=".json")
    else:
        deliver("\n".join([*(_score_lines(scored) if scores else ()), *_report_lines(report)]))
    _print_what_is_missing(report)
    if ended is not None:
        typer.echo(f"the report is of the first {plural(report['pairs'], 'pair')} alone", err=True)
        raise ended


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a file that may have no end, and no lines either."""
    try:
        while line := file.readline(MOST_BYTES + 1):
            if len(line) > MOST_BYTES:
                raise ConfigurationError(f"{name!r} has a line of more than {MOST_MIB} MiB, the most that is read.")
            yield line
    except OSError as error:
        raise ConfigurationError(f"{name!r} can't be read: {error.strerror}.") from error


def _score_lines(scored: "list[PairScore]") -> Iterator[str]:
    yield f"{'line':>8}{'chosen':>12}{'rejected':>12}{'margin':>12}"
    for pair in scored:
        margin = pair["chosen"] - pair["rejected"]
        yield f"{pair['line']:>8}{pair['chosen']:>12.5g}{pair['rejected']:>12.5g}{margin:>+12.5g}"
    yield ""


def _report_lines(report: "PairReport") -> Iterator[str]:
    yield f"{'':14}{'accuracy':>9}  {'95% interval':<16}{'wins':>7}{'ties':>7}{'losses':>8}"
    for name, accuracy in (("reward", report["reward"]), ("length rule", report["length_rule"])):
        interval = f"{100 * accuracy['low']:.1f}% to {100 * accuracy['high']:.1f}%"
        counts = f"{accuracy['wins']:>7}{accuracy['ties']:>7}{accuracy['losses']:>8}"
        yield f"{name:14}{100 * accuracy['accuracy']:>8.1f}%  {interval:<16}{counts}"
    low, high = report["advantage_low"], report["advantage_high"]
    yield f"{'difference':14}{100 * report['advantage']:>+8.1f}%  {100 * low:+.1f}% to {100 * high:+.1f}%"
    yield f"{plural(report['pairs'], 'pair')}, mean margin {report['mean_margin']:+.4g}"


def _print_what_is_missing(report: "PairReport") -> None:
    """Name on stderr the pairs that were cut and the lines that do not count."""
    if truncated := report["truncated"]:
        lines = ", ".join(map(str, report["truncated_lines"][:_LISTED])) + (", ..." if truncated > _LISTED else "")
        typer.echo(
            f"{plural(truncated, 'pair')} too long for the reward model, scored without the start of the conversation "
            f"or the end of a response: line {lines}",
            err=True,
        )
    for count, left_out, why in (
        (report["bad"], report["bad_lines"], "no pair"),
        (report["unscored"], report["unscored_lines"], "without a reward"),
    ):
        if count:
            typer.echo(f"{plural(count, 'line')} left out, {why}:", err=True)
            for line in left_out[:_LISTED]:
                typer.echo(f"  line {line['line']}: {one_line(line['reason'])}", err=True)
            if count > _LISTED:
                typer.echo(f"  and {count - _LISTED} more; --json names the first 100", err=True)
