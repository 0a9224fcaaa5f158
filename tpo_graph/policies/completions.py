"""One request for several completions of a chat model: how it is sent, and how its answer is read."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableBinding, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from langgraph.constants import TAG_NOSTREAM

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError
from tpo_graph.policies.failures import NoCompletionError
from tpo_graph.policies.http import loop_safe
from tpo_graph.policies.providers import (
    Policy,
    change_models,
    completion_fields,
    has_retries,
    knob_fields,
    limit_names,
    models_inside,
    partial_completions,
    token_limit,
    unbind,
)
from tpo_graph.policies.reading import Completion, read_completion
from tpo_graph.policies.retries import OwnLimits, before_deadline, send, without_retries
from tpo_graph.policies.tracing import request_usage, traced
from tpo_graph.settings import Sampling
from tpo_graph.types import Options, PhaseUsage

_MOST_COPIES = 64
_OWN_ARGUMENTS = frozenset({"n", "stop", "stream", "callbacks", "tags", "metadata"})


class CompletionClient:
    """Asks one policy for completions: one request at a time, whichever form the policy has.

    Args:
        policy: a chat model, also bound (`bind`, `with_config`) or wrapped (`with_fallbacks`, `with_retry`).

    Attributes:
        policy: the same, with HTTP clients that can be used from one event loop after another.
        model: the chat model; None where there is more than one, or a wrapper that has to be invoked as a whole.
        limit_names: the names that the token limit may have in its requests, where there are several.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = change_models(policy, loop_safe)
        inner, self._arguments, config = unbind(self.policy)
        # a policy with retries or fallbacks is invoked as a whole, and then adds its config by itself
        self.model = inner if isinstance(inner, BaseChatModel) else None
        self.limit_names = next((names for model in models_inside(self.policy) if (names := limit_names(model))), ())
        self._once = None if self.model is None else traced(without_retries(self.model))
        self._own = OwnLimits() if self.model is None else OwnLimits.of(self.model)
        self._config: RunnableConfig = config if self.model is not None else {}
        # LangChain describes a model to callbacks once an instance, so the copies are kept
        self._copies: BoundedCache[str, BaseChatModel] = BoundedCache(_MOST_COPIES)

    async def complete(
        self,
        messages: Sequence[BaseMessage],
        n: int,
        knobs: Mapping[str, float],
        sampling: Sampling,
        usage: PhaseUsage,
        *,
        most_requests: int | None = None,
        refused: AbstractSet[str] = frozenset(),
    ) -> list[Completion]:
        """One request for `n` completions, sent again where that may help.

        Args:
            messages: what the policy is shown.
            n: how many, 1 or more.
            knobs: values of the sampling knobs and the seed that are sent.
            sampling: the stop texts, which knobs a person has set, and what is done about reasoning.
            usage: what the request costs is added to it; each time that it is sent counts.
            most_requests: it is not sent again once `usage` has so many; None for no limit.
            refused: names of the token limit that the provider refused.

        Raises:
            Exception: whatever the policy's client raises.
            BudgetError: the run's `budget_seconds` were over before the answer came.
            NoCompletionError: the answer holds no completion.
            ConfigurationError: a knob was set that this policy has no way to take.
        """
        config = merge_configs(ensure_config(), self._config, {"tags": [TAG_NOSTREAM]})
        stop = list(sampling.stop)

        def fields(model: BaseChatModel) -> dict[str, Options]:
            sent = with_thinking_tokens(model, knobs, sampling)
            return knob_fields(model, *sent, refused) | completion_fields(model, n)

        def may_repeat() -> bool:
            return most_requests is None or usage["requests"] < most_requests

        if self._once is None:
            policy = with_limits(self.policy, fields, usage, may_repeat)
            message = await before_deadline(
                lambda: policy.ainvoke(list(messages), config, **({"stop": stop} if stop else {}))
            )
            if not isinstance(message, AIMessage):
                raise ConfigurationError(f"The policy returned {type(message).__name__!r}, not a message.")
            generations = _generations(LLMResult(generations=[[ChatGeneration(message=message)]]), usage)
        else:
            own = fields(self._once)
            key = str(own)
            model = self._copies.get(key) or self._copies.setdefault(key, self._once.model_copy(update=own))

            async def ask() -> list[ChatGeneration]:
                usage["requests"] += 1
                try:
                    result = await model.agenerate(
                        [list(messages)],
                        stop=stop or self._arguments.get("stop"),
                        callbacks=config.get("callbacks"),
                        tags=config.get("tags"),
                        metadata=config.get("metadata"),
                        **{name: value for name, value in self._arguments.items() if name not in _OWN_ARGUMENTS},
                    )
                except Exception as error:
                    partial = partial_completions(error)
                    if partial is None:
                        raise
                    result = partial
                return _generations(result, usage)

            generations = await send(ask, self._own, may_repeat=may_repeat)
        most = self.token_limit(knobs, sampling)
        return [
            read_completion(
                generation.message, generation.generation_info, keep_thinking=sampling.keep_thinking, limit=most
            )
            for generation in generations
        ]

    def token_limit(self, knobs: Mapping[str, float], sampling: Sampling) -> int | None:
        """The token limit of a request with these knobs, of several models the first one's; None for none."""
        models = models_inside(self.policy) if self.model is None else [self.model]
        return next((token_limit(model, *with_thinking_tokens(model, knobs, sampling)) for model in models), None)


def with_thinking_tokens(
    model: BaseChatModel, knobs: Mapping[str, float], sampling: Sampling
) -> tuple[Mapping[str, float], AbstractSet[str]]:
    """The knobs with the allowance for reasoning in their token limit, and those that can't be left out.

    Args:
        model: a chat model, whose own limit the allowance may belong to.
        knobs: values of the knobs.
        sampling: which knobs a person has set, and the allowance.
    """
    limit = token_limit(model, knobs, sampling.explicit)
    if not limit or not sampling.thinking_tokens:
        return knobs, sampling.explicit
    return {**knobs, "max_new_tokens": limit + sampling.thinking_tokens}, sampling.explicit | {"max_new_tokens"}


class _Limited(RunnableBinding[Any, Any]):
    """What is asked as a part of a policy, with the limits of all requests."""

    sends: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self.sends(lambda: self.bound.ainvoke(input, config, **kwargs))


def with_limits(
    policy: Policy,
    fields: Callable[[BaseChatModel], Mapping[str, Options]],
    usage: PhaseUsage | None = None,
    may_repeat: Callable[[], bool] = lambda: True,
) -> Policy:
    """A policy for one request, each of whose models keeps to the limits of all requests.

    Args:
        policy: also one of several models, or with retries of its own, which then are all that there are.
        fields: those of each model in it.
        usage: each request of each model counts there; one for the whole where no model is to be seen.
        may_repeat: asked before one is sent again.
    """
    retries_itself, counted = has_retries(policy), no_usage() if usage is None else usage

    def limited(part: Policy) -> Policy:
        async def sends(request: Callable[[], Awaitable[Any]]) -> Any:
            def ask() -> Awaitable[Any]:
                counted["requests"] += 1
                return request()

            return await send(ask, own, may_repeat=lambda: not retries_itself and may_repeat())

        own, bound = OwnLimits(), part
        if isinstance(part, BaseChatModel):
            own, bound = OwnLimits.of(part), traced(without_retries(part)).model_copy(update=dict(fields(part)))
        return _Limited(bound=bound, sends=sends)

    return change_models(policy, limited) if models_inside(policy) else limited(policy)


def _generations(result: LLMResult, usage: PhaseUsage) -> list[ChatGeneration]:
    """The completions in an answer, whose cost is added to `usage`."""
    generations = [generation for generation in result.generations[0] if isinstance(generation, ChatGeneration)]
    if used := request_usage([generation.message for generation in generations], result.llm_output):
        usage["input_tokens"] += used["input_tokens"]
        usage["output_tokens"] += used["output_tokens"]
    if not generations:
        raise NoCompletionError("The provider returned no completion.")
    return generations
