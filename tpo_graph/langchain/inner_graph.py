"""The graph behind a chat model, made for what one call asks of the policy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.runtime import Runtime
from langgraph.types import Command, Overwrite

from tpo_graph.accounting import total
from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.build import TPOGraph, build_tpo_graph, wire
from tpo_graph.graph.nodes import gradient_node, loss_node, sample_node, select_node, update_node
from tpo_graph.graph.phase import failure
from tpo_graph.graph.state import TPOState
from tpo_graph.langchain.call_options import CallOptions
from tpo_graph.langchain.parts import Parts
from tpo_graph.sampling import Policy, Sampler
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import Candidate, FailureRecord, PhaseUsage, Usage

__all__ = ["NoAnswerError", "Samplers", "compile_inner_graph", "policy_of_call"]


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


def compile_inner_graph(parts: Parts, options: CallOptions, samplers: Samplers) -> TPOGraph:
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
    pack, settings = parts.prompts, parts.settings
    actor = samplers.policy(policy, options)
    judge = actor if parts.critic is None or parts.critic is parts.policy else samplers.critic(parts.critic)
    nodes: dict[str, Any] = {  # Any: nodes of any kind
        "sample": sample_node(samplers.policy(first, options), pack, settings),
        "select": _without_message(select_node(settings)),
        "loss": loss_node(judge, pack, settings),
        "gradient": gradient_node(judge, pack, settings),
        "update": update_node(actor, pack, settings),
    }
    nodes |= parts.nodes or {}
    graph = build_tpo_graph(
        policy,
        parts.reward,
        critic=parts.critic,
        prompts=pack,
        nodes=nodes,
        settings=settings,
        second_reward=parts.second_reward,
    )
    if options.stop or options.schema is not None:
        bodies: dict[str, Any] = {name: node.runnable for name, node in graph.nodes.items()}  # Any: as above
        drawing: tuple[PolicyPhase, ...] = ("sample", "update")
        graph = wire(
            bodies | {phase: _answers_alone(phase, bodies[phase], options) for phase in drawing},
            context_schema=TPOSettings,
        )
    # with a checkpointer of the graph around it, it would write into that one's thread
    return graph.compile(name="tpo", checkpointer=False)


def policy_of_call(parts: Parts, options: CallOptions) -> Policy:
    """The policy with everything that the call gives it: arguments, tools and response format.

    Raises:
        ConfigurationError: the policy can't take tools.
    """
    arguments = {**options.policy, **(options.schema.wire(parts.policy) if options.schema else {})}
    if not options.tools:
        return parts.policy.bind(**arguments) if arguments else parts.policy
    return _with_tools(parts.policy, {**options.tools, **arguments})


def _with_tools(policy: Policy, arguments: dict[str, Any]) -> Policy:  # Any: the provider's own
    """The policy with tools bound to the model inside it, so that bindings and retries around that one stay."""
    if isinstance(policy, RunnableBindingBase):
        return policy.model_copy(update={"bound": _with_tools(policy.bound, arguments)})
    holder: Any = policy  # Any: wrappers have the method by attribute
    try:
        return holder.bind_tools(**arguments)  # type: ignore[no-any-return]  # see `holder`
    except (AttributeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"The policy {type(policy).__name__!r} can't be given tools.", hint="Its class has no bind_tools."
        ) from error


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
