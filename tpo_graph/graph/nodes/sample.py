"""sample: N candidates from the policy; the first node of a run."""

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.phase import PhaseRequest, effective_settings, failure, request_failures
from tpo_graph.graph.state import TPOState
from tpo_graph.prompt_store import PromptPack
from tpo_graph.sampling import Completion, Draw, Sampler
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureRecord

__all__ = ["sample_node"]


def sample_node(policy: Sampler, prompts: PromptPack, settings: TPOSettings) -> NodeBody:
    """The node that draws the first N candidates, v_1..v_N ~ M(x) (TPO paper, section 3).

    It begins a new run: what an earlier run left in the thread is reset, the conversation is kept.
    """

    async def sample(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        chosen = effective_settings(settings, runtime)
        prompts.check_mode(chosen.mode, preference=chosen.preference, open_tag=chosen.open_tag)
        query = _checked_query(state)
        conversation: list[BaseMessage] = [*state.get("messages", []), *query]
        _check_conversation(conversation)
        request = PhaseRequest("sample", state, chosen, prompts)
        drafts = [Completion(text, truncated=False) for text in state.get("drafts") or []]
        draw = Draw()
        if len(drafts) < chosen.n:
            draw = await request.draw(policy, request.messages(policy, conversation), chosen.n - len(drafts))
        pending: list[Candidate] = []
        failures = request_failures("sample", 0, draw)
        for completion in drafts + draw.completions:
            text = completion.text.strip()
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
            "messages": query,
            "pending": pending,
            "cache": Overwrite([]),
            "step": 0,
            "loss": "",
            "gradient": "",
            "trajectory": Overwrite([]),
            "failures": Overwrite(failures),
            "usage": Overwrite({"sample": draw.usage}),
            "stop_reason": None,
            "answer": "",
        }

    return sample


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
    if not last.content:
        raise ConfigurationError("The last message of the conversation is empty.", hint="Give a question or a task.")
