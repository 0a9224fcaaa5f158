"""All that a graph needs to take a person's choices: nodes to give to `create_tpo_graph`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpo_graph.graph.build import pack_for
from tpo_graph.graph.nodes.gradient import gradient_node
from tpo_graph.graph.nodes.human_critique import human_critique_node
from tpo_graph.graph.nodes.human_score import PersonReward, human_score_node
from tpo_graph.graph.nodes.human_select import human_select_node, kept_loss_node
from tpo_graph.graph.nodes.loss import loss_node
from tpo_graph.prompt_store import PromptPack
from tpo_graph.sampling import Policy, Sampler
from tpo_graph.settings import TPOSettings

__all__ = ["PersonReward", "human_critique_node", "human_nodes", "human_score_node", "human_select_node"]


def human_nodes(
    critic: Policy,
    *,
    prompts: PromptPack | str | Path | None = None,
    settings: TPOSettings | None = None,
    edit_critique: bool = False,
) -> Mapping[str, Any]:  # Any: nodes
    """A `select` that asks a person, and a `loss` that keeps the critique that they wrote.

    Example:
        >>> from langgraph.checkpoint.memory import InMemorySaver
        >>> from langgraph.types import Command
        >>> from tpo_graph import create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> policy = ScriptedChatModel(["short", "much longer"])
        >>> reward = TableReward(lambda text: float(len(text)))
        >>> graph = create_tpo_graph(policy, reward, nodes=human_nodes(policy), checkpointer=InMemorySaver())
        >>> thread = {"configurable": {"thread_id": "1"}}
        >>> asked = graph.invoke({"query": "hi"}, thread, context={"n": 2})["__interrupt__"][0].value
        >>> [candidate["text"] for candidate in asked["candidates"]]
        ['much longer', 'short']
        >>> graph.invoke(Command(resume={"best": "0-0", "stop": True}), thread)["answer"]
        'short'

    Args:
        critic: the policy, or the critic that the graph is given.
        prompts: as given to the graph.
        settings: as given to the graph.
        edit_critique: show them the critic's text as well, to keep or to write anew (`human_critique_node`).

    Raises:
        PromptError: there is no such pack.
    """
    settings = TPOSettings.load() if settings is None else settings
    parts = Sampler(critic), pack_for(prompts, critic), settings
    nodes = {"select": human_select_node(settings, takes_critique=True), "loss": kept_loss_node(loss_node(*parts))}
    return nodes | {"gradient": human_critique_node(gradient_node(*parts))} if edit_critique else nodes
