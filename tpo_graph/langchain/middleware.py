"""`TPOMiddleware`: the TPO loop for the final answers of an agent."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langgraph.constants import TAG_NOSTREAM
from langgraph.types import Command

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph.errors import MissingDependencyError, install_hint
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.policies.providers import Policy
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.functions import RewardFunction
from tpo_graph.settings import TPOSettings
from tpo_graph.types import JSONObject, Node, Options

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ExtendedModelResponse
    from langchain.agents.middleware.types import ModelRequest, ModelResponse, OmitFromSchema
except ImportError as error:
    raise MissingDependencyError(
        "TPOMiddleware needs the package langchain, version 1.4 or later.",
        hint=f"{install_hint('langchain')}.",
    ) from error

Request: TypeAlias = ModelRequest[Any]
Response: TypeAlias = ModelResponse[Any] | ExtendedModelResponse[Any]

_MOST_MODELS = 8


class TPOAgentState(AgentState[Any]):
    """The agent's state with what TPO did.

    Attributes:
        tpo: `reward`, `steps`, `stop_reason`, `trajectory` and `warnings` of the latest final answer; None when that
            one was not optimised.
    """

    tpo: NotRequired[Annotated[JSONObject | None, OmitFromSchema(input=True, output=False)]]


class TPOMiddleware(AgentMiddleware[TPOAgentState, Any, Any]):
    """Optimises an agent's final answers in place, and leaves its tool calls alone.

    The agent's own answer is a candidate of step 0; the policy draws the rest of N with the agent's conversation,
    tools and model. What is returned is the best candidate, with the tokens of everything in `usage_metadata`; the
    agent's own answer counts for the budgets too. The trajectory is in the state under `tpo`. The agent's first draft
    is not streamed, the final answer is; a turn that calls tools is streamed as one message.

    Where other middleware changes a request, the order decides who sees the change: what stands before this one is
    seen by the draft and by the candidates; what stands behind it, by the draft alone. Answers with a structured
    response are left alone, because their value has been parsed already.

    Examples:
        >>> from langchain.agents import create_agent
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> model = ScriptedChatModel(["a draft", "a better one"])
        >>> reward = TableReward({"a draft": 0.0, "a better one": 1.0})
        >>> agent = create_agent(model, middleware=[TPOMiddleware(reward=reward, n=2, depth=0)])
        >>> state = agent.invoke({"messages": "Hello"})
        >>> state["messages"][-1].text, state["tpo"]["stop_reason"]
        ('a better one', 'depth')

    Args:
        reward: a reward model, a function of responses, or a name that `load_reward` takes.
        policy: draws and revises: a chat model or a name; the agent's model when None. Only that one gets the tools.
        critic: writes loss and gradient: a chat model or a name; the policy when None.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the policy.
        nodes: replacements by name, or the name of a variant, as for `ChatTPO`.
        settings: defaults for every answer; None reads the `TPO_*` variables.
        when: which final answers to optimise, from the message and the request; None is all.
        **options: settings by name, which beat `settings`.

    Raises:
        ConfigurationError: a name is unknown, or a value can't be used.
        MissingDependencyError: langchain is not installed (when the class is imported).
    """

    state_schema = TPOAgentState

    def __init__(
        self,
        *,
        reward: RewardModel | RewardFunction | str,
        policy: Policy | str | None = None,
        critic: Policy | str | None = None,
        prompts: PromptPack | str | Path | None = None,
        nodes: Mapping[str, Node] | str | None = None,
        settings: TPOSettings | None = None,
        when: Callable[[AIMessage, Request], bool] | None = None,
        **options: Options,
    ) -> None:
        super().__init__()
        self.tools = []
        self._when = when
        self._policy = policy
        self._chat_models: BoundedCache[int, ChatTPO] = BoundedCache(_MOST_MODELS)
        self._options: dict[str, Options] = {
            "reward": reward,
            "critic": critic,
            "prompts": prompts,
            "nodes": nodes,
            "settings": settings,
            **options,
        }
        # checked now: a wrong name should not wait for the agent's first answer
        self._chat_model("local" if policy is None else policy)

    def wrap_model_call(self, request: Request, handler: Callable[[Request], ModelResponse[Any]]) -> Response:
        """Ask the agent's model, and optimise its message when that is a final answer.

        Args:
            request: the agent's.
            handler: asks the agent's model.
        """
        response = handler(_without_stream(request))
        draft = self._draft(request, response)
        if draft is None:
            return _unchanged(response)
        return _with_answer(response, draft, self._optimiser(request).invoke(_conversation(request), draft=draft))

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[ModelResponse[Any]]]
    ) -> Response:
        """The same for agents that run in an event loop.

        Args:
            request: the agent's.
            handler: asks the agent's model.
        """
        response = await handler(_without_stream(request))
        draft = self._draft(request, response)
        if draft is None:
            return _unchanged(response)
        answer = await self._optimiser(request).ainvoke(_conversation(request), draft=draft)
        return _with_answer(response, draft, answer)

    def _draft(self, request: Request, response: ModelResponse[Any]) -> AIMessage | None:
        """The text that ends the agent's turn, if it is to be optimised."""
        last = response.result[-1] if response.result else None
        if not isinstance(last, AIMessage) or response.structured_response is not None or _calls_tools(response):
            return None
        if last.invalid_tool_calls or not last.text.strip():
            return None
        return last if self._when is None or self._when(last, request) else None

    def _optimiser(self, request: Request) -> Runnable[Any, AIMessage]:
        """The chat model, with the request's tools and arguments where it asks the agent's own model."""
        if self._policy is not None:
            return self._chat_model(self._policy)
        chat_model = self._chat_model(request.model)
        if not request.tools:
            return chat_model.bind(**request.model_settings)
        return chat_model.bind_tools(request.tools, tool_choice=request.tool_choice, **request.model_settings)

    def _chat_model(self, policy: Policy | str) -> ChatTPO:
        """One for each model that the agent uses: other middleware may change it from turn to turn."""
        # the chat model holds the policy, so that no other object gets its id
        chat_model = self._chat_models.get(id(policy))
        if chat_model is None:
            chat_model = self._chat_models.setdefault(id(policy), ChatTPO(policy=policy, **self._options))
        return chat_model


def _without_stream(request: Request) -> Request:
    """The request with a model whose tokens are not streamed: they may be a draft's."""
    tags = [*(request.model.tags or []), TAG_NOSTREAM]
    return request.override(model=request.model.model_copy(update={"tags": tags}))


def _conversation(request: Request) -> list[BaseMessage]:
    system = [request.system_message] if request.system_message else []
    return [*system, *request.messages]


def _calls_tools(response: ModelResponse[Any]) -> bool:
    return any(isinstance(message, AIMessage) and message.tool_calls for message in response.result)


def _unchanged(response: ModelResponse[Any]) -> Response:
    """The response as it is; when it ends the turn, the record of an earlier answer is removed from the state."""
    # a structured response ends the turn, by a tool call or not
    if _calls_tools(response) and response.structured_response is None:
        return response
    return ExtendedModelResponse(model_response=response, command=Command(update={"tpo": None}))


def _with_answer(response: ModelResponse[Any], draft: AIMessage, answer: AIMessage) -> Response:
    named = answer.model_copy(update={"name": draft.name})
    changed = ModelResponse(result=[*response.result[:-1], named], structured_response=response.structured_response)
    record = answer.response_metadata["tpo"]
    return ExtendedModelResponse(model_response=changed, command=Command(update={"tpo": record}))
