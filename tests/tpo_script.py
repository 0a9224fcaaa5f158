"""The script of a policy that plays all four phases, with texts that carry their own reward.

A candidate is `cand 3` or `rev 7`: its reward is its number. The phases are told apart by the marks of the
package's `tpo` prompt pack.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from langchain_core.messages import BaseMessage

from tests.servers import ChatRequest
from tpo_graph.errors import RewardError
from tpo_graph.testing import ScriptedChatModel, TableReward
from tpo_graph.types import PhaseUsage

PhaseName = Literal["sample", "loss", "gradient", "critique", "update"]
LOSS, GRADIENT = "the loss", "1. the gradient"


def phase_of(prompt: str) -> PhaseName:
    """The phase that a prompt of the `tpo` pack belongs to."""
    if "between <revised_response> and </revised_response>" in prompt:
        return "update"
    if "Turn the assessment into instructions" in prompt:
        return "gradient"
    if "=== INSTRUCTIONS ===" in prompt:
        return "critique"
    if "Do not write a new response" in prompt:
        return "loss"
    return "sample"


def reply(prompt: str, number: int) -> str:
    """What the policy writes as its completion with the running number `number`."""
    phase = phase_of(prompt)
    if phase == "update":
        return f"<revised_response>rev {number}</revised_response>"
    critique = f"{LOSS}\n=== INSTRUCTIONS ===\n{GRADIENT}"
    return {"sample": f"cand {number}", "loss": LOSS, "gradient": GRADIENT, "critique": critique}[phase]


def scripted_policy(**replies: str | Exception | Callable[[int], object]) -> ScriptedChatModel:
    """A chat model that plays the script; `replies` replaces what it says in a phase."""

    def script(messages: Sequence[BaseMessage], number: int):
        phase = phase_of(messages[-1].text)
        if phase in replies:
            other = replies[phase]
            return other(number) if callable(other) else other
        return reply(messages[-1].text, number)

    return ScriptedChatModel(script)


def server_reply(request: ChatRequest, number: int) -> str:
    """The same script for a `ChatServer`."""
    return reply(request.body["messages"][-1]["content"], number)


def last_number(response: str) -> float:
    """The last number of a text, which is its reward."""
    return float(response.rsplit(maxsplit=1)[-1])


def number_reward() -> TableReward:
    """A reward model for which the last number of a text is its reward."""
    return TableReward(last_number)


class FailsAtACost:
    """A reward model that spends two requests before it fails, as a judge may."""

    async def score(self, messages, responses):
        """Fail, and report what it cost."""
        usage = PhaseUsage(requests=2, input_tokens=300, output_tokens=2, seconds=0.0)
        raise RewardError("The judge has left.", usage=usage)


def phases_asked(model: ScriptedChatModel) -> list[PhaseName]:
    """The phase of every request that the model has had."""
    return [phase_of(messages[-1].text) for messages in model.requests]
