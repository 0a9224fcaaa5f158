"""One run of the command, from the names of models to an outcome.

The work is done in a thread of its own, so that the main thread is free for Ctrl-C: the terminal answers at once,
whatever torch or a server is busy with, and what was scored until then is kept.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tpo_graph.cli.outcome import Outcome, RunRequest
from tpo_graph.settings import TPOSettings

if TYPE_CHECKING:
    from tpo_graph.cli.display import Reporter
    from tpo_graph.graph.build import TPOGraph

_WORKING_THREAD = "tpo-graph-run"
_DEMONSTRATION = (
    "the reward model `local` is a small demonstration: good for a first look, no judge of quality "
    "(--reward names another)"
)
_MOMENT = 0.5  # seconds; where a wait can't be interrupted, Ctrl-C is seen this late


def answer(request: RunRequest, reporter: "Reporter") -> Outcome:
    """Run TPO on a question; errors and Ctrl-C are part of the outcome, with what was produced before them.

    Args:
        request: what is to be answered, and by what.
        reporter: shows the run while it goes on.
    """
    started = time.perf_counter()
    outcome = Outcome(request)
    ended = threading.Event()
    work = (request, reporter, outcome, ended)
    worker = threading.Thread(target=_work, args=work, name=_WORKING_THREAD, daemon=True)
    try:
        with reporter:
            try:
                reporter.start(request)
                if request.models["reward model"] == "local":
                    reporter.warn(_DEMONSTRATION)
                worker.start()
                # not by `join`: Ctrl-C inside it makes Python 3.11 take a thread for ended that goes on
                while not ended.wait(_MOMENT):
                    reporter.idle()
            except KeyboardInterrupt:
                # a copy: what the worker still does is not part of the outcome
                outcome = replace(outcome, interrupted=True)
            outcome.seconds = time.perf_counter() - started
            reporter.finish(outcome)
    except KeyboardInterrupt:  # a second one, while the end was shown
        outcome.interrupted = True
    return outcome


def _work(request: RunRequest, reporter: "Reporter", outcome: Outcome, ended: threading.Event) -> None:
    """Load the models and run the graph, in the working thread; the outcome has whatever was produced so far."""
    try:
        graph = _load(request, reporter, outcome)
        asyncio.run(_run(graph, request, reporter, outcome))
    except BaseException as error:  # whatever happened, the main thread reports it
        outcome.error = error
    finally:
        ended.set()


def _load(request: RunRequest, reporter: "Reporter", outcome: Outcome) -> "TPOGraph":
    from langgraph.checkpoint.memory import InMemorySaver

    from tpo_graph.graph.build import wire
    from tpo_graph.human.nodes import (
        PersonReward,
        human_critique_node,
        human_score_node,
        human_select_node,
        kept_loss_node,
    )
    from tpo_graph.rewards.load import load_reward
    from tpo_graph.rewards.warnings import WatchedReward
    from tpo_graph.run_parts import RunParts

    models, settings = request.models, request.settings
    parts = RunParts(
        policy=models["policy"],
        reward=PersonReward() if request.person_rates else models["reward model"],
        critic=models.get("critic"),
        prompts=request.prompts,
        nodes=request.variant,
        settings=settings,
    ).load(reporter.load)
    if second := models.get("second reward model"):
        reporter.load("second reward model", second, None)
        started = time.perf_counter()
        parts = replace(parts, reward=WatchedReward(parts.reward, load_reward(second)))
        reporter.load("second reward model", second, time.perf_counter() - started)
    outcome.prompts = parts.prompts.name
    nodes = parts.make_nodes()
    if request.ask:
        nodes["select"] = human_select_node(settings, takes_critique=True)
        nodes["loss"] = kept_loss_node(nodes["loss"])
        nodes["gradient"] = human_critique_node(nodes["gradient"])
    if request.person_rates:
        nodes["score"] = human_score_node()
    asks_person = request.ask or request.person_rates
    return wire(nodes, context_schema=TPOSettings).compile(
        name="tpo", checkpointer=InMemorySaver() if asks_person else None
    )


async def _run(graph: "TPOGraph", request: RunRequest, reporter: "Reporter", outcome: Outcome) -> None:
    """Stream the graph until the end of the run, again with every answer of a person."""
    from langgraph.types import Command

    from tpo_graph.cli.ask import ask
    from tpo_graph.cli.following import STREAM_MODES, Follower

    follower = Follower(outcome, reporter)
    graph_input: Any = {"messages": request.conversation}
    config: Any = {"configurable": {"thread_id": "run"}, "callbacks": [follower]}
    while True:
        question = None
        stream: AsyncIterator[Any] = graph.astream(graph_input, config, stream_mode=STREAM_MODES)
        async for kind, news in stream:
            question = follower.see(kind, news) or question
        if question is None:
            return
        try:
            with reporter.paused():
                graph_input = Command(resume=await asyncio.to_thread(ask, question))
        except EOFError:  # the person has left
            outcome.interrupted = True
            return


def unfinished_work() -> bool:
    """Whether a thread that runs the graph or loads a model still works, after an interrupt or an error."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("tpo-graph-")]
    for thread in threads:
        thread.join(0.1)  # one that is about to end needs no more
    return any(thread.is_alive() for thread in threads)
