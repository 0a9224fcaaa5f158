"""One run from names to an outcome: loads the models, runs the graph, tells a reporter, survives Ctrl-C.

The work is done in a thread of its own; the main thread shows what happens and is the one that Ctrl-C reaches. So
the terminal answers at once, whatever torch or a server is busy with, and what was scored until then is kept.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from tpo_graph.cli import story
from tpo_graph.cli.events import Event, PhaseBegan, Reporter, RunBegan, Waiting, Warned
from tpo_graph.cli.loading import THREAD_NAME, load_all
from tpo_graph.cli.outcome import Outcome, RunRequest
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Phase

__all__ = ["answer"]

_DEMONSTRATION = (
    "the reward model `local` is a small demonstration: good for a first look, no judge of quality "
    "(--reward names another)"
)
_MOMENT = 0.5  # seconds; where a wait can't be interrupted, Ctrl-C is seen this late


@dataclass(frozen=True)
class _Prompts:
    name: str


@dataclass(frozen=True)
class _State:
    values: Mapping[str, Any]  # Any: a TPOState


@dataclass(frozen=True)
class _Done:
    error: BaseException | None = None


@dataclass(frozen=True)
class _Asked:
    question: Mapping[str, Any]  # Any: JSON, as is the reply
    reply: "SimpleQueue[Any]"


_Told: TypeAlias = Event | _Prompts | _State | _Asked | _Done


def answer(request: RunRequest, reporter: Reporter) -> Outcome:
    """Run TPO on a question. Errors and Ctrl-C are part of the outcome, with what was made before them."""
    began = time.perf_counter()
    outcome = Outcome()
    told: SimpleQueue[_Told] = SimpleQueue()
    try:
        with reporter:
            try:
                reporter.show(RunBegan(dict(request.models), _plan(request.settings)))
                if request.models["reward model"] == "local":
                    reporter.show(Warned(_DEMONSTRATION))
                threading.Thread(target=_work, args=(request, told.put), name=THREAD_NAME, daemon=True).start()
                _follow(told, outcome, reporter)
            except KeyboardInterrupt:
                outcome.interrupted = True
            outcome.seconds = time.perf_counter() - began
            reporter.show(outcome.ended())
    except KeyboardInterrupt:  # a second one, while the end was shown
        outcome.interrupted = True
    return outcome


def _follow(told: "SimpleQueue[_Told]", outcome: Outcome, reporter: Reporter) -> None:
    """Show what the working thread tells, and keep its results, until it is done."""
    while True:
        try:
            news = told.get(timeout=_MOMENT)
        except Empty:
            reporter.show(Waiting())
            continue
        match news:
            case _Done(error):
                outcome.error = error
                return
            case _State(values):
                outcome.state = values
            case _Prompts(name):
                outcome.prompts = name
            case _Asked(question, reply):
                _let_a_person_answer(question, reply, reporter)
            case _:
                if isinstance(news, PhaseBegan):
                    outcome.phase = news.phase
                reporter.show(news)


def _let_a_person_answer(question: Mapping[str, Any], reply: "SimpleQueue[Any]", reporter: Reporter) -> None:
    """Ask in the terminal, which the reporter leaves alone meanwhile."""
    from tpo_graph.cli.ask import ask

    reporter.__exit__(None, None, None)
    answer = None  # after Ctrl-C: the thread that waits must not wait for ever
    try:
        answer = ask(question)
    finally:
        reply.put(answer)
        reporter.__enter__()


def _work(request: RunRequest, tell: Callable[[_Told], None]) -> None:
    try:
        named = dict(request.models)
        if request.person_rates:
            del named["reward model"]
        models = load_all(named, request.load, tell)
        from tpo_graph.graph.build import create_tpo_graph

        policy = models["policy"]
        suited = (getattr(policy, "metadata", None) or {}).get("tpo_prompts", "tpo")
        tell(_Prompts(request.prompts.name if request.prompts else suited))
        parts: dict[str, Any] = {"prompts": request.prompts, "settings": request.settings}  # Any: keyword arguments
        critic = models.get("critic")
        asking: dict[str, Any] = {}  # Any: keyword arguments
        if request.ask or request.person_rates:
            from langgraph.checkpoint.memory import InMemorySaver

            from tpo_graph.graph.human import PersonReward, human_nodes, human_score_node

            nodes = dict(human_nodes(critic or policy, edit_critique=True, **parts)) if request.ask else {}
            if request.person_rates:
                nodes["score"], models["reward model"] = human_score_node(), PersonReward()
            asking = {"nodes": nodes, "checkpointer": InMemorySaver()}
        graph = create_tpo_graph(
            policy,
            models["reward model"],
            critic=critic,
            second_reward=models.get("second reward model"),
            **parts,
            **asking,
        )
        asyncio.run(_run(graph, request, tell))
    except BaseException as error:  # the main thread waits for word of whatever happened
        tell(_Done(error))
    else:
        tell(_Done())


async def _run(graph: Any, request: RunRequest, tell: Callable[[_Told], None]) -> None:  # Any: a compiled graph
    """Stream the graph, again with every answer of a person."""
    from langgraph.types import Command

    given: Any = {"messages": request.conversation}  # Any: what a run begins or goes on with
    state: Mapping[str, Any] = {}  # Any: as in Outcome
    while True:
        state, question = await _stream(graph, given, state, request, tell)
        if question is None:
            return
        reply: SimpleQueue[Any] = SimpleQueue()
        tell(_Asked(question, reply))
        answer = await asyncio.to_thread(reply.get)
        if answer is None:  # they have left
            return
        given = Command(resume=answer)


async def _stream(
    graph: Any,  # Any: as above
    given: Any,  # Any: as above
    state: Mapping[str, Any],  # Any: as above
    request: RunRequest,
    tell: Callable[[_Told], None],
) -> tuple[Mapping[str, Any], Any]:  # Any: a state, and JSON
    """Stream until the end, or until a person is asked; the last state, and what they are asked, or None.

    A task that starts is a phase that begins; the next state is what came of it.
    """
    phase: Phase | None = None
    step = 0
    watch = time.perf_counter()
    config = {"configurable": {"thread_id": "run"}}
    question = None
    async for kind, news in graph.astream(given, config, stream_mode=["tasks", "values"]):
        if kind == "tasks" and "input" in news:
            phase, watch = news["name"], time.perf_counter()
            step = story.step_of(news["name"], state)
            asks = request.person_rates and news["name"] == "score"
            tell(PhaseBegan(step, news["name"], "asking you" if asks else story.doing(news["name"], request.settings)))
        elif kind == "values" and "__interrupt__" in news:
            question, phase = news["__interrupt__"][0].value, None
        elif kind == "values":
            if phase is not None:
                tell(_State(news))
                tell(story.phase_ended(phase, step, state, news, time.perf_counter() - watch))
                told_before = {warning["kind"] for warning in state.get("warnings") or []}
                for warning in news.get("warnings") or []:
                    if warning["kind"] not in told_before:
                        tell(Warned(warning["message"]))
            state, phase = news, None
    return state, question


def _plan(settings: TPOSettings) -> tuple[str, ...]:
    """The settings that a person wants to see confirmed."""
    plan = [f"mode {settings.mode}", f"N {settings.n}"]
    if settings.mode != "bon":
        plan.append(f"D {settings.depth}")
    if settings.seed is not None:
        plan.append(f"seed {settings.seed}")
    return tuple(plan)
