"""Builds the graph: six nodes, wired as in the paper's figure."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.nodes import gradient_node, loss_node, sample_node, score_node, select_node, update_node
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.policies.providers import Policy, models_inside
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.settings import TPOSettings

# Where the graph goes after select.


def route_after_select(state: TPOState) -> Literal["loss", "__end__"]:
    """To the end when `select` has written a stop reason, else into the next step.

    Raises:
        ConfigurationError: an `update` of one's own does not count steps, so that the run would not end.
    """
    # twice may be a person's fork of the thread
    steps = [record["step"] for record in state.get("trajectory", [])[-3:]]
    if not state.get("stop_reason") and len(steps) == 3 and len(set(steps)) == 1:
        raise ConfigurationError(
            f"Step {steps[-1]} comes again and again: the node that stands in for `update` does not write `step`.",
            hint='It must return {"step": state["step"] + 1, "pending": [...]}.',
        )
    return "__end__" if state.get("stop_reason") else "loss"


Settings = TypeVar("Settings", bound=TPOSettings)
TPOStateGraph: TypeAlias = StateGraph[TPOState, TPOSettings, TPOInput, TPOState]
TPOGraph: TypeAlias = CompiledStateGraph[TPOState, TPOSettings, TPOInput, TPOState]


def build_tpo_graph(
    policy: Policy,
    reward_model: RewardModel,
    *,
    critic: Policy | None = None,
    prompts: PromptPack | str | Path | None = None,
    nodes: Mapping[str, Any] | None = None,  # Any: whatever LangGraph takes as a node
    settings: TPOSettings | None = None,
    second_reward: RewardModel | None = None,
) -> TPOStateGraph:
    """The TPO loop as a graph that is not compiled yet, so that nodes can be put beside its own.

    Example:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> graph = build_tpo_graph(ScriptedChatModel(["hello"]), TableReward({"hello": 1.0}))
        >>> sorted(graph.nodes)
        ['gradient', 'loss', 'sample', 'score', 'select', 'update']

    Args:
        policy: the model that answers and revises (M in the paper).
        reward_model: scores every candidate (R in the paper).
        critic: writes loss and gradient; the policy when None.
        prompts: a pack, its name or its folder; None takes the one that suits the policy.
        nodes: replacements by name, as in `{"loss": my_node}`: async or sync functions of
            `(state, runtime) -> partial state`, objects that can be called so, or any Runnable.
        settings: defaults for every run; None reads the `TPO_*` variables. A call's `context` overrides what it
            names.
        second_reward: another reward model that watches: the result has a warning when its reward of the best
            candidate fell while the first one rose. Nothing is selected by it, and its failures end no run. The node
            `score` asks it, so that it can't watch a run in which that one is replaced.

    Raises:
        ConfigurationError: the policy is no chat model, a reward model has no `score`, a name in `nodes` is not a
            node, or nobody would ask the second reward model.
        PromptError: the pack is incomplete or can't run the mode.
    """
    settings = TPOSettings.load() if settings is None else settings
    pack = pack_for(prompts, policy)
    pack.check(settings)
    for each in (reward_model, second_reward):
        if each is not None and not callable(getattr(each, "score", None)):
            raise ConfigurationError(
                f"A reward model has a method score(messages, responses), and {type(each).__name__!r} has none.",
                hint='load_reward("local") makes one.',
            )
    actor = Sampler(policy)
    judge = actor if critic is None or critic is policy else Sampler(critic)
    bodies: dict[str, Any] = {  # Any: as for `nodes`
        "sample": sample_node(actor, pack, settings),
        "score": score_node(reward_model, settings, second_reward=second_reward),
        "select": select_node(settings),
        "loss": loss_node(judge, pack, settings),
        "gradient": gradient_node(judge, pack, settings),
        "update": update_node(actor, pack, settings),
    }
    for name in nodes or {}:
        if name not in bodies:
            raise ConfigurationError(f"Unknown node {name!r}; allowed: {', '.join(bodies)}.")
    if second_reward is not None and "score" in (nodes or {}):
        raise ConfigurationError(
            "A second reward model is asked by the node 'score', which nodes= replaces here.",
            hint="Leave second_reward out, or ask it in your own node and write `second_rewards` and `warnings`.",
        )
    bodies |= nodes or {}

    return wire(bodies, context_schema=TPOSettings)


def wire(bodies: Mapping[str, Any], *, context_schema: type[Settings]) -> StateGraph[TPOState, Settings, TPOInput]:
    """The six nodes and the loop, as in the paper's figure.

    Args:
        bodies: the nodes by name.
        context_schema: what a call's context may hold.
    """
    graph: StateGraph[TPOState, Settings, TPOInput]
    graph = StateGraph(TPOState, context_schema=context_schema, input_schema=TPOInput)
    for name, body in bodies.items():
        graph.add_node(name, AsyncNode(body, name) if _is_async(body) else body)
    graph.add_edge(START, "sample")
    graph.add_edge("sample", "score")
    graph.add_edge("score", "select")
    graph.add_conditional_edges("select", route_after_select, {"loss": "loss", END: END})
    graph.add_edge("loss", "gradient")
    graph.add_edge("gradient", "update")
    graph.add_edge("update", "score")
    return graph


def _is_async(body: object) -> bool:
    """Whether it is an async function, or an object that is called like one."""
    return inspect.iscoroutinefunction(body) or inspect.iscoroutinefunction(type(body).__call__)


def create_tpo_graph(
    policy: Policy,
    reward_model: RewardModel,
    *,
    critic: Policy | None = None,
    prompts: PromptPack | str | Path | None = None,
    nodes: Mapping[str, Any] | None = None,  # Any: whatever LangGraph takes as a node
    settings: TPOSettings | None = None,
    second_reward: RewardModel | None = None,
    **compile_options: Any,  # Any: LangGraph's own
) -> TPOGraph:
    """The TPO loop, compiled and ready to run.

    Example:
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
        policy: see `build_tpo_graph`, as for all others up to `second_reward`.
        reward_model: see there.
        critic: see there.
        prompts: see there.
        nodes: see there.
        settings: see there.
        second_reward: see there.
        **compile_options: go to `StateGraph.compile`, as in `checkpointer=InMemorySaver()`.

    Raises:
        ConfigurationError: see `build_tpo_graph`.
        PromptError: see there.
    """
    graph = build_tpo_graph(
        policy,
        reward_model,
        critic=critic,
        prompts=prompts,
        nodes=nodes,
        settings=settings,
        second_reward=second_reward,
    )
    return graph.compile(**{"name": "tpo", **compile_options})


def pack_for(prompts: PromptPack | str | Path | None, policy: Policy) -> PromptPack:
    """The prompt pack that is meant: the one given, by itself, name or folder, else the one that suits the policy.

    Raises:
        PromptError: there is no such pack, or it is incomplete.
    """
    if isinstance(prompts, PromptPack):
        return prompts
    # `load_policy` notes the pack that suits a model on it
    noted = ((model.metadata or {}).get("tpo_prompts") for model in models_inside(policy))
    return PromptPack.load(prompts if prompts is not None else str(next(noted, None) or "tpo"))
