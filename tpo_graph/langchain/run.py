"""One answer of a `ChatTPO`: the policy's first reply where there are tools, then a run of the inner graph."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import adispatch_custom_event
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.config import get_stream_writer
from langgraph.errors import GraphInterrupt
from langgraph.runtime import Runtime

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph._storable import storable
from tpo_graph.accounting import Stopwatch, add_usage, no_usage, total
from tpo_graph.errors import BudgetError, ConfigurationError, PolicyError, RewardError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.build import TPOGraph, wire
from tpo_graph.graph.nodes.sample import sample_node
from tpo_graph.graph.nodes.select import answer_message
from tpo_graph.graph.state import TPOState
from tpo_graph.langchain.call import CallOptions, NoAnswerError
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.reading import read_completion
from tpo_graph.policies.retries import limited
from tpo_graph.policies.sampling import Sampler
from tpo_graph.policies.thinking import strip_thinking
from tpo_graph.run_parts import LoadedParts, RunParts, policy_name
from tpo_graph.settings import ContextOnly, TPOSettings
from tpo_graph.types import Options, PartialState, Phase, StopReason

STEP_EVENT = "tpo_step"
"""Name of the custom event after each step; its data is the step's record."""

_MOST_GRAPHS = 16
_MOST_SUPERSTEPS = 10_007  # LangGraph's own default, enough for the most steps; graphs among the nodes inherit it
_LEAST_SECONDS = 1e-9  # of a budget, which has to be above 0


class TPORunner:
    """Answers conversations with one set of parts. It keeps its graphs, and what the policy was found to take.

    Args:
        parts: models, prompts, nodes and the settings that calls override; models are loaded by the first answer.
    """

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self._graphs: BoundedCache[str, TPOGraph] = BoundedCache(_MOST_GRAPHS)
        self._samplers: BoundedCache[str, Sampler] = BoundedCache(_MOST_GRAPHS)

    async def answer(self, messages: Sequence[BaseMessage], options: CallOptions) -> AIMessage:
        """The policy's tool calls, or the best answer of a run.

        Args:
            messages: the conversation.
            options: what the call asks for.

        Raises:
            TPOError: there is no answer at all, for one of the reasons that `build_tpo_graph` names.
        """
        parts = await self.parts.aload()
        settings = parts.settings.overridden_by(options.settings)
        conversation = storable(options.schema.instruct(messages) if options.schema else list(messages))
        model_name = f"tpo/{options.policy.get('model') or policy_name(parts.policy)}"
        draft = options.draft
        used = no_usage()
        with Stopwatch() as watch:
            if options.tools and draft is None:
                sampler = self._sampler(_role(options), options.first_policy(parts.policy))
                sampling = settings.sampling("sample")
                sampling = replace(sampling, stop=tuple(dict.fromkeys([*options.stop, *sampling.stop])))
                most = settings.budget_requests
                if most is not None and settings.n > 1:
                    most -= 1  # for the other candidates
                with limited(settings, settings.budget_seconds):
                    draft = await sampler.reply(
                        conversation, sampling, seed=settings.seed, usage=used, most_requests=most
                    )
                if draft.tool_calls or draft.invalid_tool_calls:
                    # under the policy's own name, callbacks that add up tokens by model would count it twice
                    metadata = {**draft.response_metadata, "model_name": model_name}
                    return draft.model_copy(update={"response_metadata": metadata})
        remaining = (
            {} if draft is None else _remaining_settings(settings, draft, max(1, used["requests"]), watch.seconds)
        )
        try:
            state = await _run(self._graph(parts, options), conversation, draft, settings.overridden_by(remaining))
        except BudgetError as error:
            if draft is None or error.usage is not None:  # it is the time that is over
                raise
            raise _budget_too_small(settings) from error
        return _message(state, draft, model_name)

    def _graph(self, parts: LoadedParts, options: CallOptions) -> TPOGraph:
        """The graph for a call.

        It differs from that of `create_tpo_graph`: the first candidates are drawn with the tools and the response
        format of the call, candidates end at its stop texts and are dropped when they are not valid (those of replaced
        nodes too), and `select` does not write the answer's message, because the chat model returns it.
        """
        key = options.graph_key()
        if graph := self._graphs.get(key):
            return graph
        replaced = parts.nodes if isinstance(parts.nodes, Mapping) else {}
        role = _role(options)
        policy = self._sampler(role, parts.policy.bind(**options.policy) if options.policy else parts.policy)
        critic = None
        if parts.critic is not None and parts.critic is not parts.policy:
            critic = self._sampler("critic", parts.critic)
        nodes = parts.make_nodes(policy=policy, critic=critic)
        if "sample" not in replaced:
            first = options.first_policy(parts.policy)
            # only sent where settings and prompt pack have no stop texts of their own; candidates are cut anyway
            first = first.bind(stop=list(options.stop)) if options.stop else first
            nodes["sample"] = sample_node(self._sampler(role, first), prompts=parts.prompts, settings=parts.settings)
        if "select" not in replaced:
            select = nodes["select"]

            async def select_silently(state: TPOState, runtime: Runtime[TPOSettings]) -> PartialState:
                # its message would appear a second time in streams of messages
                return {key: value for key, value in (await select(state, runtime)).items() if key != "messages"}

            nodes["select"] = AsyncNode(select_silently, "select")
        if options.stop or options.schema is not None:
            nodes["sample"] = options.check_candidates("sample", nodes["sample"])
            nodes["update"] = options.check_candidates("update", nodes["update"])
        # with a checkpointer of the graph around it, it would write into that graph's thread
        graph = wire(nodes, context_schema=TPOSettings).compile(name="tpo", checkpointer=False)
        self._graphs.put(key, graph)
        return graph

    def _sampler(self, role: str, policy: Policy) -> Sampler:
        """A sampler that shares what others of its role have found out about the provider."""
        sampler = Sampler(policy, like=self._samplers.get(role))
        self._samplers.setdefault(role, sampler)
        return sampler


async def _run(
    graph: TPOGraph, messages: list[BaseMessage], draft: AIMessage | None, settings: TPOSettings
) -> PartialState:
    """The last state of a run; one that fails ends with the draft where there is one."""
    # `sample` takes reasoning away; a draft without an answer, or one that a filter cut, is none
    is_usable = draft is not None and read_completion(draft, keep_thinking=settings.keep_thinking).problem is None
    drafts: list[str] = [draft.text] if draft is not None and is_usable else []
    start: Any = {"messages": messages, "drafts": drafts}
    # langchain-core gives what runs inside a chain a limit of 25
    config: RunnableConfig = {"run_name": "tpo", "recursion_limit": _MOST_SUPERSTEPS}
    # or the run would get the context and the config of the graph around this model
    context = ContextOnly(**settings.model_dump(exclude_unset=True))
    parts: AsyncIterator[Any] = graph.astream(start, config, context=context, stream_mode=["values", "custom"])
    state: PartialState = {}
    reported = 0
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError):  # not in a graph
        write = None
    try:
        async for mode, part in parts:
            if mode == "custom":
                if write is not None:
                    write(part)
                continue
            state = part
            for record in state.get("trajectory", [])[reported:]:
                if getattr(ensure_config().get("callbacks"), "parent_run_id", None) is not None:
                    await adispatch_custom_event(STEP_EVENT, dict(record))
                reported += 1
    except (PolicyError, RewardError) as error:
        if drafts and settings.on_failure == "stop":
            answer = drafts[0] if settings.keep_thinking else strip_thinking(drafts[0]).text
        elif isinstance(error, NoAnswerError) and error.invalid:
            answer = error.invalid[0]  # the parser shows it, and reports why it is not valid
        else:
            raise
        # in other phases a failure does not end a run without an answer
        phase: Phase = "score" if isinstance(error, RewardError) else "sample"
        usage = add_usage(state.get("usage"), {phase: error.usage} if error.usage is not None else {})
        reason: StopReason = "reward_failed" if phase == "score" else "policy_failed"
        return {**state, "answer": answer, "usage": usage, "stop_reason": reason}
    except GraphInterrupt:
        pass  # `stop_reason` is not there then
    if "__interrupt__" in state or state.get("stop_reason") is None:
        raise ConfigurationError(
            "A node interrupts the run to ask a person, and a chat model has no way to wait for the answer.",
            hint="Use the compiled graph of create_tpo_graph as a node of your graph.",
        )
    return state


def _role(options: CallOptions) -> str:
    # another `model` in the call may take something else
    return f"policy {options.policy.get('model')}"


def _remaining_settings(settings: TPOSettings, draft: AIMessage, requests: int, seconds: float) -> dict[str, Options]:
    """What the draft leaves to the run: the rest of the budget, and seeds that the draft did not have.

    Raises:
        BudgetError: the draft has used the budget up, and there are more candidates to draw.
    """
    remaining: dict[str, Options] = {}
    if settings.seed is not None:
        remaining["seed"] = settings.seed + 1
    if settings.budget_requests is not None:
        if settings.budget_requests == 1 and settings.n > 1:
            raise _budget_too_small(settings)
        # no step takes a single request, so that one is as good as none
        remaining["budget_requests"] = max(1, settings.budget_requests - requests)
    if settings.budget_tokens is not None:
        used = draft.usage_metadata["total_tokens"] if draft.usage_metadata else 0
        remaining["budget_tokens"] = max(1, settings.budget_tokens - used)
    if settings.budget_seconds is not None:
        remaining["budget_seconds"] = max(_LEAST_SECONDS, settings.budget_seconds - seconds)
    return remaining


def _budget_too_small(settings: TPOSettings) -> BudgetError:
    return BudgetError(
        f"The policy's own answer has taken one request, the rest of the {settings.n} first candidates takes more "
        f"than are left, and budget_requests is {settings.budget_requests}.",
        hint="Raise budget_requests, or draw fewer candidates.",
    )


def _finish_reason(state: PartialState, draft: AIMessage | None) -> str:
    """How the answer ended; a draft is the first candidate, and the answer of a run that failed."""
    best = state.get("best")
    if (
        draft is not None
        and (best is None or best["id"] == "0-0")
        and (completion := read_completion(draft)).problem is None
    ):
        ended, truncated = completion.finish_reason, completion.truncated
    else:
        ended, truncated = (best.get("finish_reason", ""), best["truncated"]) if best else ("", False)
    # a text beside tool calls is whole, and so is a revision that ends at its closing tag
    return "length" if truncated else "stop" if ended in ("", "length", "tool_calls") else ended


def _message(state: PartialState, draft: AIMessage | None, model_name: str) -> AIMessage:
    """The answer of a run, with its metadata and with the tokens of the draft and of the run."""
    best = state.get("best")
    message = answer_message(
        state.get("answer", ""), best, steps=state.get("step", 0), stop_reason=state["stop_reason"]
    )
    message.response_metadata |= {"model_name": model_name, "finish_reason": _finish_reason(state, draft)}
    message.response_metadata["tpo"] |= {
        "trajectory": state.get("trajectory", []),
        "warnings": state.get("warnings", []),
    }
    usage, used = draft.usage_metadata if draft is not None else None, total(state.get("usage", {}))
    read, wrote = used["input_tokens"], used["output_tokens"]
    if read or wrote:
        # without the details of the draft's tokens, which a run does not count
        before = usage or UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
        usage = UsageMetadata(
            input_tokens=before["input_tokens"] + read,
            output_tokens=before["output_tokens"] + wrote,
            total_tokens=before["total_tokens"] + read + wrote,
        )
    message.usage_metadata = usage
    return message
