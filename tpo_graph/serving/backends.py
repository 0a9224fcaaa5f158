"""The models behind a server: one `ChatTPO` a policy, with one reward model for all."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.request import pack_for
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.policies.providers import Policy
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.run_parts import ModelStore
from tpo_graph.settings import TPOSettings


class Backends:
    """Chat models by the id of their policy. What was given by name is loaded once, when it is first used.

    Args:
        policies: chat models, or names that `load_policy` takes, by id; the first is the default.
        reward: a reward model, or a name that `load_reward` takes.
        critic: see `build_tpo_graph`.
        prompts: see there.
        settings: defaults of every request; None reads the `TPO_*` variables.
        models: where models by name come from; None for some of its own.

    Raises:
        ConfigurationError: there is no policy, or one of the parts is none.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy | str],
        reward: RewardModel | str,
        *,
        critic: Policy | str | None = None,
        prompts: PromptPack | str | Path | None = None,
        settings: TPOSettings | None = None,
        models: ModelStore | None = None,
    ) -> None:
        if not policies:
            raise ConfigurationError("There is no policy to serve.", hint='For example {"gpt": "openai:gpt-4o-mini"}.')
        self._settings = settings or TPOSettings.load()
        for policy in policies.values():
            # nothing is loaded; parts of a wrong kind are refused here and not at the first request
            ChatTPO(policy=policy, reward=reward, critic=critic, settings=self._settings)
        self._given = dict(policies)
        self._reward = reward
        self._critic = critic
        self._prompts = prompts
        self._models = models or ModelStore()
        self._ready: dict[str, ChatTPO] = {}
        self._loading = threading.Lock()

    @property
    def policies(self) -> list[str]:
        """Ids of the policies, the default first."""
        return list(self._given)

    async def model(self, policy: str) -> ChatTPO:
        """The chat model of a policy, by an id that is known.

        Raises:
            TPOError: see `load_policy`, `load_reward` and `PromptPack.load`.
        """
        # in a thread, because it reads files and may take minutes
        ready = self._ready.get(policy)
        return ready if ready is not None else await asyncio.to_thread(self._load, policy)

    def _load(self, policy: str) -> ChatTPO:
        # not a lock of asyncio: who waits for a load may leave, and the load goes on
        with self._loading:
            if policy not in self._ready:
                given = self._given[policy]
                loaded = self._models.policy(given) if isinstance(given, str) else given
                self._ready[policy] = ChatTPO(
                    policy=loaded,
                    reward=self._models.reward(self._reward) if isinstance(self._reward, str) else self._reward,
                    critic=self._critic_beside(given),
                    prompts=pack_for(self._prompts, loaded),
                    settings=self._settings,
                )
            return self._ready[policy]

    def _critic_beside(self, policy: Policy | str) -> Policy | None:
        if not isinstance(self._critic, str):
            return self._critic
        # the same name twice is one model
        return None if self._critic == policy else self._models.policy(self._critic)
