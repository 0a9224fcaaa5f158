"""update: the policy writes N revised candidates from the best one, the loss and the gradient."""

from pathlib import Path

from langchain_core.messages import BaseMessage
from langgraph.runtime import Runtime

from tpo_graph.accounting import no_usage, plus
from tpo_graph.errors import BudgetError, PolicyError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import (
    PhaseRequest,
    PromptedModel,
    completion_failure,
    draw_failures,
    failed_draw,
)
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.reading import Completion
from tpo_graph.policies.sampling import Sampler
from tpo_graph.policies.thinking import strip_thinking
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.prompts.revision_tags import Extraction, extract_revision
from tpo_graph.selection import critique_failed, fits_budget
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureRecord, PartialState


def update_node(
    policy: Policy | Sampler, *, prompts: PromptPack | str | Path | None = None, settings: TPOSettings | None = None
) -> AsyncNode:
    """The node that draws N revisions (TPO paper, section 3) and cuts them out of their tags.

    When none of them can be used it asks once more. What can't be used is recorded with its text.

    Args:
        policy: the model that revises.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the model.
        settings: defaults for every run; None reads the `TPO_*` variables.
    """
    model = PromptedModel.of(policy, prompts, settings)

    async def update(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        request = model.request("update", state, runtime)
        done: PartialState = {"step": request.step, "pending": []}
        if critique_failed(state.get("failures", []), request.step):
            return done
        messages = request.messages()
        used = no_usage()
        failures: list[FailureRecord] = []
        pending: list[Candidate] = []
        for attempt in (0, 1):
            try:
                draw = await request.draw(messages, request.settings.n, attempt=attempt, used=used)
            except (PolicyError, BudgetError) as error:
                used = plus(used, error.usage or no_usage())
                failures.append(failed_draw(request, error))
                break
            used = plus(used, draw.usage)
            failures += draw_failures("update", request.step, draw)
            for completion in draw.completions:
                if completion.problem is not None:
                    continue
                text, problem, is_closed = _revision(completion, request, messages)
                if problem is None:
                    pending.append(
                        Candidate(
                            id=f"{request.step}-{len(pending)}",
                            step=request.step,
                            text=text,
                            # what ends at the token limit behind the closing tag does not belong to the candidate
                            truncated=completion.truncated and not is_closed,
                            finish_reason=completion.finish_reason,
                        )
                    )
                else:
                    failures.append(completion_failure("update", request.step, completion, problem))
            # what was lost to reasoning has been asked for once more already
            is_lost = draw.replaced and all(completion.lost_to_thinking for completion in draw.completions)
            if pending or is_lost or not fits_budget(request.settings, request.usage(used), 1):
                break
        return done | {"pending": pending, "usage": {"update": used}, "failures": failures}

    return AsyncNode(update)


def _revision(completion: Completion, request: PhaseRequest, messages: list[BaseMessage]) -> Extraction:
    """The revised response in a completion, or what is wrong with it."""
    open_tag, close_tag = request.tags()
    prompt = request.prompt
    stops = request.settings.sampling("update", prompt.sampling if prompt else None).stop
    found = extract_revision(
        completion.text,
        open_tag=open_tag,
        close_tag=close_tag,
        opened=bool(open_tag) and messages[-1].text.rstrip().endswith(open_tag.rstrip()),
        closed=bool(close_tag) and not completion.truncated and any(close_tag.startswith(stop) for stop in stops),
        truncated=completion.truncated,
        keep_truncated=request.settings.keep_truncated,
    )
    text, problem = request.prompts.sections.restore(found.text), found.problem
    if problem is None and not request.settings.keep_thinking:
        # the reasoning may also begin behind the tag
        text = strip_thinking(text, may_be_bare=False).text
        problem = None if text else "thinking_only"
    return found._replace(text=text, problem=problem)
