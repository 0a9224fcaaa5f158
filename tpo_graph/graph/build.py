"""Builds the graph: six nodes, wired as in the paper's figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from tpo_graph._private_api import write_at_start
from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.nodes.gradient import gradient_node
from tpo_graph.graph.nodes.loss import loss_node
from tpo_graph.graph.nodes.sample import sample_node
from tpo_graph.graph.nodes.score import score_node
from tpo_graph.graph.nodes.select import select_node
from tpo_graph.graph.nodes.update import update_node
from tpo_graph.graph.request import pack_for
from tpo_graph.graph.returns import checked_node
from tpo_graph.graph.state import TPOInput, TPOState, new_run
from tpo_graph.policies.load import load_policy
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler, as_sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.functions import RewardFunction, as_reward_model
from tpo_graph.rewards.load import load_reward
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Node, Options


def route_after_select(state: TPOState) -> Literal["loss", "__end__"]:
    """To the end when `select` has written a stop reason, else into the next step.

    Raises:
        ConfigurationError: a replaced `update` does not raise the step, so that the run would not end.
    """
    # twice may be a person's fork of the thread
    steps = [record["step"] for record in state.get("trajectory", [])[-3:]]
    if not state.get("stop_reason") and len(steps) == 3 and len(set(steps)) == 1:
        raise ConfigurationError(
            f"Step {steps[-1]} repeats without end: the node in place of `update` does not count `step`.",
            hint='It must return {"step": state["step"] + 1, "pending": [...]}.',
        )
    return "__end__" if state.get("stop_reason") else "loss"


Settings = TypeVar("Settings", bound=TPOSettings)
TPOStateGraph: TypeAlias = StateGraph[TPOState, TPOSettings, TPOInput, TPOState]
TPOGraph: TypeAlias = CompiledStateGraph[TPOState, TPOSettings, TPOInput, TPOState]


def build_tpo_graph(
    policy: Policy | str,
    reward_model: RewardModel | RewardFunction | str,
    *,
    critic: Policy | str | None = None,
    prompts: PromptPack | str | Path | None = None,
    nodes: Mapping[str, Node] | None = None,
    settings: TPOSettings | None = None,
) -> TPOStateGraph:
    """The TPO loop as a graph that is not compiled yet, so that nodes can be put beside its own.

    Examples:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> graph = build_tpo_graph(ScriptedChatModel(["hello"]), TableReward({"hello": 1.0}))
        >>> sorted(graph.nodes)
        ['gradient', 'loss', 'sample', 'score', 'select', 'update']

    Args:
        policy: the model that answers and revises (M in the paper), or a name that `load_policy` takes.
        reward_model: scores every candidate (R in the paper); a function too, as `FunctionReward` takes it, or a name
            that `load_reward` takes.
        critic: writes loss and gradient, a model or a name; the policy when None.
        prompts: a pack, its name or its folder; None takes the one that suits the policy.
        nodes: replacements by name, as in `{"loss": my_node}`: async or sync functions of
            `(state, runtime) -> partial state`, objects that are called like them, or any Runnable.
        settings: defaults for every run; None reads the `TPO_*` variables. A call's `context` overrides what it
            names.

    Raises:
        ConfigurationError: the policy is not a chat model, the reward model is none, a model can't be loaded,
            or a name in `nodes` is not a node.
        PromptError: the pack is incomplete or can't run the mode.
    """
    defaults = make_nodes(policy, reward_model, critic=critic, prompts=prompts, settings=settings)
    return wire(replace_nodes(defaults, nodes), context_schema=TPOSettings)


def make_nodes(
    policy: Policy | Sampler | str,
    reward_model: RewardModel | RewardFunction | str,
    *,
    critic: Policy | Sampler | str | None = None,
    prompts: PromptPack | str | Path | None = None,
    settings: TPOSettings | None = None,
) -> dict[str, Node]:
    """The six nodes of the loop by name, to be wrapped, replaced, or put into a graph of your own.

    Examples:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> nodes = make_nodes(ScriptedChatModel(["hello"]), TableReward({"hello": 1.0}))
        >>> list(nodes)
        ['sample', 'score', 'select', 'loss', 'gradient', 'update']

    Args:
        policy: the model that answers and revises, by itself, as a `Sampler` of it, or by a name that `load_policy`
            takes.
        reward_model: scores every candidate; a function too, or a name that `load_reward` takes.
        critic: writes loss and gradient, given like the policy; the policy when None.
        prompts: a pack, its name or its folder; None takes the one that suits the policy.
        settings: defaults for every run; None reads the `TPO_*` variables.

    Returns:
        The nodes, in the order in which a step runs. Each can be awaited as `node(state, runtime)`, and LangGraph runs
        it from sync code as well.

    Raises:
        ConfigurationError: the policy is not a chat model, the reward model is none, or a model can't be loaded.
        PromptError: the pack is incomplete or can't run the mode.
    """
    settings = TPOSettings.load() if settings is None else settings
    if not isinstance(reward_model, str):
        reward_model = as_reward_model(reward_model)  # before a policy is loaded
    # policy and critic share what their provider is found to take
    actor = as_sampler(load_policy(policy) if isinstance(policy, str) else policy)
    if critic is None or critic is policy or (isinstance(critic, str) and critic == policy):
        judge = actor
    else:
        judge = as_sampler(load_policy(critic) if isinstance(critic, str) else critic)
    reward_model = load_reward(reward_model) if isinstance(reward_model, str) else reward_model
    pack = pack_for(prompts, actor.policy)
    pack.check(settings)
    return {
        "sample": sample_node(actor, prompts=pack, settings=settings),
        "score": score_node(reward_model, settings=settings),
        "select": select_node(settings=settings),
        "loss": loss_node(judge, prompts=pack, settings=settings),
        "gradient": gradient_node(judge, prompts=pack, settings=settings),
        "update": update_node(actor, prompts=pack, settings=settings),
    }


def replace_nodes(nodes: Mapping[str, Node], replacements: Mapping[str, Node] | None) -> dict[str, Node]:
    """The nodes with some of them replaced.

    Raises:
        ConfigurationError: a replacement has the name of no node.
    """
    if isinstance(replacements, str):
        raise ConfigurationError(
            f"nodes={replacements!r} is a name; nodes by name are needed here.",
            hint='`tpo_graph.variants` has sets of them: nodes=fused_critique(policy). Yours: {"loss": my_node}.',
        )
    for name in replacements or {}:
        if name not in nodes:
            raise ConfigurationError(f"Unknown node {name!r}; allowed: {', '.join(nodes)}.")
    return {**nodes, **(replacements or {})}


class _LoopGraph(StateGraph[TPOState, Settings, TPOInput, TPOState]):
    """A graph whose every input begins a new run, also in a thread that holds an earlier one."""

    def compile(self, *arguments: Options, **options: Options) -> CompiledStateGraph[TPOState, Settings, TPOInput]:
        graph = super().compile(*arguments, **options)
        write_at_start(graph, new_run)
        return graph


def wire(nodes: Mapping[str, Node], *, context_schema: type[Settings]) -> StateGraph[TPOState, Settings, TPOInput]:
    """The six nodes and the loop, as in the paper's figure.

    Args:
        nodes: the nodes by name.
        context_schema: what a call's context may hold.
    """
    graph: StateGraph[TPOState, Settings, TPOInput]
    graph = _LoopGraph(TPOState, context_schema=context_schema, input_schema=TPOInput)
    for name, node in nodes.items():
        graph.add_node(name, checked_node(name, node, graph.channels))
    graph.add_edge(START, "sample")
    graph.add_edge("sample", "score")
    graph.add_edge("score", "select")
    graph.add_conditional_edges("select", route_after_select, {"loss": "loss", END: END})
    graph.add_edge("loss", "gradient")
    graph.add_edge("gradient", "update")
    graph.add_edge("update", "score")
    return graph


def create_tpo_graph(
    policy: Policy | str,
    reward_model: RewardModel | RewardFunction | str,
    *,
    critic: Policy | str | None = None,
    prompts: PromptPack | str | Path | None = None,
    nodes: Mapping[str, Node] | None = None,
    settings: TPOSettings | None = None,
    **compile_options: Options,
) -> TPOGraph:
    """The TPO loop, compiled and ready to run.

    Examples:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> reward_model = TableReward({"4": 1.0, "5": -1.0})
        >>> graph = create_tpo_graph(ScriptedChatModel(["4", "5"]), reward_model)
        >>> graph.invoke({"query": "2 + 2?"}, context={"mode": "bon", "n": 2})["answer"]
        '4'

    A run takes 3 + 5 D supersteps. Inside an LCEL chain langchain-core sets a recursion limit of 25, with which runs
    of D >= 5 are refused: call the graph there with `config={"recursion_limit": 4 + 5 * D}`.

    As a node of another graph it shares every key that both states have: a parent's `query`, `step` or `usage` would be
    read and written over. Where the parent has more in common with `TPOState` than `messages`, call the graph in a node
    that hands over the conversation alone:

        def answer(state: Parent) -> dict[str, Any]:
            result = tpo.invoke({"messages": state["messages"]})
            return {"messages": result["messages"][-1:]}

    Args:
        policy: the model that answers and revises (M in the paper), or a name that `load_policy` takes.
        reward_model: scores every candidate (R in the paper); a function too, as `FunctionReward` takes it, or a name
            that `load_reward` takes.
        critic: writes loss and gradient, a model or a name; the policy when None.
        prompts: a pack, its name or its folder; None takes the one that suits the policy.
        nodes: replacements by name, as for `build_tpo_graph`.
        settings: defaults for every run; None reads the `TPO_*` variables. A call's `context` overrides what it
            names.
        **compile_options: go to `StateGraph.compile`, as in `checkpointer=InMemorySaver()`; settings do not.

    Raises:
        ConfigurationError: the policy is not a chat model, the reward model is none, a model can't be loaded,
            or a name in `nodes` is not a node.
        PromptError: the pack is incomplete or can't run the mode.
    """
    refuse_settings(compile_options)
    graph = build_tpo_graph(
        policy,
        reward_model,
        critic=critic,
        prompts=prompts,
        nodes=nodes,
        settings=settings,
    )
    return graph.compile(**{"name": "tpo", **compile_options})


def refuse_settings(options: Mapping[str, Options]) -> None:
    """Refuse settings of a run among the options of `StateGraph.compile`.

    Raises:
        ConfigurationError: there are some.
    """
    if settings := {name: value for name, value in options.items() if name in TPOSettings.model_fields}:
        named = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ConfigurationError(
            f"Settings of a run are not options of the graph: {named}.",
            hint=f"For every run: settings=TPOSettings({named}). For one: graph.invoke(..., context={settings}).",
        )
