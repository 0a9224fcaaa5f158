"""The reward model protocol: conversation and responses in, one float each out."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from langchain_core.messages import BaseMessage

from tpo_graph.types import PhaseUsage

__all__ = ["RewardModel", "UsageReportingReward"]


@runtime_checkable
class RewardModel(Protocol):
    """Scores responses to one conversation; R(x, v) in section 2 of the TPO paper.

    Any object with this one method is a reward model. Always a batch, never one.
    """

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        """Score every response as the next assistant turn of the conversation.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to score; may be empty.

        Returns:
            One float for each response, in their order; higher is better. A response that can't be scored
            is NaN, which the caller records and never selects.

        Raises:
            RewardError: when nothing can be scored.
        """
        ...


@runtime_checkable
class UsageReportingReward(RewardModel, Protocol):
    """A reward model that asks a language model itself: it tells what that costs, and can use a preference."""

    async def score_with_usage(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], *, preference: str = ""
    ) -> tuple[list[float], PhaseUsage]:
        """Score as `score` does.

        Args:
            messages: as for `score`.
            responses: as for `score`.
            preference: what the answer is to satisfy, in words; the same throughout a run. "" for none.

        Returns:
            The rewards, and the requests and tokens that they cost.
        """
        ...
