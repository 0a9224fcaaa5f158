"""A chat model that follows a script, and a reward model that looks rewards up in a table."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from tpo_graph.errors import RewardError

Reply: TypeAlias = str | AIMessage | Exception
Script: TypeAlias = Sequence[Reply] | Callable[[Sequence[BaseMessage], int], Reply]


class ScriptedChatModel(BaseChatModel):
    """A chat model that gives the replies of a script, in order, and records what it was asked.

    Examples:
        >>> model = ScriptedChatModel(["first", "second"])
        >>> model.invoke("hi").content, model.invoke("hi").content
        ('first', 'second')

    Attributes:
        script: replies in order (an exception is raised), or a function of the messages and the running number
            of the reply.
        requests: the messages of every request so far.
        temperature: sampling temperature of this copy of the model; `knobs` records it, and `top_p`, `max_tokens` and
            `seed`, by request.
    """

    script: Any = Field(repr=False)
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    requests: list[list[BaseMessage]] = Field(default_factory=list, repr=False)
    knobs: list[dict[str, Any]] = Field(default_factory=list, repr=False)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, script: Script, **fields: Any) -> None:
        super().__init__(**{"script": script, **fields})

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002  # LangChain's signature
        **kwargs: Any,
    ) -> ChatResult:
        # copies of the model share these lists, so a script goes on across them
        with self._lock:
            number = len(self.requests)
            self.requests.append(messages)
            knobs = {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
            self.knobs.append({**knobs, "stop": stop, **kwargs})
        if callable(self.script):
            reply = self.script(messages, number)
        elif number < len(self.script):
            reply = self.script[number]
        else:
            raise AssertionError(f"The script has {len(self.script)} replies and was asked for one more.")
        if isinstance(reply, Exception):
            raise reply
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        if message.usage_metadata is None:
            read, written = sum(len(turn.text.split()) for turn in messages), len(message.text.split())
            usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
            message = message.model_copy(update={"usage_metadata": usage})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002  # LangChain's signature
        **kwargs: Any,
    ) -> ChatResult:
        # not in threads, as LangChain would do it: concurrent requests then get their replies in order
        return self._generate(messages, stop, **kwargs)

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools; the script decides whether they are called, and `knobs` records them."""
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=formatted, **({"tool_choice": tool_choice} if tool_choice else {}), **kwargs)


class TableReward:
    """A reward model that looks a response's reward up.

    Examples:
        >>> import asyncio
        >>> asyncio.run(TableReward({"good": 1.0}, default=0.0).score([], ["good", "other"]))
        [1.0, 0.0]

    Attributes:
        calls: the responses of every call so far.
        highest_reward: as given; None where the table's highest reward says nothing.
    """

    def __init__(
        self,
        table: Mapping[str, float] | Callable[[str], float],
        *,
        default: float | None = None,
        highest_reward: float | None = None,
    ) -> None:
        self.table = table
        self.default = default
        self.highest_reward = highest_reward
        self.calls: list[list[str]] = []

    async def score(
        self,
        messages: Sequence[BaseMessage],  # noqa: ARG002  # the protocol's signature
        responses: Sequence[str],
    ) -> list[float]:
        """Rewards from the table.

        Raises:
            RewardError: a response is not in the table and there is no default.
        """
        self.calls.append(list(responses))
        if callable(self.table):
            return [self.table(response) for response in responses]
        rewards = [self.table.get(response, self.default) for response in responses]
        for response, reward in zip(responses, rewards, strict=True):
            if reward is None:
                raise RewardError(f"The table has no reward for {response!r}.")
        return [reward for reward in rewards if reward is not None]
