"""Text Embeddings Inference: `/predict` with raw scores."""

from collections.abc import Sequence
from typing import ClassVar

from langchain_core.messages import BaseMessage

from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.rendering import Renderer
from tpo_graph.rewards.served.reward import ServedReward, score_of
from tpo_graph.rewards.served.server_errors import unexpected

__all__ = ["TEIReward"]


class TEIReward(ServedReward[str]):
    """A sequence classifier with one label behind TEI.

    Args:
        endpoint: the server.
        renderer: makes text; TEI takes no token ids here.
        batch_size: responses in one request; the server's own limit is 32 unless it was started with another
            (`--max-client-batch-size`).
        truncate: let the server cut texts that are too long for the model, at their end; else it refuses them.
    """

    server: ClassVar[str] = "TEI"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32, truncate: bool = False) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._truncate = truncate

    async def _encode(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[str]:
        return await self._renderer.texts(messages, responses, server_adds_special_tokens=True)

    async def _score_batch(self, batch: Sequence[str]) -> list[float]:
        body = {
            # one list a text: a flat list of two would be read as text and text pair
            "inputs": [[text] for text in batch],
            # without it a single label comes through a sigmoid
            "raw_scores": True,
            "truncate": self._truncate,
        }
        answer = await self._endpoint.post("/predict", body)
        if not isinstance(answer, list) or not all(isinstance(one, list) for one in answer):
            raise unexpected(self.server, "is not a list of predictions for each text", answer)
        return [self._read(one, answer) for one in answer]

    def _read(self, predictions: list[object], answer: object) -> float:
        only = predictions[0] if len(predictions) == 1 else None
        if not isinstance(only, dict) or "score" not in only:
            found = len(predictions)
            raise unexpected(self.server, f"has {found} labels for a text; a reward is one number", answer)
        return score_of(self.server, only["score"], answer)
