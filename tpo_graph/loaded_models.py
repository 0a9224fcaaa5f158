"""Policies and reward models by name, each loaded once for all who ask."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tpo_graph.policies.load import load_policy
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.load import load_reward

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["LoadedModels", "shared_models"]

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
