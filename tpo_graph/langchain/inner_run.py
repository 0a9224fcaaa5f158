"""One answer: the policy's first reply where there are tools, the run of the inner graph, and its progress."""

from collections.abc import AsyncIterator, Callable, Sequence

from langchain_core.callbacks import adispatch_custom_event
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.config import get_stream_writer

from tpo_graph.errors import ConfigurationError, PolicyError, RewardError, TPOError
from tpo_graph.graph.build import TPOGraph
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.langchain.answer_message import answer_message, relayed
from tpo_graph.langchain.call_options import STANDARD_KNOBS, CallOptions
from tpo_graph.langchain.inner_graph import compile_inner_graph, policy_of_call
from tpo_graph.langchain.parts import Parts, policy_name
from tpo_graph.langchain.run_tracing import InnerCallbacks
from tpo_graph.policies.provider_errors import hint_for, one_line
from tpo_graph.policies.transport import loop_safe
from tpo_graph.sampling import Policy
from tpo_graph.settings import TPOSettings
from tpo_graph.types import StepRecord, StopReason

__all__ = ["STEP_EVENT", "InnerRuns"]

STEP_EVENT = "tpo_step"
"""Name of the custom event after each step; its data is the step's record."""

_MOST_GRAPHS = 16
_NOSTREAM = "nostream"  # LangGraph's tag: keeps a model's tokens out of the message stream


class InnerRuns:
    """Answers conversations with one set of parts. Graphs are kept, and with them what the policy was found to take."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._graphs: dict[str, TPOGraph] = {}

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
        if options.tools and draft is None:
            draft = await self._first_reply(told, options, settings)
            if draft.tool_calls or draft.invalid_tool_calls:
                return relayed(draft, model_name=self._name(options))
        state: TPOState = {}
        try:
            async for reached in self._states(told, draft, options, settings, callbacks):
                state = reached
        except (PolicyError, RewardError) as error:
            text, stop_reason = _left_over(error, draft, options, settings)
            if not text:
                raise
            state = {**state, "answer": text}
        else:
            stop_reason = state["stop_reason"] or "depth"
        return answer_message(state, stop_reason=stop_reason, model_name=self._name(options), draft=draft)

    async def _first_reply(self, messages: list[BaseMessage], options: CallOptions, settings: TPOSettings) -> AIMessage:
        """What the policy does by itself when it has the tools: call them, or write a text."""
        policy = _with_model(policy_of_call(self.parts, options), _undisturbed)
        sampling = settings.sampling("sample")
        knobs = {name: getattr(sampling, knob) for name, knob in STANDARD_KNOBS.items() if knob in sampling.explicit}
        stop = [*options.stop, *(text for text in sampling.stop if text not in options.stop)]
        config: RunnableConfig = {"tags": [_NOSTREAM]}
        try:
            reply = await policy.ainvoke(messages, config, **knobs, **({"stop": stop} if stop else {}))
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
        config: RunnableConfig = {"run_name": "tpo", "recursion_limit": 4 + 5 * settings.depth}
        told = 0
        # a context of its own, an empty one too: else the nodes would read that of the graph around this model
        async for state in graph.astream(begin, config, context=options.settings, stream_mode="values"):
            yield state  # type: ignore[misc]  # LangGraph types the values of any stream mode alike
            for record in state.get("trajectory", [])[told:]:
                await _tell(record, callbacks)
                told += 1

    def _graph(self, options: CallOptions) -> TPOGraph:
        key = options.key()
        graph = self._graphs.pop(key, None) or compile_inner_graph(self.parts, options)
        self._graphs[key] = graph  # the latest last
        while len(self._graphs) > _MOST_GRAPHS:
            self._graphs.pop(next(iter(self._graphs)), None)
        return graph

    def _name(self, options: CallOptions) -> str:
        return f"tpo/{options.policy.get('model') or policy_name(self.parts.policy)}"


def _left_over(
    error: TPOError, draft: AIMessage | None, options: CallOptions, settings: TPOSettings
) -> tuple[str, StopReason]:
    """What there is to return when a run failed, and why it ended; "" when the failure is all there is."""
    reason: StopReason = "reward_failed" if isinstance(error, RewardError) else "policy_failed"
    if draft is not None and draft.text.strip() and settings.on_failure == "stop":
        return draft.text, reason
    if options.schema is not None and isinstance(error, RewardError):
        # that nothing is valid is for the parser to say, who shows the text
        texts = [each["text"] for each in error.unscored]
        if texts and not any(options.schema.accepts(text) for text in texts):
            return texts[0], reason
    return "", reason


async def _tell(record: StepRecord, callbacks: InnerCallbacks) -> None:
    if callbacks is not None and callbacks.parent_run_id is not None:
        await adispatch_custom_event(STEP_EVENT, dict(record), config={"callbacks": callbacks})
    try:
        writer = get_stream_writer()
    except (RuntimeError, KeyError):
        return  # not in a graph
    writer({STEP_EVENT: dict(record)})


def _undisturbed(model: BaseChatModel) -> BaseChatModel:
    """The model for one plain request: whole, because parts of a stream lose the usage, and safe in any event loop."""
    return loop_safe(model).model_copy(update={"disable_streaming": True})


def _with_model(policy: Policy, change: Callable[[BaseChatModel], BaseChatModel]) -> Policy:
    """The policy with the chat model inside it changed."""
    if isinstance(policy, RunnableBindingBase):
        return policy.model_copy(update={"bound": _with_model(policy.bound, change)})
    return change(policy) if isinstance(policy, BaseChatModel) else policy
