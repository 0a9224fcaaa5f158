"""One run from names to an outcome: loads the models, runs the graph, tells a reporter, survives Ctrl-C.

The work is done in a thread of its own; the main thread shows what happens and is the one that Ctrl-C reaches. So
the terminal answers at once, whatever torch or a server is busy with, and what was scored until then is kept.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from tpo_graph.cli import display as story
from tpo_graph.cli.display import (
    Emit,
    Event,
    ModelLoaded,
    ModelLoading,
    Part,
    PhaseBegan,
    Reporter,
    RunBegan,
    RunEnded,
    Waiting,
    Warned,
)
from tpo_graph.errors import PolicyError, RewardError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PERSON, Candidate, Phase, ScoredCandidate, Usage

if TYPE_CHECKING:
    from tpo_graph.prompts.pack import PromptPack


# Policy, critic and reward model, loaded at the same time.

THREAD_NAME = "tpo-graph-command"
"""Of every thread that the command starts."""

_REWARDS: Collection[Part] = ("reward model", "second reward model")

Load: TypeAlias = Callable[[Part, str], Any]  # Any: a chat model or a reward model


def load_by_name(part: Part, name: str) -> Any:  # Any: as `Load`
    """`load_reward` for the reward models, `load_policy` for the others."""
    if part in _REWARDS:
        from tpo_graph.rewards.load import load_reward

        return load_reward(name)
    from tpo_graph.policies.load import load_policy

    return load_policy(name)


def load_all(models: Mapping[Part, str], load: Load, emit: Emit) -> dict[Part, Any]:  # Any: as `Load`
    """Load all parts, each in a thread of its own; a critic that is the policy's namesake is the policy.

    Raises:
        Exception: the first error of any part, at once. The other threads are left to themselves.
    """
    began = time.perf_counter()
    models = dict(models)
    if models.get("critic") == models["policy"]:
        del models["critic"]
    for part, name in models.items():
        emit(ModelLoading(part, name))
    # what all parts import, once: Python does not lock a cycle of modules as a whole, so two threads that enter
    # one at different places may see half of it
    import langchain_core.messages  # noqa: F401

    _start_embedded_servers([name for part, name in models.items() if part not in _REWARDS])
    done: SimpleQueue[tuple[Part, Any]] = SimpleQueue()

    def work(part: Part, name: str) -> None:
        try:
            done.put((part, load(part, name)))
        except BaseException as error:  # it is raised again in the thread that waits
            done.put((part, error))

    for part, name in models.items():
        threading.Thread(target=work, args=(part, name), name=THREAD_NAME, daemon=True).start()
    loaded: dict[Part, Any] = {}
    while len(loaded) < len(models):
        part, model = done.get()
        if isinstance(model, BaseException):
            raise model
        loaded[part] = model
        emit(ModelLoaded(part, models[part], time.perf_counter() - began))
    return loaded


def _start_embedded_servers(names: Sequence[str]) -> None:
    """Start llama.cpp before a reward model imports torch; `load_policy` then finds the server running.

    They share an OpenMP library. The one that loads it decides how long its threads spin while they wait, and
    llama.cpp is the one that needs short waits.
    """
    for scheme, _, file in (name.strip().partition(":") for name in names):
        if scheme == "local":
            from tpo_graph.policies.embedded import start_embedded_server

            start_embedded_server(file or None)


def work_is_left() -> bool:
    """Whether a thread of the command still works, after an interrupt or an error."""
    threads = [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]
    for thread in threads:
        thread.join(0.1)  # one that has said its last word needs no more
    return any(thread.is_alive() for thread in threads)


# What a run is asked for, and how it ended.


@dataclass(frozen=True)
class RunRequest:
    """What is to be answered, and by what.

    Attributes:
        question: the user message.
        settings: the settings of the run.
        models: names of policy, reward model and maybe critic.
        system: the system message, "" for none.
        prompts: a pack; None takes the one that suits the policy.
        ask: let a person choose after each scoring, and edit the critique.
        load: makes a model of its name.
    """

    question: str
    settings: TPOSettings
    models: Mapping[Part, str]
    system: str = ""
    prompts: "PromptPack | None" = None
    ask: bool = False
    load: Load = load_by_name

    @property
    def person_rates(self) -> bool:
        """Whether a person is the reward model."""
        return self.models["reward model"].strip() == PERSON

    @property
    def conversation(self) -> list[tuple[str, str]]:
        """The messages of the run's input."""
        return [*([("system", self.system)] if self.system else []), ("user", self.question)]


@dataclass
class Outcome:
    """How a run ended, and all that it made.

    Attributes:
        state: the last state of the graph; empty when it did not begin.
        error: what ended it, or None.
        interrupted: a person ended it.
        seconds: wall time.
        prompts: name of the prompt pack that was used; "" when it was not known yet.
        phase: the one that began last; None before the first.
    """

    state: Mapping[str, Any] = field(default_factory=dict)  # Any: a TPOState
    error: BaseException | None = None
    interrupted: bool = False
    seconds: float = 0.0
    prompts: str = ""
    phase: Phase | None = None

    @property
    def best(self) -> ScoredCandidate | None:
        """The best candidate so far: the one that a person picked, else the one of the highest reward."""
        from tpo_graph.selection import preference_pair

        if self.state.get("choices") and self.state.get("best"):
            best: ScoredCandidate = self.state["best"]
            return best
        cache = self.state.get("cache") or []
        return preference_pair(cache)["best"] if cache else None

    @property
    def unscored(self) -> list[Candidate]:
        """Candidates that were drawn and have no reward."""
        if isinstance(self.error, RewardError) and self.error.unscored:
            return self.error.unscored
        return list(self.state.get("pending") or [])

    @property
    def usage(self) -> Usage:
        """What was used, by the phase that failed too."""
        from tpo_graph.accounting import add_usage

        lost = self.error.usage if isinstance(self.error, (PolicyError, RewardError)) else None
        return add_usage(self.state.get("usage"), {self.phase: lost} if self.phase and lost else {})

    def ended(self) -> RunEnded:
        """The last event of the run."""
        from tpo_graph.accounting import total

        used = total(self.usage)
        return RunEnded(
            ending="interrupted" if self.interrupted else "failed" if self.error else "finished",
            stop_reason=self.state.get("stop_reason"),
            best=self.best,
            requests=used["requests"],
            input_tokens=used["input_tokens"],
            output_tokens=used["output_tokens"],
            seconds=self.seconds,
            unscored=len(self.unscored),
        )


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

            from tpo_graph.human.nodes import PersonReward, human_nodes, human_score_node

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
