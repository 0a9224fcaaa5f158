"""vLLM: `/classify` for sequence classifiers, `/pooling` for those and for models with a score at every token."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.scoring_report import ScoringReport
from tpo_graph.rewards.served.activation import ActivationField, RawScores
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.rendering import Renderer
from tpo_graph.rewards.served.reward import ServedReward, score_of
from tpo_graph.rewards.served.server_errors import unexpected

__all__ = ["VLLMPoolingReward", "VLLMReward"]


class _VLLM(ServedReward[list[int]]):
    """What both have in common.

    Args:
        endpoint: the server.
        renderer: makes token ids; a server given text would add begin tokens and read control tokens in a response.
        model: the name that the server gives the model; None for the one that it serves.
        batch_size: responses in one request.
        activation_field: the request's field that switches the activation off; None finds it out.
    """

    server: ClassVar[str] = "vLLM"
    path: ClassVar[str]

    def __init__(
        self,
        endpoint: Endpoint,
        renderer: Renderer,
        *,
        model: str | None = None,
        batch_size: int = 32,
        activation_field: ActivationField | None = None,
    ) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._fixed: dict[str, Any] = {} if model is None else {"model": model}  # Any: JSON
        self._raw = RawScores(activation_field)

    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[list[int] | RewardError]:
        return await self._renderer.ids(messages, responses, report)

    async def _score_batch(self, batch: Sequence[list[int]]) -> list[float]:
        return await self._raw(self._ask, {**self._fixed, "input": list(batch)})

    async def _ask(self, body: Mapping[str, Any]) -> list[float]:  # Any: JSON
        answer = await self._endpoint.post(self.path, body)
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise unexpected(self.server, "has no 'data'", answer)
        size = len(body["input"])
        if len(data) != size:
            raise unexpected(self.server, f"has {len(data)} scores for {size} texts", answer)
        data = sorted(data, key=lambda one: one.get("index", 0))
        return [self._read(one, answer) for one in data]

    @abstractmethod
    def _read(self, one: Mapping[str, Any], answer: object) -> float:  # Any: JSON
        """The score in one row of the answer."""


class VLLMReward(_VLLM):
    """A sequence classifier with one output behind vLLM's `/classify`."""

    path = "/classify"

    def _read(self, one: Mapping[str, Any], answer: object) -> float:  # Any: JSON
        values = one.get("probs")
        if values is None and "probs" in one:
            return score_of(self.server, None, answer)
        if not isinstance(values, list) or len(values) != 1:
            found = len(values) if isinstance(values, list) else "no"
            raise unexpected(self.server, f"has {found} outputs for a text; a reward is one number", answer)
        return score_of(self.server, values[0], answer)


class VLLMPoolingReward(_VLLM):
    """A reward model behind vLLM's `/pooling`. Of a score at every token, the last one is taken.

    Args:
        endpoint: as in `VLLMReward`, like all further arguments but `task`.
        renderer: see there.
        task: `classify` or `token_classify`, where the server's own choice is not the right one; None sends none.
        **options: see there.
    """

    path = "/pooling"

    def __init__(
        self,
        endpoint: Endpoint,
        renderer: Renderer,
        *,
        task: str | None = None,
        **options: Any,  # Any: those of `VLLMReward`, checked there
    ) -> None:
        super().__init__(endpoint, renderer, **options)
        self._fixed |= {"encoding_format": "float"} | ({} if task is None else {"task": task})

    def _read(self, one: Mapping[str, Any], answer: object) -> float:  # Any: JSON
        values = one.get("data")
        if values is None and "data" in one:
            return score_of(self.server, None, answer)
        # (tokens, 1) for a score at every token, (1,) for one a text
        row = values[-1] if isinstance(values, list) and values and isinstance(values[-1], list) else values
        if not isinstance(row, list) or len(row) != 1:
            found = len(row) if isinstance(row, list) else "no"
            raise unexpected(self.server, f"has {found} outputs at a position; a reward is one number", answer)
        return score_of(self.server, row[0], answer)
