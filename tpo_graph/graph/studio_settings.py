"""What LangGraph Studio lets a person choose: every setting, the models by name, and the prompts' texts."""

import os
from typing import Any, Literal, get_args

from pydantic import Field

from tpo_graph.graph.preference_memory import UserSettings
from tpo_graph.policies.names import policy_ids
from tpo_graph.prompt_parts import PROMPT_NAMES
from tpo_graph.prompt_store import PromptPack
from tpo_graph.settings import PolicyPhase

__all__ = ["StudioSettings"]

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


class StudioSettings(UserSettings):
    """The context schema of the Studio graph: `TPOSettings`, the user, and what Python holds as live objects.

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
