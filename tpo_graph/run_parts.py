"""What an inner run is made of: objects as they were given, or loaded by name when they are first used."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.runnables import Runnable

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.build import pack_for
from tpo_graph.policies.load import load_policy
from tpo_graph.policies.providers import Policy, models_inside
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.load import load_reward
from tpo_graph.settings import TPOSettings

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


# Policies and reward models by name, each loaded once for all who ask.

T = TypeVar("T")


class LoadedModels:
    """Loads what is asked for by name, one after another, and keeps it. What failed is tried again the next time.

    Both methods block: call them in a thread. They may be called from several at once.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Any] = {}  # Any: policies and reward models, by kind and name
        self._loading = threading.Lock()

    def policy(self, name: str) -> "BaseChatModel":
        """The policy of a name.

        Raises:
            TPOError: see `load_policy`.
        """
        return self._model("policy", name.strip(), load_policy)

    def reward(self, name: str) -> RewardModel:
        """The reward model of a name.

        Raises:
            TPOError: see `load_reward`.
        """
        return self._model("reward", name.strip(), load_reward)

    def _model(self, kind: str, name: str, load: Callable[[str], T]) -> T:
        key = kind, name
        if key not in self._models:
            with self._loading:
                if key not in self._models:  # by who came first
                    self._models[key] = load(name)
        model: T = self._models[key]
        return model


shared_models = LoadedModels()
"""Those of this process: a langgraph.json has the Studio graph and the server's app in one."""


@dataclass(frozen=True)
class Parts:
    """Everything that `build_tpo_graph` takes, loaded.

    Attributes:
        policy: answers and revises.
        reward: scores.
        critic: writes loss and gradient; None for the policy.
        prompts: the prompt pack.
        nodes: replacements by name.
        settings: defaults of every call.
        second_reward: watches; None for none.
    """

    policy: Policy
    reward: RewardModel
    critic: Policy | None
    prompts: PromptPack
    nodes: Mapping[str, Any] | None  # Any: whatever LangGraph takes as a node
    settings: TPOSettings
    second_reward: RewardModel | None


class LazyParts:
    """The same with names in place of models, loaded once, in a thread: loading blocks, and may take minutes."""

    def __init__(  # noqa: PLR0917  # in the order of `Parts`
        self,
        policy: Policy | str,
        reward: RewardModel | str,
        critic: Policy | str | None,
        prompts: PromptPack | str | Path | None,
        nodes: Mapping[str, Any] | None,  # Any: as above
        settings: TPOSettings,
        second_reward: RewardModel | str | None,
    ) -> None:
        _check_policy("policy", policy)
        if critic is not None:
            _check_policy("critic", critic)
        _check_reward("reward", reward)
        if second_reward is not None:
            _check_reward("second reward", second_reward)
        self.given = (policy, reward, critic, prompts, nodes, settings, second_reward)
        self._lock = threading.Lock()
        self._parts: Parts | None = None

    async def load(self) -> Parts:
        """The parts, loaded.

        Raises:
            TPOError: see `load_policy` and `load_reward`.
        """
        if self._parts is not None:
            return self._parts
        # even the prompt pack is files, which an event loop must not wait for
        return await asyncio.to_thread(self._load)

    def _load(self) -> Parts:
        # a lock of asyncio would belong to one event loop
        with self._lock:
            if self._parts is None:
                policy, reward, critic, prompts, nodes, settings, second_reward = self.given
                loaded_policy = load_policy(policy) if isinstance(policy, str) else policy
                # the same name twice is one model
                if critic == policy and isinstance(critic, str):
                    critic = None
                self._parts = Parts(
                    policy=loaded_policy,
                    reward=load_reward(reward) if isinstance(reward, str) else reward,
                    critic=load_policy(critic) if isinstance(critic, str) else critic,
                    prompts=pack_for(prompts, loaded_policy),
                    nodes=nodes,
                    settings=settings,
                    second_reward=load_reward(second_reward) if isinstance(second_reward, str) else second_reward,
                )
            return self._parts


def policy_name(policy: object) -> str:
    """A short name for people: what the provider calls the model, or the class."""
    if isinstance(policy, str):
        return policy
    model = next(iter(models_inside(policy)), None)
    for field in ("model_name", "model", "model_id"):
        name = getattr(model, field, None)
        if isinstance(name, str) and name:
            return name
    return type(model or policy).__name__


def _check_policy(role: str, policy: object) -> None:
    if not isinstance(policy, (str, Runnable)):
        raise ConfigurationError(
            f"The {role} must be a LangChain chat model or the name of one, not {type(policy).__name__!r}.",
            hint='For example "openai:gpt-4o-mini".',
        )


def _check_reward(role: str, reward: object) -> None:
    if not isinstance(reward, str) and not callable(getattr(reward, "score", None)):
        raise ConfigurationError(
            f"The {role} must be a reward model or the name of one, not {type(reward).__name__!r}.",
            hint="A reward model has a method score(messages, responses); load_reward tells the names.",
        )
