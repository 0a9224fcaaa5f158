"""sample: N candidates from the policy; the first node of a run."""

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from tpo_graph.accounting import no_usage
from tpo_graph.errors import BudgetError, ConfigurationError, PolicyError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.request import PhaseRequest, effective_settings, failure, request_failures
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.sampling import Completion, Draw, Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.prompts.revision_tags import without_blank_edges
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureRecord


def sample_node(policy: Sampler, prompts: PromptPack, settings: TPOSettings) -> NodeBody:
    """The node that draws the first N candidates, v_1..v_N ~ M(x) (TPO paper, section 3).

    It begins a new run: what an earlier run left in the thread is reset, the conversation is kept.
    """

    async def sample(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        chosen = effective_settings(settings, runtime)
        prompts.check(chosen)
        _check_recursion_limit(chosen)
        query = _checked_query(state)
        conversation: list[BaseMessage] = [*state.get("messages", []), *query]
        _check_conversation(conversation)
        request = PhaseRequest("sample", state, chosen, prompts)
        drafts = [Completion(text, truncated=False) for text in state.get("drafts") or [] if text.strip()]
        draw = Draw()
        if (rest := chosen.n - len(drafts)) > 0:
            _check_budget(chosen, policy.requests_for(rest))
            draw = await _draw_rest(request, policy, request.messages(policy, conversation), rest, bool(drafts))
        pending: list[Candidate] = []
        failures = request_failures("sample", 0, draw)
        for completion in drafts + draw.completions:
            text = without_blank_edges(completion.text)
            if text:
                pending.append(Candidate(id=f"0-{len(pending)}", step=0, text=text, truncated=completion.truncated))
            else:
                failures.append(_unusable(completion))
        if not pending:
            raise PolicyError(
                f"None of the {len(draw.completions)} completions that the policy returned has a text.",
                hint="A policy that answers with tool calls alone, or with empty texts, can't be optimised.",
            )
        return {
            # a plain value: the stream of messages then has the answer alone, not the query again
            "messages": [{"role": "user", "content": message.text} for message in query],
            "pending": pending,
            "cache": Overwrite([]),
            "step": 0,
            "loss": "",
            "gradient": "",
            "trajectory": Overwrite([]),
            "failures": Overwrite(failures),
            "choices": Overwrite([]),
            "usage": Overwrite({"sample": draw.usage}),
            "warnings": [],
            "stop_reason": None,
            "answer": "",
        }

    return sample


async def _draw_rest(
    request: PhaseRequest, policy: Sampler, messages: list[BaseMessage], n: int, has_drafts: bool
) -> Draw:
    """Draw N, or what is missing of it: then a policy that fails leaves the drafts to go on with."""
    try:
        return await request.draw(policy, messages, n)
    except PolicyError as error:
        if not has_drafts or request.settings.on_failure == "raise":
            raise
        return Draw(usage=error.usage or no_usage(), errors=[error])


def _unusable(completion: Completion) -> FailureRecord:
    return failure("sample", 0, "tool_calls" if completion.tool_calls else "empty", text=completion.text)


def _checked_query(state: TPOState) -> list[HumanMessage]:
    query = state.get("query")
    if query is None:
        return []
    if not isinstance(query, str) or not query.strip():
        raise ConfigurationError(f"The query is empty: {query!r}.", hint="Give a question or a task as text.")
    return [HumanMessage(query)]


def _check_conversation(conversation: list[BaseMessage]) -> None:
    if not conversation:
        raise ConfigurationError(
            "There is no conversation to answer.", hint='Give {"query": "..."} or {"messages": [...]}.'
        )
    last = conversation[-1]
    if isinstance(last, AIMessage):
        raise ConfigurationError(
            "The conversation ends with an assistant message, so there is nothing to answer.",
            hint="Put a user message at its end.",
        )
    if not last.text.strip() and not _has_other_content(last):
        raise ConfigurationError("The last message of the conversation is empty.", hint="Give a question or a task.")


def _has_other_content(message: BaseMessage) -> bool:
    """Whether there is more than text in it: an image, say."""
    return not isinstance(message.content, str) and any(
        isinstance(block, dict) and block.get("type") != "text" for block in message.content
    )


def _check_recursion_limit(settings: TPOSettings) -> None:
    """Inside a chain langchain-core sets a limit of 25, and a run that reaches it loses everything."""
    limit = get_config().get("recursion_limit")
    needed = 4 if settings.mode == "bon" else 4 + 5 * settings.depth
    if limit is not None and limit < needed:
        raise ConfigurationError(
            f"A run of depth {settings.depth} takes a recursion limit of {needed}, and the one given is {limit}.",
            hint=f'Pass config={{"recursion_limit": {needed}}} to the call; inside a chain it is 25 unless you do.',
        )


def _check_budget(settings: TPOSettings, requests: int) -> None:
    if settings.budget_requests is not None and requests > settings.budget_requests:
        raise BudgetError(
            f"The first {settings.n} candidates take {requests} requests, and the budget is "
            f"budget_requests={settings.budget_requests}.",
            hint="Raise budget_requests, or draw fewer candidates.",
        )
