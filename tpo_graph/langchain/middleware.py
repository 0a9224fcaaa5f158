"""`TPOMiddleware`: the TPO loop for the final answers of an agent."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langgraph.types import Command

from tpo_graph.errors import MissingDependencyError
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.policies.providers import Policy
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.settings import TPOSettings

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ExtendedModelResponse
    from langchain.agents.middleware.types import ModelRequest, ModelResponse, OmitFromSchema
except ImportError as error:
    raise MissingDependencyError(
        "TPOMiddleware needs the package langchain, version 1.4 or later.",
        hint='Install it with: pip install "tpo-graph[langchain]".',
    ) from error

Request: TypeAlias = ModelRequest[Any]  # Any: the agent's context
Response: TypeAlias = ModelResponse[Any] | ExtendedModelResponse[Any]  # Any: the agent's structured response

_NOSTREAM = "nostream"  # LangGraph's tag: keeps a model's tokens out of the message stream
_MOST_MODELS = 8


class TPOAgentState(AgentState[Any]):
    """The agent's state with what TPO did.

    Attributes:
        tpo: of the latest final answer, its `reward`, `steps`, `stop_reason`, `trajectory` and `warnings`; None when
            that one was not optimised.
    """

    tpo: NotRequired[Annotated[dict[str, Any] | None, OmitFromSchema(input=True, output=False)]]


class TPOMiddleware(AgentMiddleware[TPOAgentState, Any, Any]):  # Any: any context, any structured response
    """Optimises an agent's final answers in place, and leaves its tool calls alone.

    The agent's own answer is a candidate of step 0; the policy draws the rest of N with the agent's conversation,
    tools and model. What is returned is the best candidate, with the tokens of everything in `usage_metadata`; the
    agent's own answer counts for the budgets too. The trajectory is in the state under `tpo`. The agent's first draft
    is not streamed, the final answer is; a turn that calls tools is streamed as one message.

    Where other middleware changes a request, the order decides who sees the change: what stands before this one is
    seen by the draft and by the candidates; what stands behind it, by the draft alone. Answers with a structured
    response are left alone, because their value has been parsed already.

    Example:
        >>> from langchain.agents import create_agent
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> model = ScriptedChatModel(["a draft", "a better one"])
        >>> reward = TableReward({"a draft": 0.0, "a better one": 1.0})
        >>> agent = create_agent(model, middleware=[TPOMiddleware(reward=reward, n=2, depth=0)])
        >>> state = agent.invoke({"messages": "Hello"})
        >>> state["messages"][-1].text, state["tpo"]["stop_reason"]
        ('a better one', 'depth')

    Args:
        reward: a reward model, or a name that `load_reward` takes.
        policy: draws and revises: a chat model or a name; the agent's model when None. Only that one gets the tools.
        critic: see `ChatTPO`, as for all others down to `second_reward`.
        prompts: see there.
        nodes: see there.
        settings: see there.
        second_reward: see there.
        when: which final answers are worth it, from the message and the request; None is all.
        **options: settings by name, as for `ChatTPO`.

    Raises:
        ConfigurationError: a name is unknown, or a value can't be used.
        MissingDependencyError: langchain is not installed (when the class is imported).
    """

    state_schema = TPOAgentState

    def __init__(
        self,
        *,
        reward: RewardModel | str,
        policy: Policy | str | None = None,
        critic: Policy | str | None = None,
        prompts: PromptPack | str | Path | None = None,
        nodes: Mapping[str, Any] | None = None,  # Any: whatever LangGraph takes as a node
        settings: TPOSettings | None = None,
        second_reward: RewardModel | str | None = None,
        when: Callable[[AIMessage, Request], bool] | None = None,
        **options: Any,  # Any: values of any setting
    ) -> None:
        super().__init__()
        self.tools = []
        self._when = when
        self._policy = policy
        self._made: list[tuple[Policy | str, ChatTPO]] = []
        self._options: dict[str, Any] = {  # Any: the arguments of `ChatTPO`
            "reward": reward,
            "critic": critic,
            "prompts": prompts,
            "nodes": nodes,
            "settings": settings,
            "second_reward": second_reward,
            **options,
        }
        # checked now: a wrong name should not wait for the agent's first answer
        self._chat_of("local" if policy is None else policy)

    def wrap_model_call(self, request: Request, handler: Callable[[Request], ModelResponse[Any]]) -> Response:
        """Ask the agent's model, and optimise what it says when that is a final answer."""
        response = handler(_quiet(request))
        if _goes_on(response):
            return response
        draft = _final_answer(response)
        if draft is None or not self._is_worth_it(draft, request):
            return _with_record(response, None)
        answer = self._model_for(request).invoke(_conversation(request), draft=draft)
        return _with_answer(response, draft, answer)

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[ModelResponse[Any]]]
    ) -> Response:
        """The same for agents that run in an event loop."""
        response = await handler(_quiet(request))
        if _goes_on(response):
            return response
        draft = _final_answer(response)
        if draft is None or not self._is_worth_it(draft, request):
            return _with_record(response, None)
        answer = await self._model_for(request).ainvoke(_conversation(request), draft=draft)
        return _with_answer(response, draft, answer)

    def _is_worth_it(self, draft: AIMessage, request: Request) -> bool:
        return self._when is None or self._when(draft, request)

    def _model_for(self, request: Request) -> Runnable[Any, AIMessage]:
        """The optimising model, with the request's tools and arguments where it asks the agent's own model."""
        if self._policy is not None:
            return self._chat_of(self._policy)
        chat = self._chat_of(request.model)
        if not request.tools:
            return chat.bind(**request.model_settings)
        return chat.bind_tools(request.tools, tool_choice=request.tool_choice, **request.model_settings)

    def _chat_of(self, policy: Policy | str) -> ChatTPO:
        """One for each model that the agent uses: other middleware may change it from turn to turn."""
        for known, chat in self._made:
            if known is policy:
                return chat
        chat = ChatTPO(policy=policy, **self._options)
        self._made = [*self._made[-_MOST_MODELS + 1 :], (policy, chat)]
        return chat


def _quiet(request: Request) -> Request:
    """The request with a model whose tokens are not streamed: they may be a draft's."""
    tags = [*(request.model.tags or []), _NOSTREAM]
    return request.override(model=request.model.model_copy(update={"tags": tags}))


def _conversation(request: Request) -> list[BaseMessage]:
    system = [request.system_message] if request.system_message else []
    return [*system, *request.messages]


def _goes_on(response: ModelResponse[Any]) -> bool:
    """Whether the agent calls tools now; a structured response ends its turn, by a call or not."""
    calls = any(isinstance(message, AIMessage) and message.tool_calls for message in response.result)
    return calls and response.structured_response is None


def _final_answer(response: ModelResponse[Any]) -> AIMessage | None:
    """The text that ends the agent's turn, or None where it ends in another way."""
    last = response.result[-1] if response.result else None
    if not isinstance(last, AIMessage) or response.structured_response is not None:
        return None
    return None if last.invalid_tool_calls or not last.text.strip() else last


def _with_answer(response: ModelResponse[Any], draft: AIMessage, answer: AIMessage) -> Response:
    named = answer.model_copy(update={"name": draft.name})
    changed = ModelResponse(result=[*response.result[:-1], named], structured_response=response.structured_response)
    return _with_record(changed, answer.response_metadata["tpo"])


def _with_record(response: ModelResponse[Any], record: dict[str, Any] | None) -> Response:  # Any: plain values
    return ExtendedModelResponse(model_response=response, command=Command(update={"tpo": record}))
