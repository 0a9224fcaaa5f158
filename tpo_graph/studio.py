"""The graph of `langgraph.json`: the six nodes, with models and prompts chosen by name in the context.

Nothing is loaded until a run begins. `langgraph.json` names this module and not its file: of a file the server would
load a second copy.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, get_args

from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import ConfigDict, Field

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.build import wire
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.human.nodes import PersonReward, human_critique_node, human_score_node, human_select_node, kept_loss_node
from tpo_graph.policies.load import policy_ids
from tpo_graph.prompts.pack import PROMPT_NAMES, PromptPack
from tpo_graph.run_parts import RunParts, shared_models
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import PERSON, JSONObject, Node, PartialState, Phase

# What LangGraph Studio lets a person choose: every setting, the models by name, and the prompts' texts.

_PHASES: tuple[PolicyPhase, ...] = get_args(PolicyPhase)
_PROMPTS: tuple[PolicyPhase | Literal["critique"], ...] = (*_PHASES, "critique")
_FIRST = ("policy", "reward", "n", "depth", "preference", "ask")
_PROMPT_FIELDS = tuple(f"{name}_{part}" for name in _PROMPTS for part in ("prompt", "system"))


def _name(variable: str, default: str, description: str, *nodes: str) -> Any:
    # read once, when the server starts: Studio then shows, and sends back, the name that is really used
    value = os.environ.get(variable, "").strip() or default
    if variable == "TPO_POLICY":
        # it may name several, for the app that `langgraph.json` mounts
        value = next(iter(policy_ids(value.split()).values()))
    return Field(value, description=description, json_schema_extra={"langgraph_nodes": list(nodes)})


def _prompt(name: str, part: str, node: str = "") -> Any:
    text = f"Another {part} of the {name} prompt, with $variables; empty keeps the prompt pack's."
    shown: JSONObject = {"langgraph_nodes": [node or name], "langgraph_type": "prompt"}
    return Field("", description=text, json_schema_extra=shown)


def _show_first(schema: JSONObject) -> None:
    """Put what most people change before the many fields that few do."""
    fields = schema["properties"]
    schema["properties"] = {name: fields[name] for name in (*_FIRST, *fields)}


class StudioSettings(TPOSettings):
    """The context schema of the Studio graph: `TPOSettings`, and what Python holds as live objects.

    Attributes:
        policy: a name of `load_policy`; the default is the first of `TPO_POLICY`, else `local`.
        critic: the same for loss and gradient; the policy when empty.
        reward: a name of `load_reward`, or `person`.
        prompts: a prompt pack by name or folder; the one that suits the policy when empty.
        variant: replacement nodes by name; empty for the paper's loop.
        ask: stop after each scoring, so that a person can choose.
        edit_critique: stop after each loss, so that a person can edit it.
    """

    model_config = ConfigDict(json_schema_extra=_show_first)

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
    variant: Literal["", "fused-critique"] = Field(
        default="",
        description="A variant of the loop; fused-critique asks for loss and gradient in one request.",
        json_schema_extra={"langgraph_nodes": ["loss", "gradient"]},
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

    def key(self) -> tuple[str, ...]:
        """Equal for runs whose nodes are the same."""
        names = (self.policy, self.critic, self.reward, self.prompts, self.variant, self.ask, self.edit_critique)
        texts = [str(getattr(self, name)) for name in _PROMPT_FIELDS]
        # an edited prompt takes the place of the one that the mode uses
        return *(str(name).strip() for name in names), self.mode if any(texts) else "", *texts

    def edit(self, pack: PromptPack) -> PromptPack:
        """The pack with the texts that a person wrote in place of its own.

        Raises:
            PromptError: a text is not a valid prompt of its phase.
        """
        for prompt in _PROMPTS:
            user, system = getattr(self, f"{prompt}_prompt").strip(), getattr(self, f"{prompt}_system").strip()
            if user or system:
                # what is edited is what the run uses
                used = [name for name in PROMPT_NAMES if name == f"{prompt}_{self.mode}" and name in pack.prompts]
                pack = pack.replace(used[0] if used else prompt, user=user or None, system=system or None)
        return pack


class _StudioNodes:
    """The six nodes for whatever models and prompts a run names, kept for the next run that names the same.

    Loading blocks, and `langgraph dev` raises where that would block the event loop, so that it happens in a thread. It
    is a single one: what several runs wait for is made once.

    Args:
        settings: defaults of every run.
    """

    def __init__(self, settings: TPOSettings) -> None:
        self._settings = settings
        self._nodes: BoundedCache[tuple[str, ...], dict[str, Node]] = BoundedCache(32)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tpo-graph-studio")

    async def get(self, chosen: StudioSettings) -> dict[str, Node]:
        """The nodes by name. What failed to load is tried again the next time.

        Raises:
            TPOError: a model or a prompt can't be loaded.
        """
        nodes = self._nodes.get(chosen.key())
        if nodes is None:
            nodes = await asyncio.get_running_loop().run_in_executor(self._thread, self._load, chosen)
        return nodes

    def _load(self, chosen: StudioSettings) -> dict[str, Node]:
        if (nodes := self._nodes.get(chosen.key())) is not None:
            return nodes  # made for a run that asked at the same time
        policy, reward = chosen.policy.strip(), chosen.reward.strip()
        parts = RunParts(
            policy=policy,
            reward=PersonReward() if reward == PERSON else reward,
            critic=chosen.critic.strip() or None,
            prompts=chosen.prompts.strip() or None,
            nodes=chosen.variant or None,
            settings=self._settings,
            models=shared_models,
        ).load()
        nodes = replace(parts, prompts=chosen.edit(parts.prompts)).make_nodes()
        if reward == PERSON:
            nodes["score"] = human_score_node()
        if chosen.ask:
            nodes["select"] = human_select_node(self._settings, takes_critique=True)
            nodes["loss"] = kept_loss_node(nodes["loss"])
        if chosen.edit_critique:
            nodes["gradient"] = human_critique_node(nodes["gradient"])
        self._nodes.put(chosen.key(), nodes)
        return nodes


def create_studio_graph(
    settings: TPOSettings | None = None,
) -> CompiledStateGraph[TPOState, StudioSettings, TPOInput, TPOState]:
    """The TPO loop whose models, prompts and knobs all come from the context of a call.

    Args:
        settings: defaults of the knobs; None reads the `TPO_*` variables.

    Raises:
        ConfigurationError: a variable has a value that can't be used.
    """
    studio_nodes = _StudioNodes(TPOSettings.load() if settings is None else settings)

    def node(phase: Phase) -> AsyncNode:
        async def body(state: TPOState, runtime: Runtime[StudioSettings]) -> PartialState:
            context: object = runtime.context
            chosen = context if isinstance(context, StudioSettings) else StudioSettings()
            nodes = await studio_nodes.get(chosen)
            inner: Runtime[Any] = runtime  # the six nodes expect a context of another type
            result: PartialState = await nodes[phase](state, inner.override(context=chosen))
            return result

        return AsyncNode(body, phase)

    phases: tuple[Phase, ...] = ("sample", "score", "select", "loss", "gradient", "update")
    return wire({phase: node(phase) for phase in phases}, context_schema=StudioSettings).compile(name="tpo")


graph = create_studio_graph()
