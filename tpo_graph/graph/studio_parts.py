"""Models and prompts of the Studio graph: loaded by name, once, in a thread, and kept."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tpo_graph.graph.bridge import AsyncNode, NodeBody
from tpo_graph.graph.build import build_tpo_graph, pack_for
from tpo_graph.graph.nodes.human_critique import human_critique_node
from tpo_graph.graph.nodes.human_score import PersonReward, human_score_node
from tpo_graph.graph.nodes.human_select import human_select_node, kept_loss_node
from tpo_graph.graph.preference_memory import remembering
from tpo_graph.graph.studio_settings import StudioSettings
from tpo_graph.loaded_models import LoadedModels
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PERSON

__all__ = ["LoadedNodes"]

_MOST_WORDINGS = 32


class LoadedNodes:
    """The nodes' bodies for whatever models and prompts a run names.

    Loading blocks, and `langgraph dev` raises where that would block the event loop. All of it happens in one thread:
    so nothing is loaded twice, and the embedded policy comes before a reward model imports torch (they share an
    OpenMP library, and llama.cpp has to be the one that sets it up).

    Args:
        settings: defaults of every run.
        models: where models come from.
    """

    def __init__(self, settings: TPOSettings, models: LoadedModels) -> None:
        self._settings = settings
        self._models = models
        self._bodies: dict[tuple[str, ...], Mapping[str, NodeBody]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tpo-graph-studio")

    async def get(self, chosen: StudioSettings) -> Mapping[str, NodeBody]:
        """The six bodies by node name, each of `(state, runtime, config)`.

        What failed to load is tried again the next time.

        Raises:
            TPOError: a model or a prompt can't be loaded.
        """
        key = (*chosen.models(), *chosen.wording())
        if key not in self._bodies:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._load, key, chosen)
        return self._bodies[key]

    def _load(self, key: tuple[str, ...], chosen: StudioSettings) -> None:
        if key in self._bodies:
            return  # by a run that came first
        policy_name, critic_name, reward_name = chosen.models()
        policy, critic = self._models.policy(policy_name), self._models.policy(critic_name)
        reward = PersonReward() if reward_name == PERSON else self._models.reward(reward_name)
        pack = chosen.edited(pack_for(chosen.prompts.strip() or None, policy))
        builder = build_tpo_graph(policy, reward, critic=critic, prompts=pack, settings=self._settings)
        # all of them are ours, and our nodes are AsyncNodes
        nodes = {name: node.runnable for name, node in builder.nodes.items()}
        bodies = {name: node.body for name, node in nodes.items() if isinstance(node, AsyncNode)}
        if reward_name == PERSON:
            bodies["score"] = human_score_node()
        if chosen.ask:
            bodies["select"] = human_select_node(self._settings, takes_critique=True)
            bodies["loss"] = kept_loss_node(bodies["loss"])
        if chosen.edit_critique:
            bodies["gradient"] = human_critique_node(bodies["gradient"])
        self._bodies[key] = {name: remembering(body, self._settings) for name, body in bodies.items()}
        if len(self._bodies) > _MOST_WORDINGS:
            del self._bodies[next(iter(self._bodies))]
