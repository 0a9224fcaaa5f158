"""The graph of `langgraph.json`: the six nodes, with models and prompts chosen by name in the context.

Nothing is loaded until a run begins. `langgraph.json` names this module and not its file: of a file the server would
load a second copy.
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import Field

from tpo_graph.graph.bridge import AsyncNode, NodeBody
from tpo_graph.graph.build import build_tpo_graph, pack_for, wire
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.human.nodes import PersonReward, human_critique_node, human_score_node, human_select_node, kept_loss_node
from tpo_graph.policies.load import policy_ids
from tpo_graph.prompts.pack import PROMPT_NAMES, PromptPack
from tpo_graph.run_parts import LoadedModels, shared_models
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import PERSON, Phase

# What LangGraph Studio lets a person choose: every setting, the models by name, and the prompts' texts.

_PHASES: tuple[PolicyPhase, ...] = get_args(PolicyPhase)
_PROMPTS: tuple[PolicyPhase | Literal["critique"], ...] = (*_PHASES, "critique")
_PROMPT_FIELDS = tuple(f"{name}_{part}" for name in _PROMPTS for part in ("prompt", "system"))


def _name(variable: str, default: str, description: str, *nodes: str) -> Any:  # Any: pydantic's Field is typed so
    # read once, when the server starts: Studio then shows, and sends back, the name that is really used
    value = os.environ.get(variable, "").strip() or default
    if variable == "TPO_POLICY":
        # it may name several, for the app that `langgraph.json` mounts
        value = next(iter(policy_ids(value.split()).values()))
    return Field(value, description=description, json_schema_extra={"langgraph_nodes": list(nodes)})


def _prompt(name: str, part: str, node: str = "") -> Any:  # Any: as above
    text = f"Another {part} of the {name} prompt, with $variables; empty keeps the prompt pack's."
    shown: dict[str, Any] = {"langgraph_nodes": [node or name], "langgraph_type": "prompt"}  # Any: JSON
    return Field("", description=text, json_schema_extra=shown)


class StudioSettings(TPOSettings):
    """The context schema of the Studio graph: `TPOSettings`, and what Python holds as live objects.

    Attributes:
        policy: a name of `load_policy`; the default is the first of `TPO_POLICY`, else `local`.
        critic: the same for loss and gradient; the policy when empty.
        reward: a name of `load_reward`, or `person`.
        prompts: a prompt pack by name or folder; the one that suits the policy when empty.
        ask: stop after each scoring, so that a person can choose.
        edit_critique: stop after each loss, so that a person can edit it.
    """

    policy: str = _name(
        "TPO_POLICY",
        "local",
        "The model that answers: local, openai:MODEL, vllm:URL#MODEL, server:URL#MODEL, or a name of init_chat_model.",
        "sample",
        "update",
    )
    critic: str = _name(
        "TPO_CRITIC", "", "The model that writes loss and gradient; empty takes the policy.", "loss", "gradient"
    )
    reward: str = _name(
        "TPO_REWARD",
        "local",
        "The reward model: local (a demonstration), hf:OWNER/NAME, any other name of load_reward, or person: you rate.",
        "score",
    )
    prompts: str = _name(
        "TPO_PROMPTS", "", "A prompt pack, by name or folder; empty takes the one that suits the policy.", *_PHASES
    )
    ask: bool = Field(
        default=False,
        description="Stop after each scoring and ask a person: which is best and worst, a critique, go on or stop.",
        json_schema_extra={"langgraph_nodes": ["select"]},
    )
    edit_critique: bool = Field(
        default=False,
        description="Stop after each loss and show a person what the critic wrote, to keep or to write anew.",
        json_schema_extra={"langgraph_nodes": ["loss", "gradient"]},
    )
    sample_prompt: str = _prompt("sample", "user part")
    sample_system: str = _prompt("sample", "system part")
    loss_prompt: str = _prompt("loss", "user part")
    loss_system: str = _prompt("loss", "system part")
    gradient_prompt: str = _prompt("gradient", "user part")
    gradient_system: str = _prompt("gradient", "system part")
    critique_prompt: str = _prompt("critique", "user part", node="loss")
    critique_system: str = _prompt("critique", "system part", node="loss")
    update_prompt: str = _prompt("update", "user part")
    update_system: str = _prompt("update", "system part")

    def models(self) -> tuple[str, str, str]:
        """Names of policy, critic and reward model."""
        policy = self.policy.strip()
        return policy, self.critic.strip() or policy, self.reward.strip()

    def wording(self) -> tuple[str, ...]:
        """All else that the nodes are made of: what the models are told, and whether a person is asked."""
        texts = tuple(str(getattr(self, name)) for name in _PROMPT_FIELDS)
        return self.prompts.strip(), self.mode if any(texts) else "", str(self.ask), str(self.edit_critique), *texts

    def edited(self, pack: PromptPack) -> PromptPack:
        """The pack with the texts that a person wrote in place of its own.

        Raises:
            PromptError: a text is no valid prompt of its phase.
        """
        for prompt in _PROMPTS:
            user, system = getattr(self, f"{prompt}_prompt").strip(), getattr(self, f"{prompt}_system").strip()
            if user or system:
                # what is edited is what the run uses
                used = [name for name in PROMPT_NAMES if name == f"{prompt}_{self.mode}" and name in pack.prompts]
                pack = pack.replace(used[0] if used else prompt, user=user or None, system=system or None)
        return pack


# Models and prompts of the Studio graph: loaded by name, once, in a thread, and kept.

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
        self._bodies[key] = bodies
        if len(self._bodies) > _MOST_WORDINGS:
            del self._bodies[next(iter(self._bodies))]


def create_studio_graph(
    settings: TPOSettings | None = None,
) -> CompiledStateGraph[TPOState, StudioSettings, TPOInput, TPOState]:
    """The TPO loop whose models, prompts and knobs all come from the context of a call.

    Args:
        settings: defaults of the knobs; None reads the `TPO_*` variables.

    Raises:
        ConfigurationError: a variable has a value that can't be used.
    """
    loaded = LoadedNodes(TPOSettings.load() if settings is None else settings, shared_models)
    phases: tuple[Phase, ...] = ("sample", "score", "select", "loss", "gradient", "update")
    return wire({phase: _node(phase, loaded) for phase in phases}, context_schema=StudioSettings).compile(name="tpo")


def _node(phase: Phase, loaded: LoadedNodes) -> AsyncNode:
    """The node of a phase, whose body is found when it runs."""

    async def body(
        state: TPOState, runtime: Runtime[StudioSettings]
    ) -> Mapping[str, Any] | None:  # Any: a partial state
        context: object = runtime.context
        chosen = context if isinstance(context, StudioSettings) else StudioSettings()
        bodies = await loaded.get(chosen)
        inner: Runtime[Any] = runtime  # Any: the six nodes know a context of another type
        return await bodies[phase](state, inner.override(context=chosen))

    return AsyncNode(body, phase)


graph = create_studio_graph()
