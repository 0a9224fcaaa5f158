"""The reward model protocol: conversation and responses in, one float each out."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from langchain_core.messages import BaseMessage

__all__ = ["RewardModel"]


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
