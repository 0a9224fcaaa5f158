"""Asks a chat model for one of a few verdicts, in the best way that its provider has.

Ways, best first: log probabilities of the first token (20 of them, or the 5 that some providers allow), structured
output, a plain answer. Which one works is found out with the first request and remembered.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.policies.transport import loop_safe
from tpo_graph.rewards.concurrency import ConcurrencyLimit, gather
from tpo_graph.rewards.judge.provider_errors import is_refusal, judge_failed, may_pass, names_knob
from tpo_graph.rewards.judge.readout import from_logprobs, from_parsed, from_text
from tpo_graph.types import PhaseUsage

__all__ = ["Verdicts", "Way"]

Way: TypeAlias = Literal["logprobs", "few_logprobs", "structured", "text"]
"""How a verdict is asked for."""

_WAYS: tuple[Way, ...] = ("logprobs", "few_logprobs", "structured", "text")
_TOP: Mapping[Way, int] = {"logprobs": 20, "few_logprobs": 5}
_MAX_TOKENS = ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
_ANSWER_TOKENS = 4  # some models begin with a blank token
_NOSTREAM = "nostream"  # LangGraph's tag: keeps verdicts out of the message stream of the answer


class Verdicts:
    """Asks one chat model.

    Args:
        model: any LangChain chat model.
        labels: the possible verdicts, each one token.
        samples: how many verdicts to take the mean of where log probabilities are missing; drawn at temperature 1
            when there are several. Up to half of them may be unreadable.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: the model is no chat model, or a number is below 1.
    """

    def __init__(self, model: BaseChatModel, labels: Sequence[str], *, samples: int, max_concurrency: int) -> None:
        if not isinstance(model, BaseChatModel):
            raise ConfigurationError(
                f"The judge must be a LangChain chat model, not {type(model).__name__!r}.",
                hint='load_policy("openai:gpt-4o-mini") makes one; what is bound to a model can be its own argument.',
            )
        if samples < 1:
            raise ConfigurationError(f"samples={samples}: at least 1 verdict is needed.")
        self._model = loop_safe(model)
        self._labels = tuple(labels)
        self._samples = samples
        self._limit = ConcurrencyLimit(max_concurrency)
        self._finding_out = ConcurrencyLimit(1)  # many at once would all be refused
        self._lock = threading.Lock()  # loops of several threads may share this
        self._total = no_usage()
        self._takes_temperature = self._has("temperature")
        self.way: Way | None = None

    @property
    def usage(self) -> PhaseUsage:
        """Requests and tokens of all calls so far; its seconds stay 0."""
        with self._lock:
            return PhaseUsage(**self._total)

    async def ask(self, messages: Sequence[BaseMessage], used: PhaseUsage) -> dict[str, float]:
        """Probabilities of the verdicts, which sum to 1.

        Args:
            messages: the request.
            used: what it costs is added here.

        Raises:
            RewardError: the model failed, or gave no verdict.
        """
        way = self.way
        if way is None:
            async with self._finding_out.slot():
                way = self.way  # somebody else may have found it out meanwhile
                if way is None:
                    return await self._find_out(messages, used)
        try:
            verdict = await self._ask(way, messages, used)
        except RewardError:
            raise
        except Exception as error:  # each provider has its own
            raise judge_failed(error) from error
        if verdict is None:
            raise RewardError("The judge told log probabilities before, and now it tells none.")
        return verdict

    async def _find_out(self, messages: Sequence[BaseMessage], used: PhaseUsage) -> dict[str, float]:
        """Ask in one way after the other until the provider takes one."""
        ways = list(_WAYS)
        tried_again: set[Way] = set()
        while True:
            way = ways.pop(0)
            try:
                verdict = await self._ask(way, messages, used)
            except RewardError:
                self.way = way  # the provider takes it; what the model answered is another matter
                raise
            except Exception as error:  # each provider has its own for what it does not take
                if self._takes_temperature and names_knob(error, "temperature"):
                    self._takes_temperature = False
                    ways.insert(0, way)
                elif may_pass(error) and way not in tried_again:
                    tried_again.add(way)
                    ways.insert(0, way)
                elif not ways or not is_refusal(error):
                    raise judge_failed(error) from error
                continue
            if verdict is not None:
                self.way = way
                return verdict
            # log probabilities were not refused, and there are none: fewer of them would not come either
            ways = [other for other in ways if other not in _TOP]

    async def _ask(self, way: Way, messages: Sequence[BaseMessage], used: PhaseUsage) -> dict[str, float] | None:
        if way in _TOP:
            if not (self._has("logprobs") and self._has("top_logprobs")):
                return None
            fields = {"logprobs": True, "top_logprobs": _TOP[way], **self._answer_length()}
            message = await self._invoke(self._copy(0.0, fields), messages, used)
            return from_logprobs(message, self._labels)
        read = self._structured if way == "structured" else self._plain
        temperature = 0.0 if self._samples == 1 else 1.0
        model = self._copy(temperature, {})
        unreadable: list[RewardError] = []

        async def draw() -> dict[str, float] | None:
            try:
                return await read(model, messages, used)
            except RewardError as error:
                unreadable.append(error)
                return None

        drawn = [one for one in await gather(draw() for _ in range(self._samples)) if one is not None]
        if 2 * len(drawn) < self._samples:
            raise unreadable[0]
        return {label: sum(one[label] for one in drawn) / len(drawn) for label in self._labels}

    async def _structured(
        self, model: BaseChatModel, messages: Sequence[BaseMessage], used: PhaseUsage
    ) -> dict[str, float]:
        schema = {
            "title": "verdict",
            "description": "The verdict.",
            "type": "object",
            "properties": {"verdict": {"type": "string", "enum": list(self._labels)}},
            "required": ["verdict"],
            "additionalProperties": False,
        }
        answer = await self._invoke(model.with_structured_output(schema, include_raw=True), messages, used)
        if isinstance(answer["parsed"], Mapping):
            return from_parsed(answer["parsed"], self._labels)
        return from_text(answer["raw"].text, self._labels)  # a server may know no schema, and the verdict be there

    async def _plain(self, model: BaseChatModel, messages: Sequence[BaseMessage], used: PhaseUsage) -> dict[str, float]:
        message: AIMessage = await self._invoke(model, messages, used)
        return from_text(message.text, self._labels)

    async def _invoke(self, model: Any, messages: Sequence[BaseMessage], used: PhaseUsage) -> Any:  # Any: a Runnable's
        """One request, counted whether or not it succeeds."""
        async with self._limit.slot():
            self._count(used, requests=1)
            answer = await model.ainvoke(list(messages), {"tags": [_NOSTREAM]})
        message = answer["raw"] if isinstance(answer, dict) else answer
        if told := getattr(message, "usage_metadata", None):
            self._count(used, input_tokens=told["input_tokens"], output_tokens=told["output_tokens"])
        return answer

    def _count(self, used: PhaseUsage, *, requests: int = 0, input_tokens: int = 0, output_tokens: int = 0) -> None:
        with self._lock:
            for record in (used, self._total):
                record["requests"] += requests
                record["input_tokens"] += input_tokens
                record["output_tokens"] += output_tokens

    def _copy(self, temperature: float, fields: Mapping[str, Any]) -> BaseChatModel:  # Any: field values
        """The model with other fields; a copy, because every chat model reads its fields and few take arguments."""
        fixed: dict[str, Any] = {"disable_streaming": True}
        if self._has("streaming"):
            fixed["streaming"] = False
        if self._takes_temperature:
            fixed["temperature"] = temperature
        if temperature:
            fixed["cache"] = False  # several verdicts, not one several times
        return self._model.model_copy(update={**fixed, **fields})

    def _answer_length(self) -> dict[str, int]:
        return next(({name: _ANSWER_TOKENS} for name in _MAX_TOKENS if self._has(name)), {})

    def _has(self, field: str) -> bool:
        return field in type(self._model).model_fields
