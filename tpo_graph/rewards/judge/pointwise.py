"""A chat model as reward model: it grades every response from 1 to 9."""

import math
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.policies.http import loop_safe
from tpo_graph.rewards.base import ConcurrencyLimit, PartialRewardModel, PartialScores, RunContext, gather
from tpo_graph.rewards.judge.prompts import POINTWISE, JudgePrompt, joined_rubric, render_conversation
from tpo_graph.types import PhaseUsage

# What the errors of chat model providers mean for a judge: each LangChain integration has its own.

_REFUSED = frozenset({400, 422, 501})


def is_refusal(error: Exception) -> bool:
    """Whether an error may be about the way of asking, so that another way may work.

    A ValueError that comes again is one; see `may_pass`.
    """
    return isinstance(error, TypeError | ValueError | NotImplementedError) or _status(error) in _REFUSED


def may_pass(error: Exception) -> bool:
    """Whether the same request may go through: a ValueError is a refusal, or one answer that was cut or no JSON."""
    return isinstance(error, ValueError) and _status(error) is None


def names_knob(error: Exception, knob: str) -> bool:
    """Whether a provider refused a request and named this field of it."""
    return _status(error) in _REFUSED and re.search(rf"\b{knob}\b", str(error)) is not None


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def judge_failed(error: Exception) -> RewardError:
    """The error to raise for one of a provider's."""
    said = " ".join(str(error).split()) or type(error).__name__
    hints: Mapping[int | None, str] = {
        401: "Check the API key.",
        403: "Check the API key.",
        404: "Check the model's name and the address.",
        429: "Lower max_concurrency=, or wait: the provider limits the rate or the quota.",
    }
    return RewardError(f"The judge failed: {type(error).__name__}: {said}", hint=hints.get(_status(error), ""))


# From a chat model's answer to probabilities of the possible verdicts.

LEAST_MASS = 0.5


def from_logprobs(message: AIMessage, labels: Sequence[str]) -> dict[str, float] | None:
    """Probabilities from the log probabilities of the first token that is not blank.

    Args:
        message: the answer.
        labels: the possible verdicts, each one token.

    Returns:
        Probabilities by label, which sum to 1; None when the answer has no log probabilities.

    Raises:
        RewardError: when the labels have less than half of the probability: the model was about to write something
            else, and what is left would say little about the response.
    """
    logprobs = message.response_metadata.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not tokens:
        return None
    token = next((one for one in tokens if str(one.get("token", "")).strip()), tokens[0])
    top = token.get("top_logprobs") or ()
    if not top:
        return None
    masses = dict.fromkeys(labels, 0.0)
    for one in top:
        # " 7" and "7" are tokens of their own for the same verdict
        label = str(one.get("token", "")).strip()
        if label in masses and one.get("logprob") is not None:
            masses[label] += math.exp(one["logprob"])
    total = sum(masses.values())
    if total < LEAST_MASS:
        raise RewardError(
            f"The judge gives only {total:.0%} of its probability to a verdict ({labels[0]} to {labels[-1]}); its "
            f"answer begins with {str(token.get('token', ''))!r}.",
            hint="It may think before it answers: switch that off, take another model, or another prompt.",
        )
    return {label: mass / total for label, mass in masses.items()}


def from_parsed(parsed: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:  # Any: JSON that a model wrote
    """Probabilities from structured output, all on one label.

    Raises:
        RewardError: it has no verdict, or one that is not a label.
    """
    return _certain(str(parsed.get("verdict")).strip(), labels, shown=parsed)


def from_text(text: str, labels: Sequence[str]) -> dict[str, float]:
    """Probabilities from a plain answer, which must be a label and nothing else but a final dot.

    Raises:
        RewardError: it is something else.
    """
    return _certain(text.strip().removesuffix(".").strip("*` \n"), labels, shown=text)


def _certain(verdict: str, labels: Sequence[str], *, shown: object) -> dict[str, float]:
    if verdict not in labels:
        text = str(shown)
        raise RewardError(
            f"The judge answered {text[:80]!r}, which is no verdict from {labels[0]} to {labels[-1]}.",
            hint="Take a model that follows instructions better, or one with log probabilities or structured output.",
        )
    return {label: float(label == verdict) for label in labels}


# Asks a chat model for one of a few verdicts, in the best way that its provider has.
#
# Ways, best first: log probabilities of the first token (20 of them, or the 5 that some providers allow), structured
# output, a plain answer. Which one works is found out with the first request and remembered.

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


_GRADES = tuple("123456789")


class JudgeReward(PartialRewardModel):
    """Grades with any chat model, in one request a response.

    The judge writes no reasoning: its grade is the expectation over the digits that it might write next, weighted with
    their probabilities (`top_logprobs`), at temperature 0. So two responses that would both get a 7 still differ.
    Where a provider tells no log probabilities, the grade comes from structured output.

    Example:
        >>> import asyncio
        >>> from langchain_core.messages import HumanMessage
        >>> from tpo_graph.testing import ScriptedChatModel
        >>> judge = JudgeReward(ScriptedChatModel(["7", "3"]), preference="Short is better.", max_concurrency=1)
        >>> asyncio.run(judge.score([HumanMessage("Why?")], ["Because.", "That is a long story."]))
        [7.0, 3.0]

    Args:
        model: the judge.
        preference: what a good response is, in words; it is the rubric, and the run's preference is added to it. With
            neither there is a general one.
        prompt: what the judge is told, in place of this package's own words.
        samples: grades to take the mean of where log probabilities are missing.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument that can't be used.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        preference: str = "",
        prompt: JudgePrompt = POINTWISE,
        samples: int = 1,
        max_concurrency: int = 16,
    ) -> None:
        if prompt.pairwise:
            raise ConfigurationError("The prompt of a judge that grades must not be pairwise.")
        self.preference = preference.strip()
        self._prompt = prompt
        self._verdicts = Verdicts(model, _GRADES, samples=samples, max_concurrency=max_concurrency)

    @property
    def usage(self) -> PhaseUsage:
        """Requests and tokens of all calls so far; its seconds stay 0."""
        return self._verdicts.usage

    async def score_part(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> PartialScores:
        """Grade every response as the next assistant turn of the conversation; see `PartialRewardModel.score_part`.

        Returns:
            A float from 1 to 9 for each response; NaN where the judge gave no grade.

        Raises:
            RewardError: it graded none of them.
        """
        shared = {
            "rubric": joined_rubric(self.preference, run.preference),
            "conversation": render_conversation(messages),
        }
        texts = list(dict.fromkeys(responses))
        failures: list[RewardError] = []

        async def grade(text: str) -> float:
            request = self._prompt.render({**shared, "response": text})
            try:
                verdict = await self._verdicts.ask(request, run.report.used)
            except RewardError as error:
                failures.append(error)
                run.report.reasons[text] = error.message
                return math.nan
            return sum(int(label) * share for label, share in verdict.items())

        grades = await gather(grade(text) for text in texts)
        if texts and len(failures) == len(texts):
            raise failures[-1]
        by_text = dict(zip(texts, grades, strict=True))
        return [by_text[response] for response in responses]
