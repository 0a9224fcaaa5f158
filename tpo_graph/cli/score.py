"""`tpo-graph score`: how well a reward model agrees with people."""

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from tpo_graph.cli.output import one_line, plural, stderr_console
from tpo_graph.errors import ConfigurationError

if TYPE_CHECKING:
    from tpo_graph.evaluation.pairs import PairReport, PairScore

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
    with ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if pairs == "-" else stack.enter_context(open(pairs, "rb"))  # noqa: PTH123
        except OSError as error:
            raise ConfigurationError(f"{pairs!r} can't be read: {error.strerror}.") from error
        typer.echo(f"loading {one_line(reward)}", err=True)
        model = load_reward(reward)
        stack.callback(getattr(model, "close", lambda: None))
        # shown on a terminal only
        status = stack.enter_context(stderr_console().status("scoring"))
        scoring = score_pairs(
            model,
            lines,
            max_concurrency=concurrency,
            on_progress=lambda tally: status.update(f"scored {plural(tally.pairs, 'pair')}"),
            on_scores=scored.append if scores or as_json else None,
        )
        report = asyncio.run(scoring)
    scored.sort(key=lambda pair: pair["line"])
    if as_json:
        print(json.dumps({**report, "scores": scored}, ensure_ascii=False, allow_nan=False))
    else:
        if scores:
            print(f"{'line':>8}{'chosen':>12}{'rejected':>12}{'margin':>12}")
            for pair in scored:
                margin = pair["chosen"] - pair["rejected"]
                print(f"{pair['line']:>8}{pair['chosen']:>12.5g}{pair['rejected']:>12.5g}{margin:>+12.5g}")
            print()
        _print_table(report)
    _print_what_is_missing(report)


def _print_table(report: "PairReport") -> None:
    print(f"{'':14}{'accuracy':>9}  {'95% interval':<16}{'wins':>7}{'ties':>7}{'losses':>8}")
    for name, accuracy in (("reward", report["reward"]), ("length rule", report["length_rule"])):
        interval = f"{100 * accuracy['low']:.1f}% to {100 * accuracy['high']:.1f}%"
        counts = f"{accuracy['wins']:>7}{accuracy['ties']:>7}{accuracy['losses']:>8}"
        print(f"{name:14}{100 * accuracy['accuracy']:>8.1f}%  {interval:<16}{counts}")
    low, high = report["advantage_low"], report["advantage_high"]
    print(f"{'difference':14}{100 * report['advantage']:>+8.1f}%  {100 * low:+.1f}% to {100 * high:+.1f}%")
    print(f"{plural(report['pairs'], 'pair')}, mean margin {report['mean_margin']:+.4g}")


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
