"""Text Embeddings Inference: `/predict` with raw scores."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.scoring_report import ScoringReport
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
        truncate: let the server cut texts that are too long for the model, at their end; else it refuses them. What
            it cuts is known where it tells its limit (`/info`).
    """

    server: ClassVar[str] = "TEI"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32, truncate: bool = False) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._truncate = truncate
        self._info: Mapping[str, Any] | None = None  # Any: JSON

    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[str]:
        texts = await self._renderer.texts(messages, responses, server_adds_special_tokens=True)
        if self._truncate and (longest := await self._longest()) is not None:
            lengths = await self._renderer.lengths(texts)
            report.truncated |= {
                response for response, length in zip(responses, lengths, strict=True) if length > longest
            }
        return texts

    async def _longest(self) -> int | None:
        """Tokens that the server takes, if it tells; asked once."""
        if self._info is None:
            try:
                info = await self._endpoint.get("/info")
            except RewardError:  # a proxy may let the path of scores through alone
                info = {}
            self._info = info if isinstance(info, dict) else {}
        longest = self._info.get("max_input_length")
        return longest if isinstance(longest, int) else None

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
