"""sample: N candidates from the policy; the first node of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from tpo_graph.accounting import no_usage, plus
from tpo_graph.errors import BudgetError, ConfigurationError, PolicyError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import PhaseRequest, PromptedModel, draw_failures
from tpo_graph.graph.state import TPOState, new_run
from tpo_graph.policies.providers import Policy, unbind
from tpo_graph.policies.reading import Completion
from tpo_graph.policies.sampling import Draw, Sampler
from tpo_graph.policies.thinking import strip_thinking
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.prompts.revision_tags import without_blank_edges
from tpo_graph.selection import fits_budget
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureReason, FailureRecord, PartialState, PhaseUsage


def sample_node(
    policy: Policy | Sampler, *, prompts: PromptPack | str | Path | None = None, settings: TPOSettings | None = None
) -> AsyncNode:
    """The node that draws the first N candidates, v_1..v_N ~ M(x) (TPO paper, section 3).

    The graph has emptied the state for it. Where it has not (in a graph that is wired in another way), what an earlier
    run left in the thread is reset here; the conversation is kept.

    Args:
        policy: the model that answers.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the model.
        settings: defaults for every run; None reads the `TPO_*` variables.
    """
    model = PromptedModel.of(policy, prompts, settings)

    async def sample(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        request = model.request("sample", state, runtime)
        request.prompts.check(request.settings)
        _check_recursion_limit(request.settings)
        query, conversation = _checked_conversation(state)
        texts = [text for text in state.get("drafts") or [] if text.strip()]
        drafts = [Completion(text if request.settings.keep_thinking else strip_thinking(text).text) for text in texts]
        draw = await _draw_missing(request, conversation, request.settings.n - len(drafts), has_drafts=bool(drafts))
        usable = [completion for completion in drafts + draw.completions if completion.problem is None]
        failures = draw_failures("sample", 0, draw)
        if not usable:
            raise _nothing_usable(failures, draw.usage)
        pending = [
            Candidate(
                id=f"0-{place}",
                step=0,
                text=without_blank_edges(completion.text),
                truncated=completion.truncated,
                finish_reason=completion.finish_reason,
            )
            for place, completion in enumerate(usable)
        ]
        usage = {"sample": draw.usage}
        drawn: PartialState = {
            # a plain value: the stream of messages then has the answer alone, not the query again
            "messages": [{"role": "user", "content": message.text} for message in query],
            "pending": pending,
            "step": 0,
            "failures": failures,
            "usage": usage,
        }
        empty = new_run()
        if not any(state.get(name) for name in empty):
            return drawn
        return empty | drawn | {"failures": Overwrite(failures), "usage": Overwrite(usage)}

    return AsyncNode(sample)


async def _draw_missing(request: PhaseRequest, conversation: list[BaseMessage], n: int, *, has_drafts: bool) -> Draw:
    """Draw what is missing of N; twice more, while nothing of it can be used: without it there is no run.

    When the policy fails, drafts are still something to go on with.
    """
    settings = request.settings
    if n <= 0:
        return Draw()
    requests = request.sampler.requests_for(n)
    if settings.budget_requests is not None and requests > settings.budget_requests:
        raise BudgetError(
            f"The first {settings.n} candidates take {requests} requests, and the budget is "
            f"budget_requests={settings.budget_requests}.",
            hint="Raise budget_requests, or draw fewer candidates.",
        )
    messages = request.messages(conversation)
    has_tools = "tools" in unbind(request.sampler.policy)[1]
    try:
        draw = await request.draw(messages, n)
    except (PolicyError, BudgetError) as error:
        if not has_drafts or (isinstance(error, PolicyError) and settings.on_failure == "raise"):
            raise
        return Draw(usage=error.usage or no_usage(), errors=[error])
    for attempt in (1, 2):
        # what was lost to reasoning has been asked for once more already
        is_lost = bool(draw.replaced) and all(completion.lost_to_thinking for completion in draw.completions)
        is_usable = has_drafts or any(completion.problem is None for completion in draw.completions)
        # a policy that has tools and calls them means it
        is_calling = has_tools and all(completion.tool_calls for completion in draw.completions)
        if is_usable or is_lost or is_calling or not fits_budget(settings, request.usage(draw.usage), requests):
            break
        try:
            again = await request.draw(messages, n, attempt=attempt, used=draw.usage)
        except (PolicyError, BudgetError) as error:
            again = Draw(usage=error.usage or no_usage(), errors=[error])
        draw = Draw(
            draw.completions + again.completions,
            plus(draw.usage, again.usage),
            draw.errors + again.errors,
            draw.replaced + again.replaced,
        )
        if not again.completions:
            break
    return draw


_HINTS: Mapping[FailureReason, str] = {
    "refused": "Ask in other words, or take another policy.",
    "filtered": "A filter of the provider ended them: ask in other words, or change its safety settings.",
    "thinking_only": "A policy that thinks needs tokens for it beside those of the answer.",
}


def _nothing_usable(failures: Sequence[FailureRecord], usage: PhaseUsage) -> PolicyError:
    """The error of a first sampling without a candidate; it quotes what the provider or the model says about it."""
    records = [record for record in failures if record["reason"] not in ("request_failed", "out_of_time")]
    counts = Counter(record["reason"] for record in records)
    reason = counts.most_common(1)[0][0]
    counted = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.most_common())
    quoted = next((record["detail"] for record in reversed(records) if record["detail"]), "")
    return PolicyError(
        f"None of the {len(records)} completions that the policy returned can be used ({counted})"
        f"{f': {quoted}' if quoted else ''}".removesuffix(".")
        + ".",
        hint=_HINTS.get(
            reason, "A policy that answers with tool calls alone, or with empty texts, can't be optimised."
        ),
        usage=usage,
    )


def _checked_conversation(state: TPOState) -> tuple[list[HumanMessage], list[BaseMessage]]:
    """The query of the input as messages, and the conversation that ends with it."""
    text = state.get("query")
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise ConfigurationError(f"The query is empty: {text!r}.", hint="Give a question or a task as text.")
    query = [] if text is None else [HumanMessage(text)]
    conversation: list[BaseMessage] = [*state.get("messages", []), *query]
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
    blocks = [] if isinstance(last.content, str) else last.content
    has_media = any(isinstance(block, dict) and block.get("type") != "text" for block in blocks)
    # a tool that returns nothing is something to go on with
    if isinstance(last, HumanMessage) and not last.text.strip() and not has_media:
        raise ConfigurationError("The last message of the conversation is empty.", hint="Give a question or a task.")
    return query, conversation


def _check_recursion_limit(settings: TPOSettings) -> None:
    """Inside a chain langchain-core sets a limit of 25, and a run that reaches it loses everything."""
    try:
        limit = get_config().get("recursion_limit")
    except RuntimeError:  # the node is used alone
        return
    needed = 4 if settings.mode == "bon" else 4 + 5 * settings.depth
    if limit is not None and limit < needed:
        raise ConfigurationError(
            f"A run of depth {settings.depth} takes a recursion limit of {needed}, and the one given is {limit}.",
            hint=f'Pass config={{"recursion_limit": {needed}}} to the call; inside a chain it is 25 unless you do.',
        )
