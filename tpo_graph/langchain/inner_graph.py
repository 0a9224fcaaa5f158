"""The graph behind a chat model, made for what one call asks of the policy."""

from typing import Any

from langchain_core.runnables.base import RunnableBindingBase
from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.build import TPOGraph, build_tpo_graph
from tpo_graph.graph.nodes import sample_node, select_node, update_node
from tpo_graph.graph.phase import failure
from tpo_graph.graph.state import TPOState
from tpo_graph.langchain.answer_schema import ValidAnswers
from tpo_graph.langchain.call_options import CallOptions
from tpo_graph.langchain.parts import Parts
from tpo_graph.sampling import Policy, Sampler
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, Phase

__all__ = ["compile_inner_graph", "policy_of_call"]


def compile_inner_graph(parts: Parts, options: CallOptions) -> TPOGraph:
    """The TPO graph of these parts, as a call wants it.

    The differences to `create_tpo_graph`: the first candidates are drawn with the tools and the response format of
    the call, candidates end at its stop texts, answers that are not valid are no candidates, and `select` keeps the
    answer's message to itself, because the chat model returns it.
    """
    policy = parts.policy.bind(**options.policy) if options.policy else parts.policy
    pack = parts.prompts
    nodes: dict[str, Any] = {"select": _without_message(select_node(parts.settings))}  # Any: nodes of any kind
    first = policy_of_call(parts, options)
    if options.stop:
        # where settings or prompt pack have stop texts of their own, those are sent and these are cut at alone
        first = first.bind(stop=list(options.stop))
        nodes["update"] = _ended_at(options.stop, update_node(Sampler(policy), pack, parts.settings))
        nodes["sample"] = _ended_at(options.stop, sample_node(Sampler(first), pack, parts.settings))
    elif options.tools or options.schema is not None:
        nodes["sample"] = sample_node(Sampler(first), pack, parts.settings)
    graph = build_tpo_graph(
        policy,
        parts.reward if options.schema is None else ValidAnswers(parts.reward, options.schema),
        critic=parts.critic,
        prompts=pack,
        nodes={**nodes, **(parts.nodes or {})},
        settings=parts.settings,
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


def _ended_at(stop: tuple[str, ...], node: NodeBody) -> NodeBody:
    """`sample` or `update` with its candidates cut at the stop texts.

    Sent to the provider with `update`, a stop text would cut a revision before its closing tag, and so lose it.
    """

    async def body(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        result = dict(await node(state, runtime) or {})
        pending: list[Candidate] = result.get("pending", [])
        cut = [Candidate(**{**each, "text": _before(each["text"], stop)}) for each in pending]
        kept = [each for each in cut if each["text"]]
        if pending and not kept and result["step"] == 0:
            raise PolicyError(f"Every completion of the policy begins with one of the stop texts {list(stop)}.")
        phase: Phase = "update" if result["step"] else "sample"
        lost = [
            failure(phase, result["step"], "empty", text=whole["text"])
            for whole, each in zip(pending, cut, strict=True)
            if not each["text"]
        ]
        failures = result.get("failures", [])
        # `sample` begins the run's list anew
        more = Overwrite([*failures.value, *lost]) if isinstance(failures, Overwrite) else [*failures, *lost]
        return {**result, "pending": kept, "failures": more}

    return body


def _before(text: str, stop: tuple[str, ...]) -> str:
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=len(text))].strip()
