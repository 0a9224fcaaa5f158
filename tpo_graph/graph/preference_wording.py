"""What a person's choices tell of their preference: worded by the policy, and kept once the person agrees."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import EphemeralValue
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from tpo_graph.accounting import add_usage
from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.preference_memory import read_preference, save_preference, user_of
from tpo_graph.graph.request import effective_settings
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.conversation import cut_to_tokens, last_query
from tpo_graph.prompts.template import Template
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PersonChoice, ScoredCandidate, StepRecord, StopReason, Usage

PREFERENCE_PROMPT = """\
<question>
$query
</question>

$choices

<known>
$preference
</known>

A person who asked the question saw several responses to it. Above is what they decided: which response they chose \
over which other, and what they wrote of a response in their own words. What is known of their taste so far is at the \
end; it may be empty. Write what they want of an answer to any question, as one or two plain sentences that begin with \
a verb ("Give ...", "Avoid ..."). Keep what is known unless a choice speaks against it. Name nothing that is about \
this question alone. Write these sentences and nothing else."""
"""What the policy is asked, with the variables that it has."""

_VARIABLES = {"query", "choices", "preference"}
_YES, _NO = ("ok", "yes", "save"), ("no", "skip")


class MemoryState(TypedDict, total=False):
    """The run around the loop: what came of it, and what is to be kept.

    Attributes:
        messages: the conversation, with the answer at its end.
        query: as in `TPOInput`.
        drafts: as in `TPOInput`.
        best: the best candidate; what the person chose last, if they chose.
        worst: what it was compared with.
        choices: what the person decided on the way.
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
    choices: list[PersonChoice]
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
        user, chosen = user_of(config, runtime.context), effective_settings(settings, runtime)
        cut = partial(cut_to_tokens, limit=chosen.max_shown_tokens, tokenize=policy.tokenize)
        told = _in_words(state.get("choices") or [], cut)
        if not user or runtime.store is None or not told:
            return {"preference": ""}
        known = await read_preference(runtime.store, user)
        values = {"query": last_query(state["messages"]), "choices": told, "preference": known}
        try:
            draw = await policy.draw([HumanMessage(template.render(values))], 1, chosen.sampling("loss"))
        except PolicyError as error:
            # the answer is there; only what was to be kept of it is not
            used = {"preference": error.usage} if error.usage else {}
            return {"preference": "", "usage": add_usage(state["usage"], used)}
        text = draw.completions[0].text.strip()
        return {"preference": text, "usage": add_usage(state["usage"], {"preference": draw.usage})}

    return word


def _in_words(choices: Sequence[PersonChoice], cut: Callable[[str], str]) -> str:
    """A person's decisions as text for a prompt; "" where they decided nothing."""
    told = []
    for choice in choices:
        parts: dict[str, str] = {}
        if choice["worst"] not in ("", choice["best"]):
            parts = {"chosen": choice["best"], "rejected": choice["worst"]}
        if choice["critique"]:
            parts = {**(parts or {"response": choice["best"]}), "what_they_wrote": choice["critique"]}
        told += [f"<{name}>\n{cut(text)}\n</{name}>" for name, text in parts.items()]
    return "\n\n".join(told)


async def keep_node(
    state: MemoryState, runtime: Runtime[TPOSettings], config: RunnableConfig
) -> dict[str, Any]:  # Any: a partial state
    """Show the sentence, and keep what the person agrees to."""
    assert runtime.store is not None  # else there was no sentence
    user = user_of(config, runtime.context)
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
