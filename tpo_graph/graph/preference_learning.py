"""The loop, and around it the two nodes that learn what a user prefers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.build import build_tpo_graph, create_tpo_graph
from tpo_graph.graph.preference_memory import UserSettings, remembering_nodes
from tpo_graph.graph.preference_wording import PREFERENCE_PROMPT, MemoryState, keep_node, word_node
from tpo_graph.graph.state import TPOInput
from tpo_graph.human.nodes import human_nodes
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.settings import TPOSettings


def create_memory_graph(
    policy: Policy,
    reward_model: RewardModel,
    *,
    critic: Policy | None = None,
    prompts: PromptPack | str | Path | None = None,
    nodes: Mapping[str, Any] | None = None,  # Any: whatever LangGraph takes as a node
    settings: TPOSettings | None = None,
    preference_prompt: str = PREFERENCE_PROMPT,
    **compile_options: Any,  # Any: LangGraph's own
) -> CompiledStateGraph[MemoryState, UserSettings, TPOInput, MemoryState]:
    """The loop with a person in it, who is asked at the end whether what they prefer may be kept.

    Three nodes: `tpo` is the loop with `human_nodes` and `remembering_nodes`; `word` lets the policy say in a sentence
    what the person's picks and critiques tell (one request more); `keep` shows it by an interrupt and saves it for the
    `user_id` of the context or the config. It is answered with "ok", "no", or a text to keep instead. Runs in which the
    person decided nothing, runs without a user, and runs without a store end after `tpo`.

    Args:
        policy: see `build_tpo_graph`.
        reward_model: see there.
        critic: see there.
        prompts: see there.
        nodes: the nodes with the person in them, in place of `human_nodes`: `{"score": human_score_node()}` for one
            whose rating is the reward, or `human_nodes(..., edit_critique=True)`.
        settings: see there.
        preference_prompt: with the variables `$query`, `$choices` (what the person decided) and `$preference` (what is
            kept so far).
        **compile_options: go to `StateGraph.compile`; `checkpointer=` and `store=` are needed.

    Raises:
        ConfigurationError: see `build_tpo_graph`.
        PromptError: see there; or the preference prompt has an unknown variable.
    """
    settings = TPOSettings.load() if settings is None else settings
    parts: dict[str, Any] = {"critic": critic, "prompts": prompts, "settings": settings}  # Any: keyword arguments
    asking = human_nodes(critic or policy, prompts=prompts, settings=settings) if nodes is None else nodes
    told = remembering_nodes(build_tpo_graph(policy, reward_model, nodes=asking, **parts), settings=settings)

    builder: StateGraph[MemoryState, UserSettings, TPOInput, MemoryState]
    builder = StateGraph(MemoryState, context_schema=UserSettings, input_schema=TPOInput)
    builder.add_node("tpo", create_tpo_graph(policy, reward_model, nodes=told, **parts))
    builder.add_node("word", AsyncNode(word_node(Sampler(policy), preference_prompt, settings), "word"))
    builder.add_node("keep", AsyncNode(keep_node, "keep"))
    builder.add_edge(START, "tpo")
    builder.add_edge("tpo", "word")
    builder.add_conditional_edges("word", _route_after_word, {"keep": "keep", END: END})
    builder.add_edge("keep", END)
    return builder.compile(**{"name": "tpo_with_memory", **compile_options})


def _route_after_word(state: MemoryState) -> Literal["keep", "__end__"]:
    return "keep" if state["preference"] else "__end__"
