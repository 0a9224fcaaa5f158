"""N completions from any LangChain chat model, for the price of one request where the provider can.

What a provider takes is found out as it is used, and remembered: how many completions a request may ask for, and
which sampling knobs it refuses.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs

from tpo_graph.accounting import Stopwatch, no_usage
from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.policies.http import loop_safe
from tpo_graph.policies.providers import (
    Policy,
    change_models,
    completion_fields,
    hint_for,
    knob_fields,
    may_refuse_n,
    names_n,
    one_line,
    refused_knob,
    result_inside,
    smaller_n,
    takes,
    usable_knobs,
)
from tpo_graph.settings import Sampling
from tpo_graph.types import PhaseUsage

# How many completions one request may ask for: found out as a provider refuses them or returns fewer.


@dataclass(frozen=True)
class Refusal:
    """A request for several completions that the provider refused, maybe for their number.

    Attributes:
        asked: how many it asked for.
        smaller: how many to ask for next.
        is_sure: the error says that it is about their number.
    """

    asked: int
    smaller: int
    is_sure: bool

    @classmethod
    def of(cls, error: Exception, asked: int) -> "Refusal":
        """What a refused request for `asked` completions tells."""
        return cls(asked, smaller_n(error, asked), names_n(error, asked))


class RequestSize:
    """What one provider is known to take.

    Args:
        most: completions a request, at most; None when no limit is known.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._doubted = 0  # refused once without a word about the number, while fewer were taken

    def took(self, asked: int, came: int, after: Refusal | None) -> None:
        """Learn from a request that was answered.

        A limit is remembered when fewer came, when the refusal before was about the number, or when the same number
        was refused before: any other refusal may have been about this one text.

        Args:
            asked: completions that it asked for.
            came: those that came.
            after: the refusal that made it ask for fewer.
        """
        if came < asked or (after and (after.is_sure or after.asked == self._doubted)):
            self.most = min(self.most or came, came)
        elif after:
            self._doubted = after.asked
        elif asked >= self._doubted:
            self._doubted = 0


def pieces(places: Sequence[int], most: int | None) -> list[list[int]]:
    """Ascending `places` as requests: runs without a gap, of at most `most`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] + 1 == place and (most is None or len(runs[-1]) < most):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


_log = logging.getLogger(__name__)

_CUT_SHORT = frozenset({"length", "max_tokens", "max_output_tokens"})
_MOST_SEEDS = 2**31 - 1
_MOST_COPIES = 64
_OWN_ARGUMENTS = frozenset({"n", "stop", "stream", "callbacks", "tags", "metadata"})
_NOSTREAM = "nostream"  # LangGraph's tag: keeps drafts out of the message stream of the answer


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        text: what was written, "" where there was no text.
        truncated: the policy stopped at its token limit.
        ended_by_stop: the provider ended it by itself or at a stop text.
        tool_calls: it calls a tool.
    """

    text: str
    truncated: bool
    ended_by_stop: bool = True
    tool_calls: bool = False


@dataclass
class Draw:
    """What came of asking for N completions.

    Attributes:
        completions: those that came, at most N.
        usage: what they cost.
        errors: one for each completion whose request failed for good.
    """

    completions: list[Completion] = field(default_factory=list)
    usage: PhaseUsage = field(default_factory=no_usage)
    errors: list[Exception] = field(default_factory=list)


class Sampler:
    """Draws completions from one policy, and remembers what its provider takes.

    Args:
        policy: a chat model, also bound (`bind`, `with_config`) or wrapped (`with_fallbacks`, `with_retry`).
        like: a sampler of the same model with other arguments; what either of them finds out, both know.

    Raises:
        ConfigurationError: `policy` is neither.
    """

    def __init__(self, policy: Policy, *, like: "Sampler | None" = None) -> None:
        if not isinstance(policy, Runnable):
            raise ConfigurationError(
                f"The policy must be a LangChain chat model, not {type(policy).__name__!r}.",
                hint='load_policy("openai:gpt-4o-mini") makes one.',
            )
        self.policy = change_models(policy, loop_safe)
        self._model, self._bound, self._config = _unwrap(self.policy)
        own = RequestSize(None if self._model is not None and takes(self._model, "n") else 1)
        self._size: RequestSize = like._size if like is not None else own
        self._refused: set[str] = like._refused if like is not None else set()  # knobs that the provider refuses
        self._warned: set[str] = like._warned if like is not None else set()
        self._copies: dict[tuple[tuple[str, Any], ...], BaseChatModel] = {}  # the latest ones, by their fields

    @property
    def tokenize(self) -> Callable[[str], list[int]] | None:
        """The policy's own tokenizer (`custom_get_token_ids`), or None."""
        return getattr(self._model, "custom_get_token_ids", None)

    def warn_once(self, text: str) -> None:
        """Log a warning about this policy, unless it was logged before."""
        if text not in self._warned:
            self._warned.add(text)
            _log.warning(text)

    def requests_for(self, n: int) -> int:
        """The fewest requests that `n` completions take, as far as is known."""
        return len(pieces(range(n), self._size.most))

    async def draw(
        self,
        messages: Sequence[BaseMessage],
        n: int,
        sampling: Sampling,
        *,
        seed: int | None = None,
        most_requests: int | None = None,
    ) -> Draw:
        """Ask for `n` completions.

        Args:
            messages: what the policy is shown.
            n: how many, 1 or more.
            sampling: temperature and the like.
            seed: of the first completion; the others count up from it, as servers do within a request. None sends
                none.
            most_requests: after this many, what came is all. Where every one was refused, they go on until one is
                answered.

        Returns:
            What came, in the order of its seeds. Some of N failing is no error; `errors` tells.

        Raises:
            PolicyError: nothing came; the cause is the last failure, and `usage` tells what was spent.
            ConfigurationError: a knob was set that this policy has no way to take.
        """
        draw = Draw()
        came: dict[int, Completion] = {}
        missing = list(range(n))  # places among the N: each has its seed, whichever request asks for it
        most = self._size.most
        refusal: Refusal | None = None
        with Stopwatch() as watch:
            while missing:
                left = n if most_requests is None else most_requests - draw.usage["requests"]
                if left < 1 and (came or draw.errors):
                    break
                # after a refusal one request tells whether it was n that was refused
                places = pieces(missing, most)[: 1 if refusal else max(1, left)]
                knobs = usable_knobs(sampling, self._refused)
                requests = [
                    self._request(list(messages), len(piece), knobs | _seed(seed, piece[0]), sampling, draw.usage)
                    for piece in places
                ]
                refusals: list[Refusal] = []
                for piece, outcome in zip(places, await asyncio.gather(*requests, return_exceptions=True), strict=True):
                    done: Sequence[int] = piece
                    if isinstance(outcome, list):
                        done = piece[: len(outcome)]
                        came.update(zip(done, outcome, strict=False))
                        self._size.took(len(piece), len(done), refusal)
                        if refusal or len(done) < len(piece):
                            most, refusal = min(most or n, len(piece), len(done)), None
                    elif isinstance(outcome, Exception) and self._drops_knob(outcome, knobs.keys() - sampling.explicit):
                        done = ()
                    elif len(piece) > 1 and isinstance(outcome, Exception) and may_refuse_n(outcome):
                        refusals.append(Refusal.of(outcome, len(piece)))
                        done = ()
                    elif isinstance(outcome, ConfigurationError) or not isinstance(outcome, Exception):
                        raise outcome
                    else:
                        # a probe of one that fails as well: it was not n, and nothing else will help
                        done = missing if refusal else piece
                        draw.errors += [outcome] * len(done)
                    missing = [place for place in missing if place not in done]
                if refusals:
                    refusal = min(refusals, key=lambda each: each.smaller)
                    most = refusal.smaller
        draw.completions = [came[place] for place in sorted(came)]
        draw.usage["seconds"] = watch.seconds
        if not draw.completions:
            raise _failed(draw, str(getattr(self._model, "openai_api_base", None) or "")) from draw.errors[-1]
        return draw

    def _drops_knob(self, error: Exception, knobs: AbstractSet[str]) -> bool:
        """Whether the provider says that it does not take one of `knobs`, which is then never sent again."""
        knob = refused_knob(error, knobs)
        if knob is not None:
            self._refused.add(knob)
        return knob is not None

    async def _request(
        self, messages: list[BaseMessage], n: int, knobs: Mapping[str, float], sampling: Sampling, usage: PhaseUsage
    ) -> list[Completion]:
        usage["requests"] += 1
        config = merge_configs(ensure_config(), self._config, {"tags": [_NOSTREAM]})

        def told(model: BaseChatModel) -> BaseChatModel:
            return self._copy(model, knob_fields(model, knobs, sampling.explicit) | completion_fields(model, n))

        if self._model is None:
            stop = {"stop": list(sampling.stop)} if sampling.stop else {}
            message = await change_models(self.policy, told).ainvoke(messages, config, **stop)
            if not isinstance(message, AIMessage):
                raise ConfigurationError(f"The policy returned {type(message).__name__!r}, not a message.")
            _count(usage, [message], None)
            return [_completion(ChatGeneration(message=message))]
        result: LLMResult | None
        try:
            result = await told(self._model).agenerate(
                [messages],
                stop=list(sampling.stop) or self._bound.get("stop"),
                callbacks=config.get("callbacks"),
                tags=config.get("tags"),
                metadata=config.get("metadata"),
                **{name: value for name, value in self._bound.items() if name not in _OWN_ARGUMENTS},
            )
        except Exception as error:
            result = result_inside(error)
            if result is None:
                raise
        generations = [made for made in result.generations[0] if isinstance(made, ChatGeneration)]
        _count(usage, [made.message for made in generations], result.llm_output)
        if not generations:
            raise PolicyError("The provider returned no completion.")
        return [_completion(made) for made in generations]

    def _copy(self, model: BaseChatModel, fields: dict[str, Any]) -> BaseChatModel:  # Any: values of any field
        """A copy of the model with these fields, kept: LangChain describes a model to callbacks once an instance."""
        if model is not self._model:
            return model.model_copy(update=fields)
        key = tuple(fields.items())
        copy = self._copies.pop(key, None) or model.model_copy(update=fields)
        self._copies[key] = copy
        if len(self._copies) > _MOST_COPIES:
            with contextlib.suppress(StopIteration, KeyError):
                del self._copies[next(iter(self._copies))]
        return copy


def as_sampler(policy: Policy | Sampler) -> Sampler:
    """The policy's sampler: `policy` itself where it is one already.

    Args:
        policy: a chat model or a sampler. A sampler that several nodes share lets each of them use what another has
            found out about the provider.

    Raises:
        ConfigurationError: `policy` is neither.
    """
    return policy if isinstance(policy, Sampler) else Sampler(policy)


def _failed(draw: Draw, address: str) -> PolicyError:
    cause = draw.errors[-1]
    if isinstance(cause, PolicyError):
        cause.usage = draw.usage
        return cause
    return PolicyError(f"The policy failed: {one_line(cause)}.", hint=hint_for(cause, address), usage=draw.usage)


def _unwrap(policy: Policy) -> tuple[BaseChatModel | None, dict[str, Any], RunnableConfig]:  # Any: bound arguments
    """The chat model inside `bind` and `with_config`, its bound arguments, and its config; None when it is not one."""
    bound: dict[str, Any] = {}
    config: RunnableConfig = {}
    inner: Any = policy  # Any: RunnableBinding.bound is a Runnable of any kind
    while isinstance(inner, RunnableBinding):
        bound = {**inner.kwargs, **bound}
        config = merge_configs(inner.config, config)
        inner = inner.bound
    return (inner, bound, config) if isinstance(inner, BaseChatModel) else (None, {}, {})


def _seed(first: int | None, place: int) -> dict[str, int]:
    """The knob `seed` of a request whose first completion has this place among the N."""
    return {} if first is None else {"seed": (first + place) % _MOST_SEEDS}


def _completion(generation: ChatGeneration) -> Completion:
    message = generation.message
    told = {**(generation.generation_info or {}), **message.response_metadata}
    finish = str(told.get("finish_reason") or told.get("stop_reason") or told.get("done_reason") or "").lower()
    return Completion(
        text=_whole_characters(message.text),
        truncated=finish in _CUT_SHORT,
        ended_by_stop=finish not in _CUT_SHORT,
        tool_calls=bool(getattr(message, "tool_calls", None)),
    )


def _whole_characters(text: str) -> str:
    """The text with U+FFFD for half a character, as servers that cut at a token may send: no request can hold one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: PhaseUsage, messages: Sequence[BaseMessage], llm_output: Mapping[str, Any] | None) -> None:
    """Add a request's tokens. With n > 1 each message repeats the usage of all; `llm_output` has it once."""
    told = (llm_output or {}).get("token_usage") or {}
    if told.get("prompt_tokens") is not None or told.get("completion_tokens") is not None:
        usage["input_tokens"] += told.get("prompt_tokens") or 0
        usage["output_tokens"] += told.get("completion_tokens") or 0
        return
    each = [message.usage_metadata for message in messages if isinstance(message, AIMessage) and message.usage_metadata]
    if not each:
        return
    usage["input_tokens"] += each[0]["input_tokens"]
    repeated = len(each) > 1 and all(one == each[0] for one in each)
    usage["output_tokens"] += each[0]["output_tokens"] if repeated else sum(one["output_tokens"] for one in each)
