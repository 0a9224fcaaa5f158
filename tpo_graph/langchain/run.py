"""One answer: the policy's first reply where there are tools, the run of the inner graph, and its progress."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackManager, CallbackManager, adispatch_custom_event
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, set_config_context
from langchain_core.utils.uuid import uuid7
from langgraph.config import get_stream_writer
from langgraph.errors import GraphInterrupt
from langgraph.runtime import Runtime
from langgraph.types import Command, Overwrite

from tpo_graph.accounting import Stopwatch, add_usage, total
from tpo_graph.errors import BudgetError, ConfigurationError, PolicyError, RewardError, TPOError
from tpo_graph.graph.bridge import NodeBody, as_runnable
from tpo_graph.graph.build import TPOGraph, wire
from tpo_graph.graph.nodes import sample_node
from tpo_graph.graph.request import failure
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.langchain.answer import answer_message, relayed
from tpo_graph.langchain.options import STANDARD_KNOBS, CallOptions
from tpo_graph.policies.http import loop_safe
from tpo_graph.policies.providers import Policy, change_models, knob_fields, models_inside, policy_failed
from tpo_graph.policies.sampling import Sampler
from tpo_graph.run_parts import LoadedParts, policy_name
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import Candidate, FailureRecord, Phase, PhaseUsage, StepRecord, StopReason, Usage

# Puts what a chat model does inside under its own run in a trace, however the model is called.
#
# LangChain gives a chat model its run manager for `invoke`, but not for `stream`, nor for an `invoke` that it turns
# into a stream. Callbacks for the inner run are noted here on the way in, and read where LangChain does not pass them.

InnerCallbacks: TypeAlias = BaseCallbackManager | None
"""What the inner run gets as its callbacks: a manager whose parent is the chat model's run."""

Manager = TypeVar("Manager", CallbackManager, AsyncCallbackManager)

T = TypeVar("T")

_noted: ContextVar[InnerCallbacks] = ContextVar("tpo_graph_inner_callbacks", default=None)


@contextmanager
def noted(callbacks: InnerCallbacks) -> Iterator[None]:
    """Note the inner callbacks for calls within the block."""
    token = _noted.set(callbacks)
    try:
        yield
    finally:
        _noted.reset(token)


def inner_callbacks(run_manager: BaseRunManager | None) -> InnerCallbacks:
    """Callbacks for the inner run: children of `run_manager`, or those that were noted where LangChain passes none."""
    if run_manager is None:
        return _noted.get()
    # chains and tools have `get_child` for this; the run of a chat model has not
    child = CallbackManager(handlers=[], parent_run_id=run_manager.run_id)
    child.set_handlers(run_manager.inheritable_handlers)
    child.add_tags(run_manager.inheritable_tags)
    child.add_metadata(run_manager.inheritable_metadata)
    return child


def with_own_run(config: RunnableConfig | None, kind: type[Manager]) -> tuple[RunnableConfig, Manager]:
    """A config that fixes the id of the run to come, and callbacks that are that run's children."""
    config = ensure_config(config)
    manager = kind.configure(
        config.get("callbacks"),
        inheritable_tags=config.get("tags"),
        inheritable_metadata=config.get("metadata"),
    )
    run_id = config.get("run_id") or uuid7()
    child = manager.copy()
    child.parent_run_id = run_id
    return {**config, "callbacks": manager, "run_id": run_id}, child


async def run_under(
    callbacks: InnerCallbacks, coroutine: Coroutine[Any, Any, T]
) -> T:  # Any: what it yields and is sent
    """Run a coroutine with these callbacks as those of its surroundings.

    LangGraph merges the callbacks that a graph is given with those around the call, whose parent then wins.
    """
    around = ensure_config()
    if callbacks is not None:
        around["callbacks"] = callbacks
    with set_config_context(around) as context:
        return await asyncio.create_task(coroutine, context=context)


# The graph behind a chat model, made for what one call asks of the policy.


class NoAnswerError(PolicyError):
    """None of the first candidates is an answer as the call wants it.

    Attributes:
        invalid: those that are not valid for the schema.
    """

    def __init__(self, message: str, *, invalid: Sequence[str], usage: PhaseUsage) -> None:
        super().__init__(message, usage=usage)
        self.invalid = list(invalid)


class Samplers:
    """The samplers of a chat model's graphs, which share what policy and critic were found to take."""

    def __init__(self) -> None:
        self._known: dict[str, Sampler] = {}

    def policy(self, policy: Policy, options: CallOptions) -> Sampler:
        """One of the policy, as a call asks it: another `model` in the call may take something else."""
        return self._one(f"policy {options.policy.get('model')}", policy)

    def critic(self, critic: Policy) -> Sampler:
        """One of the critic."""
        return self._one("critic", critic)

    def _one(self, known_as: str, policy: Policy) -> Sampler:
        sampler = Sampler(policy, like=self._known.get(known_as))
        self._known.setdefault(known_as, sampler)
        return sampler


def compile_inner_graph(parts: LoadedParts, options: CallOptions, samplers: Samplers) -> TPOGraph:
    """The TPO graph of these parts, as a call wants it.

    The differences to `create_tpo_graph`: the first candidates are drawn with the tools and the response format of
    the call, candidates end at its stop texts, answers that are not valid are no candidates, and `select` keeps the
    answer's message to itself, because the chat model returns it. Stop texts and validity hold for candidates of
    replaced nodes too.
    """
    policy = parts.policy.bind(**options.policy) if options.policy else parts.policy
    first = policy_of_call(parts, options)
    if options.stop:
        # where settings or prompt pack have stop texts of their own, those are sent and these are cut at alone
        first = first.bind(stop=list(options.stop))
    critic = None if parts.critic is None or parts.critic is parts.policy else samplers.critic(parts.critic)
    nodes = parts.make_nodes(policy=samplers.policy(policy, options), critic=critic)
    replaced = parts.nodes if isinstance(parts.nodes, Mapping) else {}
    if "sample" not in replaced:
        sampler = samplers.policy(first, options)
        nodes["sample"] = sample_node(sampler, prompts=parts.prompts, settings=parts.settings)
    if "select" not in replaced:
        nodes["select"] = _without_message(nodes["select"])
    if options.stop or options.schema is not None:
        drawing: tuple[PolicyPhase, ...] = ("sample", "update")
        nodes |= {phase: _answers_alone(phase, as_runnable(nodes[phase], phase), options) for phase in drawing}
    graph = wire(nodes, context_schema=TPOSettings)
    # with a checkpointer of the graph around it, it would write into that one's thread
    return graph.compile(name="tpo", checkpointer=False)


def policy_of_call(parts: LoadedParts, options: CallOptions) -> Policy:
    """The policy with everything that the call gives it: arguments, tools and response format.

    Raises:
        ConfigurationError: the policy can't take tools.
    """
    arguments = {**options.policy, **(options.schema.wire(parts.policy) if options.schema else {})}
    if not options.tools:
        return parts.policy.bind(**arguments) if arguments else parts.policy
    return _with_tools(parts.policy, {**options.tools, **arguments})


def _with_tools(policy: Policy, arguments: dict[str, Any]) -> Policy:
    """The policy with tools bound to the models inside it, so that bindings and retries around them stay."""

    def bind(model: BaseChatModel) -> Policy:
        try:
            return model.bind_tools(**arguments)
        except NotImplementedError as error:
            raise ConfigurationError(
                f"The policy {type(model).__name__!r} can't be given tools.", hint="Its class has no bind_tools."
            ) from error

    if not models_inside(policy):
        raise ConfigurationError(
            f"The policy {type(policy).__name__!r} can't be given tools.",
            hint="There is no chat model to be seen in it.",
        )
    return change_models(policy, bind)


def _without_message(select: NodeBody) -> NodeBody:
    """`select` without its message, which would appear a second time in streams of messages."""

    async def body(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        update = dict(await select(state, runtime) or {})
        update.pop("messages", None)
        return update

    return body


def _answers_alone(phase: PolicyPhase, node: Runnable[Any, Any], options: CallOptions) -> NodeBody:  # Any: states
    """`sample` or `update` with its candidates cut at the stop texts, and without those that are not valid.

    Sent to the provider with `update`, a stop text would cut a revision before its closing tag, and so lose it.
    """

    async def body(state: TPOState, config: RunnableConfig) -> Any:  # Any: a partial state or a command
        result = await node.ainvoke(state, config)
        update = result.update if isinstance(result, Command) else result
        if not isinstance(update, dict) or not update.get("pending"):
            return result
        pending: list[Candidate] = update["pending"]
        kept, lost = _sorted(phase, pending, options)
        if not kept and phase == "sample":
            raise _no_answer(lost, options, _value(update.get("usage", {})))
        failures = update.get("failures", [])
        more = [*_value(failures), *lost]
        changed = {
            **update,
            "pending": kept,
            # `sample` begins the run's list anew
            "failures": Overwrite(more) if isinstance(failures, Overwrite) else more,
        }
        return replace(result, update=changed) if isinstance(result, Command) else changed

    return body


def _sorted(
    phase: PolicyPhase, pending: Sequence[Candidate], options: CallOptions
) -> tuple[list[Candidate], list[FailureRecord]]:
    """Candidates that are answers, and records of those that are none."""
    kept: list[Candidate] = []
    lost: list[FailureRecord] = []
    for each in pending:
        text = _before(each["text"], options.stop)
        if not text:
            lost.append(failure(phase, each["step"], "empty", text=each["text"]))
        elif options.schema is not None and not options.schema.accepts(text):
            lost.append(failure(phase, each["step"], "invalid", text=text))
        else:
            kept.append(Candidate(**{**each, "text": text}))
    return kept, lost


def _no_answer(lost: Sequence[FailureRecord], options: CallOptions, usage: Usage) -> NoAnswerError:
    invalid = [each["text"] for each in lost if each["reason"] == "invalid"]
    said = (
        f"None of the first {len(lost)} candidates is valid for the schema."
        if invalid
        else f"Every completion of the policy begins with one of the stop texts {list(options.stop)}."
    )
    return NoAnswerError(said, invalid=invalid, usage=total(usage))


def _value(written: Any) -> Any:  # Any: of any channel
    """What a node writes, where it writes it over what was there before too."""
    return written.value if isinstance(written, Overwrite) else written


def _before(text: str, stop: tuple[str, ...]) -> str:
    if not stop:
        return text
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=len(text))].rstrip()


STEP_EVENT = "tpo_step"
"""Name of the custom event after each step; its data is the step's record."""

_MOST_GRAPHS = 16
_MOST_SUPERSTEPS = 10_007  # LangGraph's own default, enough for the most steps; graphs among the nodes inherit it
_LEAST_SECONDS = 1e-9  # of a budget, which has to be above 0
_NOSTREAM = "nostream"  # LangGraph's tag: keeps a model's tokens out of the message stream


class InnerRuns:
    """Answers conversations with one set of parts. Graphs are kept, and with them what the policy was found to take."""

    def __init__(self, parts: LoadedParts) -> None:
        self.parts = parts
        self._graphs: dict[str, TPOGraph] = {}
        self._samplers = Samplers()

    async def answer(
        self, messages: Sequence[BaseMessage], options: CallOptions, callbacks: InnerCallbacks
    ) -> AIMessage:
        """The policy's tool calls, or the best answer of a run.

        Args:
            messages: the conversation.
            options: what the call asks for.
            callbacks: those of the chat model's run, for the events; the surroundings have them too.

        Raises:
            TPOError: see `build_tpo_graph`; there is no answer at all.
        """
        settings = self.parts.settings.overridden_by(options.settings)
        told = options.schema.instruct(messages) if options.schema else list(messages)
        draft = options.draft
        with Stopwatch() as watch:
            if options.tools and draft is None:
                draft = await self._first_reply(told, options, settings)
                if draft.tool_calls or draft.invalid_tool_calls:
                    return relayed(draft, model_name=self._name(options))
        chosen = settings if draft is None else settings.overridden_by(_left_of(settings, draft, watch.seconds))
        state: TPOState = {}
        try:
            async for reached in self._states(told, draft, options, chosen, callbacks):
                state = reached
        except (PolicyError, RewardError) as error:
            text, stop_reason = _left_over(error, draft, settings)
            if not text:
                raise
            state = {**state, "answer": text}
            if error.usage is not None:
                # a run that goes on to an answer ends by an error in these phases alone
                failed: Phase = "score" if isinstance(error, RewardError) else "sample"
                state["usage"] = add_usage(state.get("usage"), {failed: error.usage})
        except BudgetError as error:
            if draft is None:
                raise
            raise _too_small(settings) from error
        except GraphInterrupt as error:
            raise _asks_a_person() from error
        else:
            reason = state.get("stop_reason")
            if "__interrupt__" in state or reason is None:
                raise _asks_a_person()
            stop_reason = reason
        return answer_message(state, stop_reason=stop_reason, model_name=self._name(options), draft=draft)

    async def _first_reply(self, messages: list[BaseMessage], options: CallOptions, settings: TPOSettings) -> AIMessage:
        """What the policy does by itself when it has the tools: call them, or write a text."""
        sampling = settings.sampling("sample")
        said: dict[str, float] = {knob: getattr(sampling, knob) for knob in STANDARD_KNOBS.values()}
        said = {knob: value for knob, value in said.items() if value is not None and knob in sampling.explicit}
        if settings.seed is not None:
            said["seed"] = settings.seed

        def asked(model: BaseChatModel) -> BaseChatModel:
            # whole, because parts of a stream lose the usage
            fields = {"disable_streaming": True, **knob_fields(model, said, sampling.explicit)}
            return loop_safe(model).model_copy(update=fields)

        policy = change_models(policy_of_call(self.parts, options), asked)
        stop = [*options.stop, *(text for text in sampling.stop if text not in options.stop)]
        config: RunnableConfig = {"tags": [_NOSTREAM]}
        try:
            reply = await policy.ainvoke(messages, config, **({"stop": stop} if stop else {}))
        except TPOError:
            raise
        except Exception as error:  # any provider's
            raise policy_failed(error) from error
        if not isinstance(reply, AIMessage):
            raise ConfigurationError(f"The policy returned {type(reply).__name__!r}, not a message.")
        return reply

    async def _states(
        self,
        messages: list[BaseMessage],
        draft: AIMessage | None,
        options: CallOptions,
        settings: TPOSettings,
        callbacks: InnerCallbacks,
    ) -> AsyncIterator[TPOState]:
        """The states of a run. Its steps are told as custom events."""
        graph = self._graph(options)
        begin: TPOInput = {"messages": messages}  # type: ignore[typeddict-item]  # AnyMessage is the union of all kinds
        if draft is not None and draft.text.strip():
            begin["drafts"] = [draft.text]
        # langchain-core gives what runs inside a chain a limit of 25
        config: RunnableConfig = {"run_name": "tpo", "recursion_limit": _MOST_SUPERSTEPS}
        told = 0
        # all that was named, for nodes that were made elsewhere; none at all would be the graph's around this model
        async for state in graph.astream(begin, config, context=settings, stream_mode="values"):
            yield state  # type: ignore[misc]  # LangGraph types the values of any stream mode alike
            for record in state.get("trajectory", [])[told:]:
                await _tell(record, callbacks)
                told += 1

    def _graph(self, options: CallOptions) -> TPOGraph:
        key = options.key()
        graph = self._graphs.pop(key, None) or compile_inner_graph(self.parts, options, self._samplers)
        self._graphs[key] = graph  # the latest last
        while len(self._graphs) > _MOST_GRAPHS:
            self._graphs.pop(next(iter(self._graphs)), None)
        return graph

    def _name(self, options: CallOptions) -> str:
        return f"tpo/{options.policy.get('model') or policy_name(self.parts.policy)}"


def _left_of(settings: TPOSettings, draft: AIMessage, seconds: float) -> dict[str, Any]:  # Any: values of settings
    """What is left to a run once the draft is there: its budget, and seeds that the draft did not have.

    Raises:
        BudgetError: the draft has used it up, and there are more candidates to draw.
    """
    left: dict[str, Any] = {}  # Any: as above
    if settings.seed is not None:
        left["seed"] = settings.seed + 1
    if settings.budget_requests is not None:
        if settings.budget_requests == 1 and settings.n > 1:
            raise _too_small(settings)
        # no step takes a single request, so that one is as good as none
        left["budget_requests"] = max(1, settings.budget_requests - 1)
    if settings.budget_tokens is not None:
        used = draft.usage_metadata["total_tokens"] if draft.usage_metadata else 0
        left["budget_tokens"] = max(1, settings.budget_tokens - used)
    if settings.budget_seconds is not None:
        left["budget_seconds"] = max(_LEAST_SECONDS, settings.budget_seconds - seconds)
    return left


def _too_small(settings: TPOSettings) -> BudgetError:
    return BudgetError(
        f"The policy's own answer has taken one request, the rest of the {settings.n} first candidates takes more "
        f"than are left, and budget_requests is {settings.budget_requests}.",
        hint="Raise budget_requests, or draw fewer candidates.",
    )


def _left_over(error: TPOError, draft: AIMessage | None, settings: TPOSettings) -> tuple[str, StopReason]:
    """What there is to return when a run failed, and why it ended; "" when the failure is all there is."""
    reason: StopReason = "reward_failed" if isinstance(error, RewardError) else "policy_failed"
    if draft is not None and draft.text.strip() and settings.on_failure == "stop":
        return draft.text, reason
    if isinstance(error, NoAnswerError) and error.invalid:
        # that nothing is valid is for the parser to say, who shows the text
        return error.invalid[0], reason
    return "", reason


def _asks_a_person() -> ConfigurationError:
    return ConfigurationError(
        "A node interrupts the run to ask a person, and a chat model has no way to wait for the answer.",
        hint="Use the compiled graph of create_tpo_graph as a node of your graph.",
    )


async def _tell(record: StepRecord, callbacks: InnerCallbacks) -> None:
    if callbacks is not None and callbacks.parent_run_id is not None:
        await adispatch_custom_event(STEP_EVENT, dict(record), config={"callbacks": callbacks})
    try:
        writer = get_stream_writer()
    except (RuntimeError, KeyError):
        return  # not in a graph
    writer({STEP_EVENT: dict(record)})
