"""What all served reward models have in common: batches, order, and responses that can't be scored."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.concurrency import gather
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.server_errors import InputRefusedError, unexpected

__all__ = ["ServedReward", "score_of"]

Input = TypeVar("Input")


class ServedReward(ABC, Generic[Input]):
    """A reward model behind a server.

    A subclass says what the server is sent for a response (`Input`: token ids, text or messages) and how its answer
    is read. Equal responses are sent once. Batches are sent at the same time. When a server refuses a batch, its
    texts are sent one by one, so that one text that is too long costs no other its score.

    Args:
        endpoint: the server.
        batch_size: responses in one request.

    Raises:
        ConfigurationError: `batch_size` is below 1.
    """

    server: ClassVar[str]
    """Name of the server in messages."""

    def __init__(self, endpoint: Endpoint, *, batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: at least 1 is needed.")
        self._endpoint = endpoint
        self._batch_size = batch_size

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        """Score every response as the next assistant turn of the conversation.

        Returns:
            One float for each response; NaN where the server refused it or gave no number.

        Raises:
            RewardError: the server can't be used, or scored none of the responses.
        """
        texts = list(dict.fromkeys(responses))
        if not texts:
            return []
        inputs = await self._encode(messages, texts)
        batches = [inputs[start : start + self._batch_size] for start in range(0, len(inputs), self._batch_size)]
        scores: list[float] = []
        refusals: list[InputRefusedError] = []
        for part, refused in await gather(self._score_or_split(batch) for batch in batches):
            scores += part
            refusals += refused
        if len(refusals) == len(texts):
            raise refusals[0]
        by_text = dict(zip(texts, scores, strict=True))
        return [by_text[response] for response in responses]

    async def _score_or_split(self, batch: Sequence[Input]) -> tuple[list[float], list[InputRefusedError]]:
        try:
            scores = await self._score_batch(batch)
        except InputRefusedError as error:
            if len(batch) == 1:
                return [math.nan], [error]
            parts = await gather(self._score_or_split([one]) for one in batch)
            return [score for part, _ in parts for score in part], [one for _, more in parts for one in more]
        if len(scores) != len(batch):
            raise unexpected(self.server, f"has {len(scores)} scores for {len(batch)} texts", scores)
        return scores, []

    @abstractmethod
    async def _encode(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> Sequence[Input]:
        """What the server is sent for each response."""

    @abstractmethod
    async def _score_batch(self, batch: Sequence[Input]) -> list[float]:
        """One request, and the scores of its answer in the order of `batch`."""


def score_of(server: str, value: Any, body: object) -> float:  # Any: part of a JSON answer
    """A number from a JSON answer; null is NaN.

    Raises:
        RewardError: it is neither a number nor null.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unexpected(server, f"has {value!r} where a score should be", body)
    return float(value)
