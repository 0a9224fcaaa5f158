"""What judges share: a chat model is asked for one of a few labels, and how likely it is to give each of them.

Methods of asking, best first: log probabilities of the first token (20 of them, or the 5 that some providers allow),
structured output, a plain answer. Which one works is found out with the first request and remembered.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.constants import TAG_NOSTREAM

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.policies.http import loop_safe
from tpo_graph.policies.load import load_policy
from tpo_graph.policies.providers import completion_fields, knob_field, takes
from tpo_graph.rewards.base import ConcurrencyLimit, DetailedReward, gather
from tpo_graph.rewards.judge.prompts import JudgePrompt
from tpo_graph.types import Options, PhaseUsage

Method: TypeAlias = Literal["logprobs", "few_logprobs", "structured", "text"]
"""How a label is asked for."""

_JUDGE_OPTIONS = frozenset({"preference", "prompt", "samples", "max_concurrency"})
_TOP_LOGPROBS: Mapping[Method, int] = {"logprobs": 20, "few_logprobs": 5}
_LEAST_MASS = 0.5  # below it, what the labels have of the probability says little about the response
_ANSWER_TOKENS = 4  # some models begin with a blank token


class ChatModelJudge(DetailedReward):
    """What a judge that grades and one that compares share: a chat model that is asked for one of a few labels.

    A subclass says what the labels are and how rewards follow from their probabilities.

    Args:
        model: any LangChain chat model, or the name of one as `load_policy` takes it, which is loaded at once.
        preference: what a good response is, in words; it is the rubric, and the run's preference is added to it. With
            neither there is a general one.
        prompt: what the judge is shown; None for this package's own words.
        samples: answers to take the mean of where log probabilities are missing; drawn at temperature 1 when there are
            several. Up to half of them may be unreadable.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: the model is not a chat model, the prompt is one for the other kind of judge, or a number is
            below 1.
    """

    labels: ClassVar[tuple[str, ...]]
    """The possible answers, each one token."""
    default_prompt: ClassVar[JudgePrompt]

    def __init__(
        self,
        model: BaseChatModel | str,
        *,
        preference: str = "",
        prompt: JudgePrompt | None = None,
        samples: int = 1,
        max_concurrency: int = 16,
    ) -> None:
        self.preference = preference.strip()
        self._prompt = prompt or self.default_prompt
        if self._prompt.pairwise != self.default_prompt.pairwise:
            needed = "JudgePrompt(pairwise=True)" if self.default_prompt.pairwise else "one that is not pairwise"
            raise ConfigurationError(f"{type(self).__name__} needs another prompt: {needed}.")
        if samples < 1:
            raise ConfigurationError(f"samples={samples}: at least 1 verdict is needed.")
        self._samples = samples
        self._limit = ConcurrencyLimit(max_concurrency)
        if isinstance(model, str):
            model = load_policy(model)
        if not isinstance(model, BaseChatModel):
            raise ConfigurationError(
                f"The judge must be a LangChain chat model, not {type(model).__name__!r}.",
                hint='load_policy("openai:gpt-4o-mini") makes one; what is bound to a model can be its own argument.',
            )
        self._model = loop_safe(model)
        self._finding_out = ConcurrencyLimit(1)  # many at once would all be refused
        self._lock = threading.Lock()  # loops of several threads may share this
        self._total = no_usage()
        self._temperature_field = knob_field(self._model, "temperature")
        self.method: Method | None = None

    @property
    def usage(self) -> PhaseUsage:
        """Requests and tokens of all calls so far; its seconds stay 0."""
        with self._lock:
            return PhaseUsage(**self._total)

    async def _probabilities(self, messages: Sequence[BaseMessage], usage: PhaseUsage) -> dict[str, float]:
        """Probabilities of the labels, which sum to 1.

        Args:
            messages: the request.
            usage: what it costs is added here, also when it fails.

        Raises:
            RewardError: the model failed, or gave none of the labels.
        """
        method = self.method
        if method is None:
            async with self._finding_out.slot():
                method = self.method  # another request may have found it out meanwhile
                if method is None:
                    return await self._find_method(messages, usage)
        try:
            probabilities = await self._ask(method, messages, usage)
        except RewardError:
            raise
        except Exception as error:  # each provider has its own
            raise _judge_failed(ProviderFailure.of(error)) from error
        if probabilities is None:
            raise RewardError("The judge returned log probabilities before, and now it returns none.")
        return probabilities

    async def _find_method(self, messages: Sequence[BaseMessage], usage: PhaseUsage) -> dict[str, float]:
        """Ask by one method after the other until the provider takes one."""
        methods: list[Method] = list(get_args(Method))
        repeated: set[Method] = set()
        while True:
            method = methods.pop(0)
            try:
                probabilities = await self._ask(method, messages, usage)
            except RewardError:
                self.method = method  # the provider takes it; what the model answered is another matter
                raise
            except Exception as error:  # each provider has its own for what it does not take
                failure = ProviderFailure.of(error)
                if self._temperature_field and failure.refused_knob({"temperature"}):
                    self._temperature_field = None
                    methods.insert(0, method)
                elif (failure.kind == "unsupported" or failure.is_unreadable) and method not in repeated:
                    repeated.add(method)  # it may have been one answer that was cut or no JSON
                    methods.insert(0, method)
                elif not methods or not (failure.kind in ("refused", "unsupported") or failure.is_unreadable):
                    raise _judge_failed(failure) from error
                continue
            if probabilities is not None:
                self.method = method
                return probabilities
            # log probabilities were not refused, and there are none: fewer of them would not come either
            methods = [other for other in methods if other not in _TOP_LOGPROBS]

    async def _ask(self, method: Method, messages: Sequence[BaseMessage], usage: PhaseUsage) -> dict[str, float] | None:
        """Probabilities by one method; None where it is one with log probabilities, and there are none."""
        if method in _TOP_LOGPROBS:
            if not (takes(self._model, "logprobs") and takes(self._model, "top_logprobs")):
                return None
            fields: dict[str, Options] = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS[method]}
            if length_field := knob_field(self._model, "max_new_tokens"):
                fields[length_field] = _ANSWER_TOKENS
            return _from_logprobs(await self._invoke(self._copy(0.0, fields), messages, usage), self.labels)
        model: Any = self._copy(0.0 if self._samples == 1 else 1.0, {})
        if method == "structured":
            schema = {
                "title": "verdict",
                "description": "The verdict.",
                "type": "object",
                "properties": {"verdict": {"type": "string", "enum": list(self.labels)}},
                "required": ["verdict"],
                "additionalProperties": False,
            }
            model = model.with_structured_output(schema, include_raw=True)
        unreadable: list[RewardError] = []

        async def draw() -> dict[str, float] | None:
            answer = await self._invoke(model, messages, usage)
            message = answer
            try:
                if isinstance(answer, dict):
                    if isinstance(answer["parsed"], Mapping):
                        return _certain(str(answer["parsed"].get("verdict")).strip(), self.labels, answer["parsed"])
                    message = answer["raw"]  # a server may not know schemas, and the label be there
                return _certain(message.text.strip().removesuffix(".").strip("*` \n"), self.labels, message.text)
            except RewardError as error:
                unreadable.append(error)
                return None

        drawn = [sample for sample in await gather(draw() for _ in range(self._samples)) if sample is not None]
        if 2 * len(drawn) < self._samples:
            raise unreadable[0]
        return {label: sum(sample[label] for sample in drawn) / len(drawn) for label in self.labels}

    async def _invoke(self, model: Any, messages: Sequence[BaseMessage], usage: PhaseUsage) -> Any:
        """One request, counted whether or not it succeeds."""
        async with self._limit.slot():
            self._count(usage, requests=1)
            answer = await model.ainvoke(list(messages), {"tags": [TAG_NOSTREAM]})
        message = answer["raw"] if isinstance(answer, dict) else answer
        if tokens := getattr(message, "usage_metadata", None):
            self._count(usage, input_tokens=tokens["input_tokens"], output_tokens=tokens["output_tokens"])
        return answer

    def _count(self, usage: PhaseUsage, *, requests: int = 0, input_tokens: int = 0, output_tokens: int = 0) -> None:
        with self._lock:
            for record in (usage, self._total):
                record["requests"] += requests
                record["input_tokens"] += input_tokens
                record["output_tokens"] += output_tokens

    def _copy(self, temperature: float, fields: Mapping[str, Options]) -> BaseChatModel:
        """The model with these fields; a copy, because every chat model reads its fields and few take arguments."""
        fixed = completion_fields(self._model, 1)
        if not temperature:
            del fixed["cache"]  # several answers must not be one several times; a single one may come from a cache
        if self._temperature_field:
            fixed[self._temperature_field] = temperature
        return self._model.model_copy(update={**fixed, **fields})


def judge_arguments(scheme: str, name: str, options: Mapping[str, Options]) -> dict[str, Options]:
    """The arguments of a judge that is asked for by name, with its chat model loaded.

    Args:
        scheme: of the judge, for messages.
        name: of the chat model.
        options: of the judge and of the chat model.
    """
    if not name:
        raise ConfigurationError(f"'{scheme}:' names no chat model.", hint=f"For example {scheme}:openai:gpt-4o-mini.")
    of_judge = {key: options[key] for key in _JUDGE_OPTIONS & options.keys()}
    return {"model": load_policy(name, **{key: options[key] for key in options.keys() - of_judge.keys()}), **of_judge}


def _judge_failed(failure: ProviderFailure) -> RewardError:
    hint = "Lower max_concurrency=, or wait: the provider limits the rate or the quota."
    return RewardError(f"The judge failed: {failure.summary}", hint=hint if failure.status == 429 else failure.hint())


def _from_logprobs(message: AIMessage, labels: Sequence[str]) -> dict[str, float] | None:
    """Probabilities from the log probabilities of the first token that is not blank; None where there are none."""
    logprobs = message.response_metadata.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not tokens:
        return None
    first = next((token for token in tokens if str(token.get("token", "")).strip()), tokens[0])
    alternatives = first.get("top_logprobs") or ()
    if not alternatives:
        return None
    masses = dict.fromkeys(labels, 0.0)
    for alternative in alternatives:
        # " 7" and "7" are tokens of their own for the same label
        label = str(alternative.get("token", "")).strip()
        if label in masses and alternative.get("logprob") is not None:
            masses[label] += math.exp(alternative["logprob"])
    total = sum(masses.values())
    if total < _LEAST_MASS:
        raise RewardError(
            f"The judge gives only {total:.0%} of its probability to a verdict ({labels[0]} to {labels[-1]}); its "
            f"answer begins with {str(first.get('token', ''))!r}.",
            hint="It may think before it answers: switch that off, take another model, or another prompt.",
        )
    return {label: mass / total for label, mass in masses.items()}


def _certain(verdict: str, labels: Sequence[str], answer: object) -> dict[str, float]:
    """Probabilities that are all on one label."""
    if verdict not in labels:
        raise RewardError(
            f"The judge answered {str(answer)[:80]!r}, which is not a verdict from {labels[0]} to {labels[-1]}.",
            hint="Take a model that follows instructions better, or one with log probabilities or structured output.",
        )
    return {label: float(label == verdict) for label in labels}
