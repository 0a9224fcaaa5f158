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

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from tpo_graph.cli.outcome import Outcome, RunRequest
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Phase

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


class _Arrivals(BaseCallbackHandler):
    """Counts completions as the requests for them end: a model that takes no `n` gets several requests."""

    def __init__(self, reporter: "Reporter") -> None:
        self._reporter = reporter

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """A request has ended."""
        self._reporter.arrived(sum(map(len, response.generations)))


async def _run(graph: "TPOGraph", request: RunRequest, reporter: "Reporter", outcome: Outcome) -> None:
    """Stream the graph until the end of the run, again with every answer of a person.

    A task that starts is a phase that starts; the next state is what the phase did.
    """
    from langgraph.types import Command

    from tpo_graph.cli.ask import ask
    from tpo_graph.selection import is_tie

    conversation = [*([("system", request.system)] if request.system else []), ("user", request.question)]
    graph_input: Any = {"messages": conversation}
    config: Any = {"configurable": {"thread_id": "run"}, "callbacks": [_Arrivals(reporter)]}
    phase: Phase | None = None
    started = 0.0
    while True:
        question = None
        stream: AsyncIterator[Any] = graph.astream(graph_input, config, stream_mode=["tasks", "values"])
        async for kind, news in stream:
            if kind == "tasks" and "input" in news:
                outcome.phase = phase = news["name"]
                started, done = time.perf_counter(), int(outcome.state.get("step", 0))
                step = {"sample": 0, "score": done, "select": done}.get(news["name"], done + 1)
                asks_person = request.person_rates and phase == "score"
                tie = phase == "loss" and is_tie(news["input"])
                reporter.phase_started(news["name"], step, request.settings, asks_person=asks_person, tie=tie)
            elif kind == "values" and "__interrupt__" in news:
                question, phase = news["__interrupt__"][0].value, None
            elif kind == "values":
                before, outcome.state = outcome.state, news
                if phase is not None:
                    reporter.phase_ended(phase, before, news, time.perf_counter() - started)
                    shown = {warning["kind"] for warning in before.get("warnings") or []}
                    for warning in news.get("warnings") or []:
                        if warning["kind"] not in shown:
                            reporter.warn(warning["message"])
                phase = None
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
