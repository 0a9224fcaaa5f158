"""What a person's choice tells of their preference: worded by the policy, and kept once the person agrees."""

from collections.abc import Mapping
from typing import Annotated, Any

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import EphemeralValue
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from tpo_graph.accounting import add_usage
from tpo_graph.conversation import last_query
from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.phase import effective_settings
from tpo_graph.graph.preference_memory import read_preference, save_preference, user_of
from tpo_graph.sampling import Sampler
from tpo_graph.settings import TPOSettings
from tpo_graph.template import Template
from tpo_graph.types import ScoredCandidate, StepRecord, StopReason, Usage

__all__ = ["PREFERENCE_PROMPT", "MemoryState", "keep_node", "word_node"]

PREFERENCE_PROMPT = """\
<question>
$query
</question>

<chosen>
$best
</chosen>

<rejected>
$worst
</rejected>

<known>
$preference
</known>

A person who asked the question chose the first response over the second. What is known of their taste so far is at \
the end; it may be empty. Write what they want of an answer to any question, as one or two plain sentences that begin \
with a verb ("Give ...", "Avoid ..."). Keep what is known unless the choice speaks against it. Name nothing that is \
about this question alone. Write these sentences and nothing else."""
"""What the policy is asked, with the variables that it has."""

_VARIABLES = {"query", "best", "worst", "preference"}
_YES, _NO = ("ok", "yes", "save"), ("no", "skip")


class MemoryState(TypedDict, total=False):
    """The run around the loop: what came of it, and what is to be kept.

    Attributes:
        messages: the conversation, with the answer at its end.
        query: as in `TPOInput`.
        drafts: as in `TPOInput`.
        best: what the person chose.
        worst: what it was compared with.
        trajectory: one record a step.
        usage: by phase; `preference` is what the sentence cost.
        stop_reason: why the loop ended.
        answer: the text of the best.
        preference: the sentence that is shown to the person; "" where there is nothing to keep.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    query: Annotated[str, EphemeralValue]
    drafts: Annotated[list[str], EphemeralValue]
    best: ScoredCandidate
    worst: ScoredCandidate
    trajectory: list[StepRecord]
    usage: Usage
    stop_reason: StopReason | None
    answer: str
    preference: str


def word_node(policy: Sampler, prompt: str, settings: TPOSettings) -> NodeBody:
    """The node that asks the policy for the sentence: one of its own, as a node that waits is run again after it.

    Args:
        policy: who is asked.
        prompt: with the variables of `PREFERENCE_PROMPT`.
        settings: defaults of every run; it samples as the loss does.

    Raises:
        PromptError: the prompt has an unknown variable.
    """
    template = Template.parse(prompt, allowed=_VARIABLES, where="preference_prompt")

    async def word(
        state: MemoryState, runtime: Runtime[TPOSettings], config: RunnableConfig
    ) -> dict[str, Any]:  # Any: a partial state
        user, best, worst = user_of(config), state["best"], state["worst"]
        if not user or runtime.store is None or best["text"] == worst["text"]:
            return {"preference": ""}
        known = await read_preference(runtime.store, user)
        values = {"query": last_query(state["messages"]), "best": best["text"], "worst": worst["text"]}
        asked = HumanMessage(template.render({**values, "preference": known}))
        try:
            draw = await policy.draw([asked], 1, effective_settings(settings, runtime).sampling("loss"))
        except PolicyError as error:
            # the answer is there; only what was to be kept of it is not
            used = {"preference": error.usage} if error.usage else {}
            return {"preference": "", "usage": add_usage(state["usage"], used)}
        text = draw.completions[0].text.strip()
        return {"preference": text, "usage": add_usage(state["usage"], {"preference": draw.usage})}

    return word


async def keep_node(
    state: MemoryState, runtime: Runtime[TPOSettings], config: RunnableConfig
) -> dict[str, Any]:  # Any: a partial state
    """Show the sentence, and keep what the person agrees to."""
    assert runtime.store is not None  # else there was no sentence
    user = user_of(config)
    question = {
        "kind": "tpo_preference",
        "question": "May this be kept as what you prefer? Answer ok, no, or a better text.",
        "preference": state["preference"],
        "known": await read_preference(runtime.store, user),
    }
    problem = ""
    while True:
        answer = interrupt({**question, "problem": problem})
        try:
            text = _text_to_keep(answer, state["preference"])
            if text:
                await save_preference(runtime.store, user, text)
        except ConfigurationError as error:
            problem = str(error)
        else:
            return {"preference": text}


def _text_to_keep(answer: object, proposed: str) -> str:
    """What the person wants kept, "" for nothing. Only a plain yes is one.

    Raises:
        ConfigurationError: it can't be told what they want.
    """
    if answer is True or (isinstance(answer, str) and answer.strip().lower() in _YES):
        return proposed
    if answer is False or (isinstance(answer, str) and answer.strip().lower() in _NO):
        return ""
    if isinstance(answer, Mapping) and answer.keys() == {"preference"}:
        answer = answer["preference"]
    if isinstance(answer, str) and answer.strip():
        return answer.strip()
    raise ConfigurationError(f"The answer is {answer!r}; answer ok, no, or a text to keep.")
