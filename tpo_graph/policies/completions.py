"""One request for several completions of a chat model: how it is sent, and how its answer is read."""

from collections.abc import Mapping, Sequence

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from langgraph.constants import TAG_NOSTREAM

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph.errors import ConfigurationError
from tpo_graph.policies.failures import NoCompletionError
from tpo_graph.policies.http import loop_safe
from tpo_graph.policies.providers import (
    Policy,
    change_models,
    completion_fields,
    knob_fields,
    partial_completions,
    unbind,
)
from tpo_graph.policies.reading import Completion, read_completion
from tpo_graph.settings import Sampling
from tpo_graph.types import JSONObject, Options, PhaseUsage

_MOST_COPIES = 64
_OWN_ARGUMENTS = frozenset({"n", "stop", "stream", "callbacks", "tags", "metadata"})


class CompletionClient:
    """Asks one policy for completions: one request at a time, whichever form the policy has.

    Args:
        policy: a chat model, also bound (`bind`, `with_config`) or wrapped (`with_fallbacks`, `with_retry`).

    Attributes:
        policy: the same, with HTTP clients that can be used from one event loop after another.
        model: the chat model; None where there is more than one, or a wrapper that has to be invoked as a whole.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = change_models(policy, loop_safe)
        inner, self._arguments, config = unbind(self.policy)
        # a policy with retries or fallbacks is invoked as a whole, and then adds its config by itself
        self.model = inner if isinstance(inner, BaseChatModel) else None
        self._config: RunnableConfig = config if self.model is not None else {}
        # LangChain describes a model to callbacks once an instance, so the copies are kept
        self._copies: BoundedCache[tuple[tuple[str, Options], ...], BaseChatModel] = BoundedCache(_MOST_COPIES)

    async def complete(
        self,
        messages: Sequence[BaseMessage],
        n: int,
        knobs: Mapping[str, float],
        sampling: Sampling,
        usage: PhaseUsage,
    ) -> list[Completion]:
        """One request for `n` completions.

        Args:
            messages: what the policy is shown.
            n: how many, 1 or more.
            knobs: values of the sampling knobs and the seed that are sent.
            sampling: the stop texts, and which knobs a person has set.
            usage: what the request costs is added to it.

        Raises:
            Exception: whatever the policy's client raises.
            NoCompletionError: the answer holds no completion.
            ConfigurationError: a knob was set that this policy has no way to take.
        """
        usage["requests"] += 1
        config = merge_configs(ensure_config(), self._config, {"tags": [TAG_NOSTREAM]})
        stop = list(sampling.stop)

        def fields(model: BaseChatModel) -> dict[str, Options]:
            return knob_fields(model, knobs, sampling.explicit) | completion_fields(model, n)

        if self.model is None:
            policy = change_models(self.policy, lambda model: model.model_copy(update=fields(model)))
            message = await policy.ainvoke(list(messages), config, **({"stop": stop} if stop else {}))
            if not isinstance(message, AIMessage):
                raise ConfigurationError(f"The policy returned {type(message).__name__!r}, not a message.")
            result = LLMResult(generations=[[ChatGeneration(message=message)]])
        else:
            own = fields(self.model)
            key = tuple(own.items())
            model = self._copies.get(key) or self._copies.setdefault(key, self.model.model_copy(update=own))
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
        generations = [generation for generation in result.generations[0] if isinstance(generation, ChatGeneration)]
        _add_tokens(usage, [generation.message for generation in generations], result.llm_output)
        if not generations:
            raise NoCompletionError("The provider returned no completion.")
        return [
            read_completion(generation.message, generation.generation_info, keep_thinking=sampling.keep_thinking)
            for generation in generations
        ]


def _add_tokens(usage: PhaseUsage, messages: Sequence[BaseMessage], llm_output: JSONObject | None) -> None:
    """Add a request's tokens. With n > 1 each message repeats the usage of all; `llm_output` has it once."""
    whole = (llm_output or {}).get("token_usage") or {}
    if whole.get("prompt_tokens") is not None or whole.get("completion_tokens") is not None:
        usage["input_tokens"] += whole.get("prompt_tokens") or 0
        usage["output_tokens"] += whole.get("completion_tokens") or 0
        return
    counts = [message.usage_metadata for message in messages if isinstance(message, AIMessage)]
    counted = [count for count in counts if count]
    if counted:
        first = counted[0]
        usage["input_tokens"] += first["input_tokens"]
        is_repeated = len(counted) > 1 and all(count == first for count in counted)
        usage["output_tokens"] += sum(count["output_tokens"] for count in (counted[:1] if is_repeated else counted))
