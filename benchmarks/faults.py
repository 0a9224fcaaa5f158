"""How runs come through when the policy's server goes wrong: each kind of fault, at each rate.

    python benchmarks/faults.py --rates 0.05,0.2 --kinds half_json,disconnect

Questions are answered with D2-N5 against `tpo_graph.testing.FaultServer`, which draws for each request whether the
fault happens. An answer counts where it is one whole text of the server's: not cut, no reasoning in it. "depth" counts
the runs that ended after all of their steps. Requests are those that the server received, retries included, against the
seven of a run without faults.

Prints the table, then one line of JSON.
"""

import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from tpo_graph import PolicyError, TPOSettings, create_tpo_graph, load_policy
from tpo_graph.testing import FAULT_KINDS, FaultServer, TableReward, marked_reward

SETTINGS = TPOSettings(n=5, depth=2, timeout=2)
REQUESTS_A_RUN = 1 + 3 * 2  # sample, then loss, gradient and update in each of two steps
RUNS_AT_ONCE = 10
WHOLE = re.compile(r"[a-z ]+ \[reward [+-]\d+\.\d{4}\]")
# the server says that the request, the key or the model is wrong: it would say so again
NOT_RETRIED = frozenset({"400", "401", "403", "404"} | {kind for kind in FAULT_KINDS if kind.startswith("422")})


@dataclass
class Row:
    """What one kind of fault did at one rate.

    Attributes:
        kind: the fault.
        rate: how often it happened to a request.
        answers: runs with an answer that is a whole text.
        depth: runs that reached their depth.
        requests: requests sent, in multiples of what the runs need without faults.
        stops: runs by the reason that they ended.
        seconds: wall time.
    """

    kind: str
    rate: float
    answers: int
    depth: int
    requests: float
    stops: dict[str, int]
    seconds: float


def reward(response: str) -> float:
    """The mark of a whole text; any other is worse than all of them."""
    return marked_reward(response) if WHOLE.fullmatch(response) else -9.0


async def measure(kind: str, rate: float, questions: int) -> Row:
    """Answer all questions once, with one policy."""
    began = time.perf_counter()
    turns = asyncio.Semaphore(RUNS_AT_ONCE)
    with FaultServer(faults={kind: rate}) as server:
        graph = create_tpo_graph(load_policy(f"server:{server.url}#any"), TableReward(reward), settings=SETTINGS)

        async def answer(number: int) -> tuple[str, str]:
            async with turns:
                try:
                    result = await graph.ainvoke({"query": f"Please answer question {number}."})
                except PolicyError as error:
                    return type(error).__name__, ""
            return str(result["stop_reason"]), result["answer"]

        ended = await asyncio.gather(*map(answer, range(questions)))
        sent = len(server.requests)
    stops = Counter(reason for reason, _ in ended)
    return Row(
        kind=kind,
        rate=rate,
        answers=sum(WHOLE.fullmatch(text) is not None for _, text in ended),
        depth=stops["depth"],
        requests=round(sent / (REQUESTS_A_RUN * questions), 3),
        stops=dict(stops.most_common()),
        seconds=round(time.perf_counter() - began, 2),
    )


def main(
    kinds: Annotated[str, typer.Option(help="Faults, separated by commas; all where none is given.")] = "",
    rates: Annotated[str, typer.Option(help="How often, separated by commas.")] = "0.05,0.2",
    questions: Annotated[int, typer.Option(help="Runs of each kind at each rate.", min=1)] = 60,
) -> None:
    """Measure and print."""
    shares = [float(rate) for rate in rates.split(",")]
    asked = [kind.strip() for kind in kinds.split(",") if kind.strip()] or list(FAULT_KINDS)
    rows: dict[str, list[Row]] = {}
    with asyncio.Runner() as runner:
        for kind in asked:
            rows[kind] = [runner.run(measure(kind, share, questions)) for share in shares]
            typer.echo(f"{kind}: {[asdict(row) for row in rows[kind]]}", err=True)
    typer.echo(f"{questions} questions, D2-N5; of each rate: answers, runs that reached their depth, requests\n")
    typer.echo(f"| fault | what it is | {' | '.join(f'{share:.0%}' for share in shares)} |")
    typer.echo(f"|---|---|{'---|' * len(shares)}")
    for kind, cells in rows.items():
        note = "" if kind not in NOT_RETRIED else " (no retry helps)"
        numbers = " | ".join(f"{row.answers}, {row.depth}, {row.requests:.2f}" for row in cells)
        typer.echo(f"| `{kind}` | {FAULT_KINDS.get(kind, '')}{note} | {numbers} |")
    typer.echo(json.dumps({"questions": questions, "rows": [asdict(row) for cells in rows.values() for row in cells]}))


if __name__ == "__main__":
    typer.run(main)
