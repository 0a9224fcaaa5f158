"""One answer: the policy's first reply where there are tools, the run of the inner graph, and its progress."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.callbacks import adispatch_custom_event
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.errors import GraphInterrupt

from tpo_graph.accounting import Stopwatch, add_usage
from tpo_graph.errors import BudgetError, ConfigurationError, PolicyError, RewardError, TPOError
from tpo_graph.graph.build import TPOGraph
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.langchain.answer_message import answer_message, relayed
from tpo_graph.langchain.call_options import STANDARD_KNOBS, CallOptions
from tpo_graph.langchain.inner_graph import NoAnswerError, Samplers, compile_inner_graph, policy_of_call
from tpo_graph.langchain.parts import Parts, policy_name
from tpo_graph.langchain.run_tracing import InnerCallbacks
from tpo_graph.policies.knobs import change_models, knob_fields
from tpo_graph.policies.provider_errors import hint_for, one_line
from tpo_graph.policies.transport import loop_safe
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Phase, StepRecord, StopReason

__all__ = ["STEP_EVENT", "InnerRuns"]

STEP_EVENT = "tpo_step"
"""Name of the custom event after each step; its data is the step's record."""

_MOST_GRAPHS = 16
_MOST_SUPERSTEPS = 10_007  # LangGraph's own default, enough for the most steps; graphs among the nodes inherit it
_LEAST_SECONDS = 1e-9  # of a budget, which has to be above 0
_NOSTREAM = "nostream"  # LangGraph's tag: keeps a model's tokens out of the message stream


class InnerRuns:
    """Answers conversations with one set of parts. Graphs are kept, and with them what the policy was found to take."""

    def __init__(self, parts: Parts) -> None:
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
            raise PolicyError(f"The policy failed: {one_line(error)}.", hint=hint_for(error)) from error
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
    if settings.max_requests is not None:
        if settings.max_requests == 1 and settings.n > 1:
            raise _too_small(settings)
        # no step takes a single request, so that one is as good as none
        left["max_requests"] = max(1, settings.max_requests - 1)
    if settings.max_tokens is not None:
        used = draft.usage_metadata["total_tokens"] if draft.usage_metadata else 0
        left["max_tokens"] = max(1, settings.max_tokens - used)
    if settings.max_seconds is not None:
        left["max_seconds"] = max(_LEAST_SECONDS, settings.max_seconds - seconds)
    return left


def _too_small(settings: TPOSettings) -> BudgetError:
    return BudgetError(
        f"The policy's own answer has taken one request, the rest of the {settings.n} first candidates takes more "
        f"than are left, and max_requests is {settings.max_requests}.",
        hint="Raise max_requests, or draw fewer candidates.",
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
