"""What a run is made of, by object or by name, and its one loader: for ChatTPO, the server, Studio and the command.

parts = RunParts(policy="openai:gpt-4o-mini", reward="hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B")
graph = parts.load().create_graph()
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeAlias, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.build import TPOGraph, make_nodes, refuse_settings, replace_nodes, wire
from tpo_graph.graph.request import pack_for
from tpo_graph.policies.load import load_policy
from tpo_graph.policies.providers import Policy, models_inside
from tpo_graph.policies.sampling import Sampler, as_sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.functions import RewardFunction, as_reward_model
from tpo_graph.rewards.load import load_reward
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Node, Options
from tpo_graph.variants import fused_critique

T = TypeVar("T")

Role: TypeAlias = Literal["policy", "critic", "reward model"]
OnLoad: TypeAlias = Callable[[Role, str, float | None], None]
"""Called with the role and the name of a model: when its loading starts (None), and with the seconds it took."""

VARIANTS: Mapping[str, Callable[..., dict[str, Node]]] = {"fused-critique": fused_critique}
"""Sets of replacement nodes by name; each is made of the critic, the prompts and the settings."""

LOADING_THREAD = "tpo-graph-loading"
"""Name of the threads that load models: they can't be interrupted, and end with the process."""


class ModelStore:
    """Policies and reward models by name, each loaded once for all who ask. A failed load is tried again the next time.

    The methods block, so that async code calls them in a thread; they may be called from several at once.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Any] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()

    def policy(self, name: str) -> BaseChatModel:
        """The policy of a name.

        Args:
            name: as `load_policy` takes it.

        Raises:
            TPOError: it can't be loaded; see `load_policy`.
        """
        return self._model("policy", name.strip(), load_policy)

    def reward(self, name: str) -> RewardModel:
        """The reward model of a name.

        Args:
            name: as `load_reward` takes it.

        Raises:
            TPOError: it can't be loaded; see `load_reward`.
        """
        return self._model("reward", name.strip(), load_reward)

    def load(self, names: Mapping[Role, str], on_load: OnLoad) -> dict[Role, Any]:
        """The models of these names by role, loaded at the same time, each in a thread of its own.

        Args:
            names: the names by role.
            on_load: follows the loading, called in this thread.

        Raises:
            TPOError: the first error of any of them, at once; the other threads go on by themselves.
        """
        start = time.perf_counter()
        for role, name in names.items():
            on_load(role, name, None)
        for role, name in names.items():
            scheme, _, file = name.strip().partition(":")
            if scheme == "local" and role != "reward model":
                # before a reward model imports torch: they share an OpenMP library, the one that loads it decides how
                # long its threads spin while they wait, and llama.cpp is the one that needs short waits
                from tpo_graph.policies.embedded import start_embedded_server

                start_embedded_server(file)
        results: SimpleQueue[tuple[Role, Any]] = SimpleQueue()

        def work(role: Role, name: str) -> None:
            try:
                results.put((role, self.reward(name) if role == "reward model" else self.policy(name)))
            except BaseException as error:  # raised again in the thread that waits
                results.put((role, error))

        for role, name in names.items():
            threading.Thread(target=work, args=(role, name), name=LOADING_THREAD, daemon=True).start()
        loaded: dict[Role, Any] = {}
        while len(loaded) < len(names):
            role, model = results.get()
            if isinstance(model, BaseException):
                raise model
            loaded[role] = model
            on_load(role, names[role], time.perf_counter() - start)
        return loaded

    def _model(self, kind: str, name: str, load: Callable[[str], T]) -> T:
        key = kind, name
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._models:
                self._models[key] = load(name)
            model: T = self._models[key]
            return model


shared_models = ModelStore()
"""Those of this process: a langgraph.json has the Studio graph and the server's app in one."""


@dataclass(frozen=True, kw_only=True)
class LoadedParts:
    """What a run is made of, as objects.

    Attributes:
        policy: answers and revises.
        reward: scores.
        critic: writes loss and gradient; None for the policy.
        prompts: the prompt pack.
        nodes: replacements by name, or the name of a variant.
        settings: defaults of every run.
    """

    policy: Policy
    reward: RewardModel
    critic: Policy | None
    prompts: PromptPack
    nodes: Mapping[str, Node] | str | None
    settings: TPOSettings

    def make_nodes(
        self, *, policy: Policy | Sampler | None = None, critic: Policy | Sampler | None = None
    ) -> dict[str, Node]:
        """The nodes of a run, the replacements among them.

        Args:
            policy: takes the policy's place, such as a `Sampler` that several graphs share; None for the policy.
            critic: takes the critic's place; None for the critic.

        Raises:
            ConfigurationError: a replacement has the name of no node.
            PromptError: the prompt pack can't run the mode.
        """
        actor = as_sampler(policy or self.policy)
        judge = as_sampler(critic or self.critic or actor)
        common: dict[str, Any] = {"prompts": self.prompts, "settings": self.settings}
        nodes = make_nodes(actor, self.reward, critic=judge, **common)
        variant = self.nodes
        return replace_nodes(nodes, VARIANTS[variant](judge, **common) if isinstance(variant, str) else variant)

    def create_graph(self, **compile_options: Options) -> TPOGraph:
        """The graph of these parts, compiled.

        Args:
            **compile_options: go to `StateGraph.compile`, as in `checkpointer=InMemorySaver()`.

        Raises:
            ConfigurationError: a replacement has the name of no node, or an option is a setting of a run.
            PromptError: the prompt pack can't run the mode.
        """
        refuse_settings(compile_options)
        graph = wire(self.make_nodes(), context_schema=TPOSettings)
        return graph.compile(**{"name": "tpo", **compile_options})


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a run is made of, by object or by name. Nothing is loaded until `load` is called, and then once.

    Attributes:
        policy: a chat model, or a name that `load_policy` takes.
        reward: a reward model, or a name that `load_reward` takes.
        critic: the same as for the policy; None for the policy itself.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the policy.
        nodes: replacements by name, or the name of a variant (`VARIANTS`).
        settings: defaults of every run; None reads the `TPO_*` variables.
        models: where models by name come from.

    Raises:
        ConfigurationError: a part is of the wrong kind, or there is no such variant.
    """

    policy: Policy | str
    reward: RewardModel | RewardFunction | str
    critic: Policy | str | None = None
    prompts: PromptPack | str | Path | None = None
    nodes: Mapping[str, Node] | str | None = None
    settings: TPOSettings = field(default_factory=TPOSettings.load)
    models: ModelStore = field(default_factory=ModelStore, repr=False, compare=False)
    _loaded: list[LoadedParts] = field(default_factory=list, init=False, repr=False, compare=False)
    _loading: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for role, policy in (("policy", self.policy), ("critic", self.critic)):
            if not isinstance(policy, (str, Runnable)) and (role == "policy" or policy is not None):
                raise ConfigurationError(
                    f"The {role} must be a LangChain chat model or the name of one, not {type(policy).__name__!r}.",
                    hint='For example "openai:gpt-4o-mini".',
                )
        if not isinstance(self.reward, str):
            as_reward_model(self.reward)
        if isinstance(self.nodes, str) and self.nodes not in VARIANTS:
            raise ConfigurationError(f"Unknown variant {self.nodes!r}; allowed: {', '.join(VARIANTS)}.")

    async def aload(self) -> LoadedParts:
        """The parts as objects, without blocking the event loop.

        Raises:
            TPOError: see `load`.
        """
        return self._loaded[0] if self._loaded else await asyncio.to_thread(self.load)

    def load(self, on_load: OnLoad | None = None) -> LoadedParts:
        """The parts as objects; models that are named are loaded at the same time, each in a thread of its own.

        Args:
            on_load: follows the loading, called in this thread.

        Raises:
            TPOError: the first error of any part, at once; see `load_policy`, `load_reward` and `PromptPack.load`.
        """
        with self._loading:
            if self._loaded:
                return self._loaded[0]
            parts: dict[Role, Any] = {"policy": self.policy, "critic": self.critic, "reward model": self.reward}
            if self.critic is not None and self.critic == self.policy:
                parts["critic"] = None  # the same name twice is one model
            names = {role: name for role, name in parts.items() if isinstance(name, str)}
            policy, critic, reward = (parts | self.models.load(names, on_load or (lambda *_: None))).values()
            loaded = LoadedParts(
                policy=policy,
                reward=as_reward_model(reward),
                critic=critic,
                prompts=pack_for(self.prompts, policy),
                nodes=self.nodes,
                settings=self.settings,
            )
            self._loaded.append(loaded)
            return loaded


def policy_name(policy: object) -> str:
    """A short name for people: what the provider calls the model, or the class."""
    if isinstance(policy, str):
        return policy
    model = next(iter(models_inside(policy)), None)
    for attribute in ("model_name", "model", "model_id"):
        name = getattr(model, attribute, None)
        if isinstance(name, str) and name:
            return name
    return type(model or policy).__name__
