"""OpenRLHF: the `/get_reward` of its remote reward models."""

from collections.abc import Sequence
from typing import ClassVar

from langchain_core.messages import BaseMessage

from tpo_graph.conversation import last_query
from tpo_graph.rewards.scoring_report import ScoringReport
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.rendering import Renderer
from tpo_graph.rewards.served.reward import ServedReward, score_of
from tpo_graph.rewards.served.server_errors import unexpected

__all__ = ["OpenRLHFReward"]


class OpenRLHFReward(ServedReward[tuple[str, str]]):
    """A reward model behind OpenRLHF's `serve_rm`, or behind a server of one's own with the same interface.

    The server ends each text with one end token, whatever it ended with before: how OpenRLHF trains reward models.

    Args:
        endpoint: the server.
        renderer: makes text.
        batch_size: responses in one request.
    """

    server: ClassVar[str] = "OpenRLHF"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer

    async def _encode(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        report: ScoringReport,  # noqa: ARG002  # the server cuts at its own --max_len, which it does not tell
    ) -> list[tuple[str, str]]:
        # its tokenizer is told to add no begin token, so the template's own stays in the text
        texts = await self._renderer.texts(messages, responses, server_adds_special_tokens=False)
        return [(text, last_query(messages)) for text in texts]

    async def _score_batch(self, batch: Sequence[tuple[str, str]]) -> list[float]:
        body = {
            "query": [text for text, _ in batch],
            # `serve_rm` reads the first alone; servers that check answers read these
            "prompts": [prompt for _, prompt in batch],
        }
        answer = await self._endpoint.post("/get_reward", body)
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            raise unexpected(self.server, "has no list of 'rewards'", answer)
        return [score_of(self.server, self._only(one), answer) for one in rewards]

    @staticmethod
    def _only(value: object) -> object:
        """The number in a list of one: a head that keeps its last dimension returns those."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value
