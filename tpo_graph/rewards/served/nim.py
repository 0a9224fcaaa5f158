"""NVIDIA NIM: a reward model that answers a chat completion with its scores.

The conversation with the response as its last turn goes to `/v1/chat/completions`; the content of the answer is
pairs of attribute and score, as in "helpfulness:1.6,correctness:1.6" or "reward:-12.3", and the same numbers stand
where a language model's log probabilities would.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.messages import BaseMessage

from tpo_graph.rewards.scoring_report import ScoringReport
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.reward import ServedReward, score_of
from tpo_graph.rewards.served.server_errors import unexpected

__all__ = ["NIMReward"]


class NIMReward(ServedReward[list[dict[str, Any]]]):  # Any: a message in OpenAI's JSON
    """A reward model behind `/v1/chat/completions`, which renders the conversation itself. One request a response.

    Args:
        endpoint: the server.
        model: the name that the server gives the model.
        attribute: which of several scores is the reward, as in "helpfulness"; None where there is one.
    """

    server: ClassVar[str] = "NIM"

    def __init__(self, endpoint: Endpoint, *, model: str, attribute: str | None = None) -> None:
        super().__init__(endpoint, batch_size=1)
        self._model = model
        self._attribute = attribute

    async def _encode(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        report: ScoringReport,  # noqa: ARG002  # the server renders, and cuts if it does
    ) -> list[list[dict[str, Any]]]:  # Any: as above
        from tpo_graph.rewards.local.conversation import chat_turns

        turns = chat_turns(messages)
        return [[*turns, {"role": "assistant", "content": response}] for response in responses]

    async def _score_batch(self, batch: Sequence[list[dict[str, Any]]]) -> list[float]:  # Any: as above
        body = {"model": self._model, "messages": batch[0], "stream": False}
        answer = await self._endpoint.post("/v1/chat/completions", body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise unexpected(self.server, "has no 'choices'", answer)
        scores = _from_content(choices[0]) or _from_logprobs(choices[0])
        if not scores:
            raise unexpected(self.server, "has no pair of attribute and score", answer)
        return [score_of(self.server, self._pick(scores, answer), answer)]

    def _pick(self, scores: Mapping[str, float | None], answer: object) -> float | None:
        wanted = self._attribute
        if wanted is None and len(scores) == 1:
            wanted = next(iter(scores))
        if wanted is not None and wanted in scores:
            return scores[wanted]
        asked = "no attribute was chosen" if wanted is None else f"{wanted!r} is not one of them"
        raise unexpected(self.server, f"has scores for {', '.join(scores)}, and {asked} (attribute=)", answer)


def _from_content(choice: Mapping[str, Any]) -> dict[str, float | None]:  # Any: JSON
    """Scores by attribute from the text "a:1.0,b:2.0"; nothing when any part of it is something else."""
    message = choice.get("message")
    # some servers put a list of one message there
    message = message[0] if isinstance(message, list) and message else message
    content = message.get("content") if isinstance(message, dict) else None
    scores: dict[str, float | None] = {}
    for pair in str(content or "").split(","):
        name, colon, number = pair.partition(":")
        try:
            scores[name.strip()] = float(number)
        except ValueError:
            return {}
        if not colon or not name.strip():
            return {}
    return scores


def _from_logprobs(choice: Mapping[str, Any]) -> dict[str, float | None]:  # Any: JSON
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return {}
    return {one["token"]: one.get("logprob") for one in content if isinstance(one, dict) and "token" in one}
