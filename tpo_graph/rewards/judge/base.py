"""What judges share: a chat model is asked for one of a few labels, and how likely it is to give each of them.

Methods of asking, best first: log probabilities of the verdict's token (20 of them, or the 5 that some providers
allow), structured output, a plain answer. Which one works is found out with the first request and remembered. An answer
without a verdict is asked for again by the methods that follow.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.constants import TAG_NOSTREAM

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.policies.http import loop_safe
from tpo_graph.policies.limits import SYSTEM_ROLE, fold_system, refused_part
from tpo_graph.policies.load import load_policy
from tpo_graph.policies.providers import (
    completion_fields,
    knob_field,
    limit_names,
    partial_completions,
    rename_limit,
    takes,
)
from tpo_graph.policies.retries import OwnLimits, send, without_retries
from tpo_graph.policies.tracing import traced
from tpo_graph.rewards.base import ConcurrencyLimit, DetailedReward, gather
from tpo_graph.rewards.judge.prompts import JudgePrompt, Method, load_judge_prompt
from tpo_graph.rewards.judge.verdicts import NoVerdictError
from tpo_graph.types import Options, PhaseUsage

_JUDGE_OPTIONS = frozenset({"preference", "prompt", "samples", "max_concurrency"})
_TOP_LOGPROBS: Mapping[Method, int] = {"logprobs": 20, "few_logprobs": 5}
_ANSWER_TOKENS = 16  # the verdict may stand in marks, or behind a word or two


class ChatModelJudge(DetailedReward):
    """What a judge that grades and one that compares share: a chat model that is asked for one of a few labels.

    A subclass says how rewards follow from their probabilities.

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
        self.labels = self._prompt.verdicts.labels
        self._samples = samples
        self._limit = ConcurrencyLimit(max_concurrency)
        if isinstance(model, str):
            model = load_policy(model)
        if not isinstance(model, BaseChatModel):
            raise ConfigurationError(
                f"The judge must be a LangChain chat model, not {type(model).__name__!r}.",
                hint='load_policy("openai:gpt-4o-mini") makes one; what is bound to a model can be its own argument.',
            )
        model = loop_safe(model)
        self._model, self._own = traced(without_retries(model)), OwnLimits.of(model)
        self._finding_out = ConcurrencyLimit(1)  # many at once would all be refused
        self._lock = threading.Lock()  # loops of several threads may share this
        self._total = no_usage()
        self._refused: set[str] = set()  # parts of requests that the provider does not take
        # a verdict that the prompt has its own reader for stands at the end of an answer of any length
        self._answer_tokens = None if self._prompt.reader else _ANSWER_TOKENS
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
            RewardError: the model failed, or gave no verdict.
        """
        if self.method is None:
            async with self._finding_out.slot():
                if self.method is None:  # another request may have found it out meanwhile
                    return await self._ask_until_read(messages, usage)
        return await self._ask_until_read(messages, usage)

    async def _ask_until_read(self, messages: Sequence[BaseMessage], usage: PhaseUsage) -> dict[str, float]:
        """Ask by one method after the other, from the one that is known to work, until an answer holds a verdict."""
        methods = self._prompt.methods
        is_known = self.method is not None
        if self.method is not None:
            methods = methods[methods.index(self.method) :]
        answer = ""
        while methods:
            method, *others = methods
            without_logprobs = [other for other in others if other not in _TOP_LOGPROBS]
            limit, refused = self._answer_tokens, frozenset(self._refused)
            shown = fold_system(messages) if SYSTEM_ROLE in refused else messages
            try:
                probabilities = await self._ask(method, shown, usage)
            except NoVerdictError as error:
                answer = error.answer
                # a whole text would be the same when it is asked for without a schema or log probabilities
                is_whole = method not in _TOP_LOGPROBS or self._prompt.reader is not None
                methods = [] if answer and is_whole else without_logprobs
                if method in _TOP_LOGPROBS and limit and not answer:
                    # it thinks first, and may write all of it; each of many tokens then comes with a few alternatives
                    self._answer_tokens, is_known = None, False
                    methods = ["few_logprobs", *without_logprobs]
            except Exception as error:  # each provider has its own
                failure = ProviderFailure.of(error)
                may_differ = failure.kind in ("refused", "unsupported")
                part = refused_part(
                    failure,
                    refused,
                    knobs={"temperature"},
                    limit_names=limit_names(self._model),
                    messages=messages,
                )
                if part is not None:
                    self._refused.add(part)
                elif others and (_refuses(method, failure) or (not is_known and may_differ)):
                    methods, is_known = others, False
                else:
                    hint = "Lower max_concurrency=, or wait: the provider limits the rate or the quota."
                    hint = hint if failure.status == 429 else failure.hint()
                    raise RewardError(f"The judge failed: {failure.summary}", hint=hint) from error
            else:
                if probabilities is not None:
                    # an answer that could not be read says little about the method when others could
                    self.method = self.method if is_known else method
                    return probabilities
                # log probabilities were not refused, and there are none: fewer of them would not come either
                methods, is_known = without_logprobs, False
        scale = f"from {self.labels[0]} to {self.labels[-1]}" if self.labels else "that is a number"
        raise RewardError(
            f"The judge answered {answer[:80]!r}, which holds no verdict {scale}."
            if answer
            else "The judge's answer is empty, or holds nothing but thinking.",
            hint="Take a model that follows instructions better, or another prompt."
            if answer
            else "Let it write more (max_tokens of the judge's model), or switch its thinking off.",
        )

    async def _ask(self, method: Method, messages: Sequence[BaseMessage], usage: PhaseUsage) -> dict[str, float] | None:
        """Probabilities by one method; None where it is one with log probabilities, and there are none.

        Raises:
            NoVerdictError: the answer holds none.
        """
        verdicts = self._prompt.verdicts
        if method in _TOP_LOGPROBS:
            if not (takes(self._model, "logprobs") and takes(self._model, "top_logprobs")):
                return None
            fields: dict[str, Options] = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS[method]}
            length_field = knob_field(self._model, "max_new_tokens")
            if length_field and self._answer_tokens:
                fields[length_field] = self._answer_tokens
            return verdicts.probabilities(await self._invoke(self._copy(0.0, fields), messages, usage))
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
        unreadable: list[NoVerdictError] = []

        async def draw() -> dict[str, float] | None:
            answer = await self._invoke(model, messages, usage)
            try:
                if isinstance(answer, dict) and isinstance(answer["parsed"], Mapping):
                    return verdicts.certain(str(answer["parsed"].get("verdict")))
                # a server may not know schemas, and the verdict be there
                return verdicts.certain((answer["raw"] if isinstance(answer, dict) else answer).text)
            except NoVerdictError as error:
                unreadable.append(error)
                return None

        drawn = [sample for sample in await gather(draw() for _ in range(self._samples)) if sample is not None]
        if 2 * len(drawn) < self._samples:
            raise unreadable[0]
        shares: dict[str, float] = {}
        for sample in drawn:
            for label, share in sample.items():
                shares[label] = shares.get(label, 0.0) + share / len(drawn)
        return shares

    async def _invoke(self, model: Any, messages: Sequence[BaseMessage], usage: PhaseUsage) -> Any:
        """One request, which counts each time that it is sent, whether or not it succeeds."""

        def ask() -> Any:
            self._count(usage, requests=1)
            return model.ainvoke(list(messages), {"tags": [TAG_NOSTREAM]})

        async with self._limit.slot():
            try:
                answer = await send(ask, self._own)
            except Exception as error:  # each provider has its own
                partial = partial_completions(error)
                if partial is None:
                    raise
                tokens = (partial.llm_output or {}).get("token_usage") or {}
                input_tokens, output_tokens = (tokens.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion"))
                self._count(usage, input_tokens=input_tokens, output_tokens=output_tokens)
                return AIMessage(partial.generations[0][0].text)
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
        field = knob_field(self._model, "temperature")
        if field and "temperature" not in self._refused:
            fixed[field] = temperature
        return self._model.model_copy(update=rename_limit(self._model, {**fixed, **fields}, self._refused))


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
    if "prompt" in of_judge:
        of_judge["prompt"] = load_judge_prompt(of_judge["prompt"])
    return {"model": load_policy(name, **{key: options[key] for key in options.keys() - of_judge.keys()}), **of_judge}


def _refuses(method: Method, failure: ProviderFailure) -> bool:
    """Whether a provider says that it can't do what a method needs, with 403 or 404 as with 400."""
    words = f"{failure.param} {failure.message}".lower()
    if method in _TOP_LOGPROBS:
        return "logprob" in words or "parameters" in words
    return method == "structured" and any(word in words for word in ("response_format", "schema", "parameters"))
