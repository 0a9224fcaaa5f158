"""Any Python function as a reward model."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.concurrency import gather
from tpo_graph.rewards.functions.styles import STYLES, FunctionStyle, find_style
from tpo_graph.rewards.functions.trl_arguments import trl_arguments
from tpo_graph.rewards.parts import PartialRewardModel, PartialScores, RunContext

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["FunctionReward"]


class FunctionReward(PartialRewardModel):
    """A function, sync or async, that rewards one response or many.

    Example:
        >>> import asyncio
        >>> def politeness(response: str) -> float:
        ...     return float("please" in response)
        >>> asyncio.run(FunctionReward(politeness).score([], ["Sit.", "Sit, please."]))
        [0.0, 1.0]

    A sync function runs in a thread, so that it never blocks the event loop. Where it returns None it does not apply
    to the response: a combination goes by its other parts, and alone it is no score.

    Functions written for TRL's trainers get as `columns` what travels with the query, the `additional_kwargs` of the
    last user message, each value repeated for every completion. Of keyword arguments they get those that they name, or
    all if they take `**kwargs`. `prompts` is the last user message's text for `trl`, the whole conversation for
    `trl_chat`.

    Args:
        function: the function, or any object that can be called.
        style: how it is called; None finds out from its signature.
        max_concurrency: calls at once of an async function of one response.

    Raises:
        ConfigurationError: it can't be called, the style is unknown, or can't be told from the signature.
    """

    def __init__(
        self,
        function: Callable[..., Any],  # Any: what it takes and returns depends on its style
        *,
        style: FunctionStyle | None = None,
        max_concurrency: int = 16,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"A reward function must be something to call; {function!r} is not.")
        if style is not None and style not in STYLES:
            raise ConfigurationError(f"Unknown style {style!r} of a reward function; allowed: {', '.join(STYLES)}.")
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1; it is {max_concurrency}.")
        self.style: FunctionStyle = style or find_style(function)
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._max_concurrency = max_concurrency
        call = getattr(type(function), "__call__", None)  # noqa: B004  # an object's own async method
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    async def score_part(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,  # noqa: ARG002  # what a function returns has its own scale
    ) -> PartialScores:
        """Call the function; see `PartialRewardModel.score_part`.

        Raises:
            RewardError: the function raised, or returned something other than a number or None for each response.
        """
        if not responses:
            return []
        conversation, texts = list(messages), list(responses)
        try:
            match self.style:
                case "response":
                    values = await self._one_by_one([(text,) for text in texts])
                case "messages_response":
                    values = await self._one_by_one([(conversation, text) for text in texts])
                case "responses":
                    values = await self._at_once(texts)
                case "messages_responses":
                    values = await self._at_once(conversation, texts)
                case "trl" | "trl_chat" as style:
                    named = trl_arguments(self._function, conversation, texts, chat=style == "trl_chat")
                    values = await self._at_once(**named)
            scores = [None if value is None else float(value) for value in values]
        except RewardError:
            raise
        except Exception as error:  # whatever a user's function may raise
            raise RewardError(
                f"The reward function {self.name!r} failed: {type(error).__name__}: {error}".rstrip(": ")
            ) from error
        if len(scores) != len(texts):
            raise RewardError(
                f"The reward function {self.name!r} returned {len(scores)} values for {len(texts)} responses."
            )
        return scores

    # Any, here and below: what a function takes and returns depends on its style
    async def _at_once(self, *arguments: Any, **named: Any) -> Sequence[Any]:
        if self._is_async:
            result = await self._function(*arguments, **named)
        else:
            result = await asyncio.to_thread(self._function, *arguments, **named)
            result = await result if inspect.isawaitable(result) else result
        return list(result)

    async def _one_by_one(self, calls: list[tuple[Any, ...]]) -> Sequence[Any]:
        if not self._is_async:
            # one thread for all of them: a hop for each would cost more than most functions do
            results = await asyncio.to_thread(lambda: [self._function(*call) for call in calls])
            return [await result if inspect.isawaitable(result) else result for result in results]
        gate = asyncio.Semaphore(self._max_concurrency)

        async def call(arguments: tuple[Any, ...]) -> Any:
            async with gate:
                return await self._function(*arguments)

        return await gather(call(arguments) for arguments in calls)
