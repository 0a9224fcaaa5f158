"""What all served reward models have in common: batches, order, and responses that can't be scored."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.concurrency import gather
from tpo_graph.rewards.parts import PartialRewardModel, PartialScores, RunContext
from tpo_graph.rewards.scoring_report import ScoringReport
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.server_errors import InputRefusedError, unexpected

__all__ = ["ServedReward", "score_of"]

Input = TypeVar("Input")


class ServedReward(PartialRewardModel, Generic[Input]):
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

    async def score_part(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> PartialScores:
        """Score every response as the next assistant turn of the conversation; see `PartialRewardModel.score_part`.

        Returns:
            One float for each response; NaN where it is too long, or the server refused it or gave no number.

        Raises:
            RewardError: the server can't be used, or scored none of the responses.
        """
        texts = list(dict.fromkeys(responses))
        if not texts:
            return []
        encoded = await self._encode(messages, texts, run.report)
        found: dict[str, float | RewardError] = {
            text: one for text, one in zip(texts, encoded, strict=True) if isinstance(one, RewardError)
        }
        inputs = [one for one in encoded if not isinstance(one, RewardError)]
        batches = [inputs[start : start + self._batch_size] for start in range(0, len(inputs), self._batch_size)]
        told = await gather(self._score_or_split(batch) for batch in batches)
        left = [text for text in texts if text not in found]
        found |= dict(zip(left, itertools.chain.from_iterable(told), strict=True))
        errors = [one for one in found.values() if isinstance(one, RewardError)]
        if len(errors) == len(texts):
            raise errors[0]
        return [self._noted(response, found[response], run.report) for response in responses]

    def _noted(self, response: str, found: float | RewardError, report: ScoringReport) -> float:
        """The score; NaN where there is none, and why goes into the report."""
        if isinstance(found, RewardError):
            report.reasons[response] = found.message
            return math.nan
        if not math.isfinite(found):
            report.reasons[response] = f"The {self.server} server gave no finite number for it."
        return found

    async def _score_or_split(self, batch: Sequence[Input]) -> list[float | RewardError]:
        try:
            scores = await self._score_batch(batch)
        except InputRefusedError as error:
            if len(batch) == 1:
                return [error]
            return [one for part in await gather(self._score_or_split([one]) for one in batch) for one in part]
        if len(scores) != len(batch):
            raise unexpected(self.server, f"has {len(scores)} scores for {len(batch)} texts", scores)
        return list(scores)

    @abstractmethod
    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> Sequence[Input | RewardError]:
        """What the server is sent for each response, or why it can't be; the report is told which are cut."""

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
