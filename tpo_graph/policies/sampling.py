"""N completions from any LangChain chat model, for the price of one request where the provider can.

What a provider takes is found out as it is used, and remembered in its `ProviderLimits`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.constants import TAG_NOSTREAM

from tpo_graph.accounting import Stopwatch, no_usage, plus
from tpo_graph.errors import BudgetError, ConfigurationError, PolicyError, TPOError
from tpo_graph.policies.completions import CompletionClient, with_limits, with_thinking_tokens
from tpo_graph.policies.failures import ProviderFailure, policy_failed
from tpo_graph.policies.limits import SYSTEM_ROLE, ProviderLimits, Refusal, fold_system, refused_part
from tpo_graph.policies.providers import Policy, knob_fields, takes
from tpo_graph.policies.reading import Completion, read_completion
from tpo_graph.policies.retries import before_deadline
from tpo_graph.settings import Sampling
from tpo_graph.types import Options, PhaseUsage

_log = logging.getLogger(__name__)

_KNOBS = ("temperature", "top_p", "max_new_tokens")
_MOST_SEEDS = 2**31 - 1
_SEEDS_OF_A_DRAW = 1_024  # N at most
_MORE_TOKENS = 2_048
_MOST_THINKING_TOKENS = 32_768


@dataclass
class Draw:
    """The result of asking for N completions.

    Attributes:
        completions: at most N, in the order of their seeds.
        usage: what they cost.
        errors: one for each completion whose request failed for good.
        replaced: completions whose token limit went into reasoning, so that others were drawn in their place.
    """

    completions: list[Completion] = field(default_factory=list)
    usage: PhaseUsage = field(default_factory=no_usage)
    errors: list[Exception] = field(default_factory=list)
    replaced: list[Completion] = field(default_factory=list)


class Sampler:
    """Draws completions from one policy, and remembers what its provider takes.

    Args:
        policy: a chat model, also bound (`bind`, `with_config`) or wrapped (`with_fallbacks`, `with_retry`).
        like: a sampler of the same model with other arguments; the two share what they find out.

    Raises:
        ConfigurationError: `policy` is not a LangChain chat model.
    """

    def __init__(self, policy: Policy, *, like: "Sampler | None" = None) -> None:
        if not isinstance(policy, Runnable):
            raise ConfigurationError(
                f"The policy must be a LangChain chat model, not {type(policy).__name__!r}.",
                hint='load_policy("openai:gpt-4o-mini") makes one.',
            )
        self._client = CompletionClient(policy)
        takes_n = self._client.model is not None and takes(self._client.model, "n")
        own_limits = ProviderLimits(takes_n)
        self._limits: ProviderLimits = like._limits if like is not None else own_limits

    @property
    def policy(self) -> Policy:
        """The policy, with HTTP clients that can be used from one event loop after another."""
        return self._client.policy

    @property
    def tokenize(self) -> Callable[[str], list[int]] | None:
        """The policy's own tokenizer (`custom_get_token_ids`), or None."""
        return getattr(self._client.model, "custom_get_token_ids", None)

    def warn_once(self, text: str) -> None:
        """Log a warning about this policy, unless it was logged before."""
        if text not in self._limits.warnings:
            self._limits.warnings.add(text)
            _log.warning(text)

    def requests_for(self, n: int) -> int:
        """The fewest requests that `n` completions take, as far as is known."""
        return len(_split(range(n), self._limits.most_completions))

    async def draw(
        self,
        messages: Sequence[BaseMessage],
        n: int,
        sampling: Sampling,
        *,
        seed: int | None = None,
        most_requests: int | None = None,
    ) -> Draw:
        """Ask for `n` completions, and once more for those whose token limit went into reasoning.

        They are asked for with twice the limit and 2,048 tokens. Later requests have those tokens from the start, up to
        32,768 more than `max_new_tokens`.

        Args:
            messages: what the policy is shown.
            n: how many, 1 or more.
            sampling: temperature and the like.
            seed: of the first completion; the others count up from it, as servers do within a request. None sends
                none.
            most_requests: no request is sent after this many, even if completions are missing. Where every one was
                refused, requests go on until one is answered.

        Returns:
            The completions, what they cost, and the errors of those that failed: some of N failing is not an error.

        Raises:
            PolicyError: there is no completion; the cause is the last failure, and `usage` is what was spent.
            BudgetError: the run's `budget_seconds` were over before there was one.
            ConfigurationError: a knob was set that this policy has no way to take.
        """
        allowance = max(sampling.thinking_tokens, self._limits.thinking_tokens)
        try:
            draw = await self._draw(messages, n, sampling, allowance, seed, most_requests)
        except PolicyError as error:
            cause = error.__cause__
            is_too_long = isinstance(cause, Exception) and ProviderFailure.of(cause).is_too_long
            if allowance == sampling.thinking_tokens or not is_too_long:
                raise
            # this prompt leaves less room for reasoning than that of another phase
            used = error.usage or no_usage()
            left = None if most_requests is None else most_requests - used["requests"]
            draw = await self._draw(messages, n, sampling, sampling.thinking_tokens, seed, left)
            return replace(draw, usage=plus(used, draw.usage))
        lost = [completion for completion in draw.completions if completion.lost_to_thinking and completion.limit]
        left = None if most_requests is None else most_requests - draw.usage["requests"]
        more = _more_thinking_tokens(allowance, lost[0].limit) if lost else 0
        if not more or (left is not None and left < 1):
            return draw
        seed = None if seed is None else seed + _SEEDS_OF_A_DRAW
        try:
            again = await self._draw(messages, len(lost), sampling, more, seed, left)
        except (PolicyError, BudgetError) as error:  # the first answers are still there
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            usage = plus(draw.usage, error.usage or no_usage())
            return replace(draw, usage=usage, errors=[*draw.errors, cause])
        self._limits.thinking_tokens = max(more, self._limits.thinking_tokens)
        return Draw(
            [completion for completion in draw.completions if not completion.lost_to_thinking] + again.completions,
            plus(draw.usage, again.usage),
            draw.errors + again.errors,
            lost,
        )

    async def reply(
        self,
        messages: Sequence[BaseMessage],
        sampling: Sampling,
        *,
        seed: int | None = None,
        usage: PhaseUsage,
        most_requests: int | None = None,
    ) -> AIMessage:
        """The whole message that the policy answers by itself: calls of its tools, or a text.

        Where its token limit went into reasoning, the message of a second request with a larger one, as in `draw`.

        Args:
            messages: what the policy is shown.
            sampling: temperature and the like, of which only what a person has set is sent.
            seed: of the answer; None sends none.
            usage: each time that the request is sent counts there.
            most_requests: it is not sent again once `usage` has so many; None for no limit.

        Raises:
            PolicyError: the policy failed.
            BudgetError: the run's `budget_seconds` were over before the answer came.
            ConfigurationError: what answered is not a message, or a knob was set that this policy has no way to take.
        """
        knobs = {
            knob: value
            for knob in _KNOBS
            if knob in sampling.explicit and (value := getattr(sampling, knob)) is not None
        } | ({} if seed is None else {"seed": seed})
        arguments = {"stop": list(sampling.stop)} if sampling.stop else {}
        config: RunnableConfig = {"tags": [TAG_NOSTREAM]}  # keeps its tokens out of the message stream

        def may_repeat() -> bool:
            return most_requests is None or usage["requests"] < most_requests

        sampling = replace(sampling, thinking_tokens=max(sampling.thinking_tokens, self._limits.thinking_tokens))
        lost: AIMessage | None = None
        while True:
            refused = frozenset(self._limits.refused)
            shown = fold_system(messages) if SYSTEM_ROLE in refused else list(messages)

            def fields(
                model: BaseChatModel, sampling: Sampling = sampling, refused: frozenset[str] = refused
            ) -> dict[str, Options]:
                # not streamed, because chunks lose the usage
                sent = with_thinking_tokens(model, knobs, sampling)
                return {"disable_streaming": True, **knob_fields(model, *sent, refused)}

            policy = with_limits(self.policy, fields, usage, may_repeat)
            try:
                reply = await before_deadline(partial(policy.ainvoke, shown, config, **arguments))
            except TPOError:
                raise
            except Exception as error:  # any provider's
                names = self._client.limit_names
                part = refused_part(
                    ProviderFailure.of(error), refused, knobs=frozenset(), limit_names=names, messages=messages
                )
                if part is not None and may_repeat():
                    self._limits.refused.add(part)
                    continue
                if lost is not None:
                    return lost
                raise policy_failed(error, usage=usage) from error
            if not isinstance(reply, AIMessage):
                raise ConfigurationError(f"The policy returned {type(reply).__name__!r}, not a message.")
            if lost is not None:
                self._limits.thinking_tokens = max(sampling.thinking_tokens, self._limits.thinking_tokens)
                return reply.model_copy(update={"usage_metadata": add_usage(lost.usage_metadata, reply.usage_metadata)})
            limit = self._client.token_limit(knobs, sampling)
            more = _more_thinking_tokens(sampling.thinking_tokens, limit)
            if not more or not read_completion(reply).lost_to_thinking or not may_repeat():
                return reply
            lost, sampling = reply, replace(sampling, thinking_tokens=more)

    async def _draw(  # noqa: PLR0917  # those of `draw`, and the tokens for reasoning
        self,
        messages: Sequence[BaseMessage],
        n: int,
        sampling: Sampling,
        thinking_tokens: int,
        seed: int | None,
        most_requests: int | None,
    ) -> Draw:
        """`draw` with one token limit."""
        sampling = replace(sampling, thinking_tokens=thinking_tokens)
        draw = Draw()
        completions: dict[int, Completion] = {}
        missing = list(range(n))  # places among the N: each has its seed, whichever request asks for it
        most = self._limits.most_to_ask_for(n)
        refusal: Refusal | None = None
        without: set[str] = set()  # what is refused because of these messages
        with Stopwatch() as watch:
            while missing:
                left = n if most_requests is None else most_requests - draw.usage["requests"]
                if left < 1 and (completions or draw.errors):
                    break
                # after a refusal, one request shows whether n was the reason
                pieces = _split(missing, most)[: 1 if refusal else max(1, left)]
                refused = frozenset(self._limits.refused | without)
                knobs = {
                    knob: value
                    for knob in _KNOBS
                    if (value := getattr(sampling, knob)) is not None
                    and (knob in sampling.explicit or knob not in refused)
                }
                shown = fold_system(messages) if SYSTEM_ROLE in refused else messages
                requests = [
                    self._client.complete(
                        shown,
                        len(piece),
                        knobs if seed is None else knobs | {"seed": (seed + piece[0]) % _MOST_SEEDS},
                        sampling,
                        draw.usage,
                        most_requests=most_requests,
                        refused=refused,
                    )
                    for piece in pieces
                ]
                refusals: list[Refusal] = []
                for piece, outcome in zip(pieces, await asyncio.gather(*requests, return_exceptions=True), strict=True):
                    done: Sequence[int] = ()  # these places need no further request
                    if isinstance(outcome, list):
                        done = piece[: len(outcome)]
                        completions.update(zip(done, outcome, strict=False))
                        self._limits.learn(len(piece), len(done), refusal)
                        if refusal or len(done) < len(piece):
                            most, refusal = min(most or n, len(piece), len(done)), None
                    elif isinstance(outcome, ConfigurationError) or not isinstance(outcome, Exception):
                        raise outcome
                    else:
                        failure = ProviderFailure.of(outcome)
                        part = refused_part(
                            failure,
                            refused,
                            knobs=knobs.keys() - sampling.explicit,
                            limit_names=self._client.limit_names,
                            messages=messages,
                        )
                        if part is not None:
                            (without if failure.is_context_overflow else self._limits.refused).add(part)
                        elif len(piece) > 1 and failure.may_refuse_n:
                            asked = len(piece)
                            refusals.append(Refusal(asked, failure.smaller_n(asked), failure.names_n(asked)))
                        else:
                            # one completion, asked for after a refusal, fails as well: nothing else will help
                            done = missing if refusal else piece
                            draw.errors += [outcome] * len(done)
                    missing = [place for place in missing if place not in done]
                if refusals:
                    refusal = min(refusals, key=lambda refusal: refusal.smaller)
                    most = min(refusal.smaller, self._limits.most_completions or refusal.smaller)
        draw.completions = [completions[place] for place in sorted(completions)]
        draw.usage["seconds"] = watch.seconds
        if not draw.completions:
            address = str(getattr(self._client.model, "openai_api_base", None) or "")
            raise _no_completion(draw, address) from draw.errors[-1]
        return draw


def _more_thinking_tokens(allowance: int, limit: int | None) -> int:
    """The next allowance for reasoning, after the whole limit went into it; 0 where there is no larger one."""
    if not limit or allowance >= _MOST_THINKING_TOKENS:
        return 0
    return min(allowance + limit + _MORE_TOKENS, _MOST_THINKING_TOKENS)


def as_sampler(policy: Policy | Sampler) -> Sampler:
    """The policy's sampler: `policy` itself where it is one already.

    Args:
        policy: a chat model or a sampler. A sampler that several nodes share lets each of them use what another has
            found out about the provider.

    Raises:
        ConfigurationError: `policy` is neither.
    """
    return policy if isinstance(policy, Sampler) else Sampler(policy)


def _no_completion(draw: Draw, address: str) -> BudgetError | PolicyError:
    """The error to raise when all requests of a draw failed."""
    cause = draw.errors[-1]
    if isinstance(cause, BudgetError):
        return BudgetError(cause.message, hint=cause.hint, usage=draw.usage)
    return policy_failed(cause, address=address, usage=draw.usage)


def _split(places: Sequence[int], most: int | None) -> list[list[int]]:
    """Ascending `places` as requests: runs without a gap, of at most `most`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] + 1 == place and (most is None or len(runs[-1]) < most):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
