"""SGLang: its native `/classify`, which returns the number that the model gives.

Not `/v1/classify`: that one puts a softmax over the labels, and of a single label a softmax makes 1.0.
"""

from collections.abc import Sequence
from typing import ClassVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.scoring_report import ScoringReport
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.rendering import Renderer
from tpo_graph.rewards.served.reward import ServedReward, score_of
from tpo_graph.rewards.served.server_errors import unexpected

__all__ = ["SGLangReward"]


class SGLangReward(ServedReward[list[int]]):
    """A reward model behind SGLang, which was started with `--is-embedding`.

    Args:
        endpoint: the server.
        renderer: makes token ids.
        model: sent along for routers that choose by it; a server with one model does not read it.
        batch_size: responses in one request.
    """

    server: ClassVar[str] = "SGLang"

    def __init__(
        self, endpoint: Endpoint, renderer: Renderer, *, model: str | None = None, batch_size: int = 32
    ) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._fixed = {} if model is None else {"model": model}

    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[list[int] | RewardError]:
        return await self._renderer.ids(messages, responses, report)

    async def _score_batch(self, batch: Sequence[list[int]]) -> list[float]:
        answer = await self._endpoint.post("/classify", {**self._fixed, "input_ids": list(batch)})
        if not isinstance(answer, list) or not all(isinstance(one, dict) and "embedding" in one for one in answer):
            raise unexpected(self.server, "is not a list with an 'embedding' for each text", answer)
        return [self._read(one["embedding"], answer) for one in answer]

    def _read(self, values: object, answer: object) -> float:
        if values is None:
            return score_of(self.server, None, answer)
        if not isinstance(values, list) or len(values) != 1:
            found = len(values) if isinstance(values, list) else "no"
            raise unexpected(self.server, f"has {found} outputs for a text; a reward is one number", answer)
        return score_of(self.server, values[0], answer)
