"""What the loop costs its client: many queries in flight against a simulated server, in the same run as a rival.

    python benchmarks/client.py --queries 100

The floor is a bare client: OpenAI's own, over the same aiohttp transport, which sends the very bodies that the graph
sent, one query's after another, and does nothing with the answers. The rival is the same graph over ChatOpenAI with
httpx, OpenAI's default HTTP client, which `load_policy` replaces. The runs alternate; each side's fastest run and its
least CPU count, and both are printed as ratios to the bare client's. A full chain is the time that the requests of one
query would take on the server, one after the other, if each had a completion of full length. Prompt tokens that are
"new" are those behind the longest prefix that the same query has sent before. CPU is that of the client's process; the
server is another one.

A second table shows how a checkpoint grows with the steps: bytes of all checkpoints of a run, by tokens sampled.

Prints the tables, then one line of JSON.
"""

import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

import httpx
import openai
import typer
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from simulated_server import CHARACTERS_A_TOKEN, MARK, serve

from tpo_graph import TPOSettings, create_tpo_graph, load_policy
from tpo_graph.graph.build import TPOGraph

REQUEST_ROUNDS = 1 + 3 * 2  # sample, then loss, gradient and update in each of two steps


@dataclass
class Result:
    """One client at its best.

    Attributes:
        client: whose.
        seconds: wall time of all queries.
        cpu_ms: milliseconds of the client's processor time a query.
        requests: requests a query.
        prompt_tokens: prompt tokens a query.
        new_prompt_tokens: those behind a prefix that the query has sent before.
        most_in_flight: requests in flight at once.
    """

    client: str
    seconds: float
    cpu_ms: float
    requests: float
    prompt_tokens: float
    new_prompt_tokens: float
    most_in_flight: int


class MarkReward:
    """Reads the reward that the simulated policy wrote into its text."""

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:  # noqa: ARG002
        """The last mark of each response."""
        return [float(MARK.findall(response)[-1]) for response in responses]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str) -> None:
    """Return when the server answers."""
    for _ in range(200):
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("The simulated server did not start.")


Queries: TypeAlias = Callable[[int], Coroutine[Any, Any, None]]
"""Answers all queries, as many as it is told, at the same time."""


def of_graph(graph: TPOGraph) -> Queries:
    """The queries through a graph."""

    async def run(queries: int) -> None:
        asked = (graph.ainvoke({"query": f"Please answer query {number} for me."}) for number in range(queries))
        reasons = {str(result["stop_reason"]) for result in await asyncio.gather(*asked)}
        if reasons != {"depth"}:
            raise SystemExit(f"Runs ended early: {sorted(reasons)}")

    return run


def of_bare_client(server: str, recorded: Sequence[Sequence[dict[str, Any]]]) -> Queries:
    """The same requests through OpenAI's client alone."""
    client = openai.AsyncOpenAI(
        base_url=f"{server}/v1", api_key="none", http_client=openai.DefaultAioHttpClient(), max_retries=0
    )

    async def one(bodies: Sequence[dict[str, Any]]) -> None:
        for body in bodies:
            await client.chat.completions.create(**body)

    async def run(queries: int) -> None:
        await asyncio.gather(*map(one, recorded[:queries]))

    return run


def run_once(runner: asyncio.Runner, answer: Queries, queries: int, server: str, client: str) -> Result:
    """All queries at the same time, once."""
    httpx.post(f"{server}/forget")
    cpu, clock = time.process_time(), time.perf_counter()
    runner.run(answer(queries))
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    seen = httpx.get(f"{server}/seen").json()
    return Result(
        client=client,
        seconds=clock,
        cpu_ms=1000 * cpu / queries,
        requests=seen["requests"] / queries,
        prompt_tokens=seen["prompt_tokens"] / queries,
        new_prompt_tokens=seen["new_prompt_tokens"] / queries,
        most_in_flight=seen["most_in_flight"],
    )


def checkpoint_bytes(policy: BaseChatModel, depth: int) -> tuple[int, int]:
    """Bytes of all checkpoints of a run of `depth` steps, and tokens of the candidates that it sampled."""
    saver = InMemorySaver()
    graph = create_tpo_graph(policy, MarkReward(), checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": str(depth)}, "recursion_limit": 4 + 5 * depth}
    result = graph.invoke({"query": "Please answer query 0 for me."}, config, context=TPOSettings(depth=depth))
    sampled = sum(len(candidate["text"]) for candidate in result["cache"]) // CHARACTERS_A_TOKEN
    blobs = sum(len(value[1]) for value in saver.blobs.values())
    writes = sum(len(write[2][1]) for thread in saver.writes.values() for write in thread.values())
    kept = sum(
        len(entry[0][1]) for thread in saver.storage.values() for each in thread.values() for entry in each.values()
    )
    return blobs + writes + kept, sampled


def main(
    queries: Annotated[int, typer.Option(help="Queries in flight at once.", min=1)] = 100,
    repeats: Annotated[int, typer.Option(help="Runs of each client; the best counts.", min=1)] = 3,
    first_token: Annotated[float, typer.Option(help="Seconds to the first token.", min=0)] = 0.05,
    per_token: Annotated[float, typer.Option(help="Seconds a token.", min=0)] = 0.002,
    tokens: Annotated[int, typer.Option(help="Tokens of a completion at most.", min=30)] = 200,
) -> None:
    """Measure and print."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, first_token, per_token, tokens), daemon=True
    )
    process.start()
    server = f"http://127.0.0.1:{port}"
    wait_for(f"{server}/seen")
    chain = REQUEST_ROUNDS * (first_token + per_token * tokens)
    ours = load_policy(f"server:{server}/v1#simulated")
    # a client that was given is left alone; one that was not is replaced, as the graph must run in any event loop
    rival = ChatOpenAI(
        model="simulated",
        base_url=f"{server}/v1",
        api_key=SecretStr("none"),
        http_async_client=openai.DefaultAsyncHttpxClient(),
    )
    graph = of_graph(create_tpo_graph(ours, MarkReward()))
    best: dict[str, Result] = {}
    with asyncio.Runner() as runner:
        run_once(runner, graph, queries, server, "")  # imports, connections, and what the bare client is to send
        clients = {
            "bare client": of_bare_client(server, httpx.get(f"{server}/bodies", timeout=60).json()),
            "load_policy (aiohttp)": graph,
            "ChatOpenAI over httpx": of_graph(create_tpo_graph(rival, MarkReward())),
        }
        for name, answer in clients.items():
            run_once(runner, answer, 2, server, name)
        for _ in range(repeats):
            for name, answer in clients.items():
                result = run_once(runner, answer, queries, server, name)
                before = best.get(name, result)
                result.seconds = min(result.seconds, before.seconds)
                result.cpu_ms = min(result.cpu_ms, before.cpu_ms)
                best[name] = result
    growth = {depth: checkpoint_bytes(ours, depth) for depth in (1, 2, 4, 8)}
    show(list(best.values()), growth, queries, chain)
    checkpoints = [{"depth": d, "bytes": size, "tokens_sampled": count} for d, (size, count) in growth.items()]
    results = [asdict(result) for result in best.values()]
    typer.echo(json.dumps({"full_chain_seconds": chain, "clients": results, "checkpoints": checkpoints}))
    process.terminate()


def show(results: Sequence[Result], growth: dict[int, tuple[int, int]], queries: int, chain: float) -> None:
    """Print the tables for people."""
    console = Console()
    table = Table(title=f"{queries} queries at once, D2-N5; a full chain takes {chain:.2f} s", title_justify="left")
    table.add_column("client", no_wrap=True)
    for name in ("seconds", "of bare", "CPU ms", "of bare", "requests", "prompt tokens", "new", "in flight"):
        table.add_column(name, justify="right")
    bare = results[0]
    for row in results:
        table.add_row(
            row.client,
            f"{row.seconds:.2f}",
            f"{row.seconds / bare.seconds:.2f}",
            f"{row.cpu_ms:.1f}",
            f"{row.cpu_ms / bare.cpu_ms:.2f}",
            f"{row.requests:.1f}",
            f"{row.prompt_tokens:,.0f}",
            f"{row.new_prompt_tokens:,.0f}",
            str(row.most_in_flight),
        )
    console.print(table)
    table = Table(title="All checkpoints of one run", title_justify="left")
    for name in ("depth", "bytes", "tokens sampled", "bytes a token"):
        table.add_column(name, justify="right")
    for depth, (size, count) in growth.items():
        table.add_row(str(depth), f"{size:,}", f"{count:,}", f"{size / count:.1f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
