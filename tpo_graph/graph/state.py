"""The state of a run: plain values, each with one writer, and the reducers that keep what is appended."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from langchain_core.messages import AnyMessage
from langgraph.channels import DeltaChannel, EphemeralValue, LastValue
from langgraph.graph.message import Messages, add_messages
from langgraph.types import Overwrite, StateSnapshot
from pydantic import Field
from typing_extensions import TypedDict

from tpo_graph._storable import storable
from tpo_graph.accounting import add_usage
from tpo_graph.rewards.warnings import OveroptimizationWarning
from tpo_graph.types import (
    Candidate,
    FailureRecord,
    PartialState,
    PersonChoice,
    ScoredCandidate,
    StepRecord,
    StopReason,
    Usage,
)

T = TypeVar("T")


def append(kept: list[T] | None, writes: Sequence[list[T]]) -> list[T]:
    """The reducer of what is only appended to: all writes of a superstep, in order, behind what is kept."""
    return [*(kept or []), *(item for write in writes for item in write)]


def add_storable_messages(kept: Messages, new: Messages) -> Messages:
    """LangGraph's `add_messages`, for texts that a checkpoint can hold."""
    return add_messages(kept, storable(new))


class StorableInput(EphemeralValue[T]):
    """An input that one superstep sees, with texts that a checkpoint can hold: it is stored before any node runs."""

    def update(self, values: Sequence[T]) -> bool:
        """Take what was written."""
        return super().update(storable(list(values)))


class StorableText(LastValue[str]):
    """A text that is kept until the next one, as a checkpoint can hold it, whichever node writes it."""

    def update(self, values: Sequence[str]) -> bool:
        """Take what was written."""
        return super().update(storable(list(values)))


class TPOInput(TypedDict, total=False):
    """What a run begins with: a conversation, a query, or a conversation and the query that follows it.

    Attributes:
        messages: the conversation in any form that LangChain takes.
        query: a plain user message, put at the end of the conversation.
        drafts: responses that are there already; they are candidates of step 0, and the policy draws the rest of N.
    """

    messages: Annotated[
        list[AnyMessage], Field(description="The conversation, with its latest message last."), add_storable_messages
    ]
    query: Annotated[str, Field(description="A question or a task as plain text; put at the end of `messages`.")]
    drafts: Annotated[
        list[str],
        Field(description="Answers that are there already: the first candidates; the policy draws the rest of N."),
    ]


class TPOState(TypedDict, total=False):
    """Everything that a run knows.

    Attributes:
        messages: the conversation; `select` appends the answer as an AIMessage.
        query: the plain user message of the input; gone once `sample` has put it into `messages`.
        drafts: responses of the input; gone once `sample` has put them into `pending`.
        pending: candidates that were drawn and wait for their reward.
        cache: every scored candidate of the run, append only.
        step: how many steps are done.
        best: the best candidate of the cache ("chosen").
        worst: the worst one ("rejected").
        loss: this step's textual loss; `select` empties it before the next step.
        gradient: this step's textual gradient, by `gradient` or by a `loss` that writes both; emptied likewise.
        trajectory: one record a step.
        failures: responses and requests that could not be used, append only.
        usage: requests, tokens and seconds by phase.
        choices: what a person decided, append only; empty where nobody was asked.
        highest_reward: the highest reward that the reward model can give; None where it does not say so.
        second_rewards: what a second reward model gave, by candidate id: to all candidates of step 0, and to each
            step's best.
        warnings: what to look at before the reward is trusted: what the reward model could not read, as it happens,
            and signs that the reward rose and the answers did not get better, when the run ends.
        stop_reason: why the run ended; None while it goes on.
        answer: the text of the best candidate, once the run has ended.
    """

    messages: Annotated[list[AnyMessage], add_storable_messages]
    query: Annotated[str, StorableInput]
    drafts: Annotated[list[str], StorableInput]
    pending: list[Candidate]
    # a checkpoint then holds what a step added, not the whole list again: its size is linear in the text
    cache: Annotated[list[ScoredCandidate], DeltaChannel(append)]
    step: int
    best: ScoredCandidate
    worst: ScoredCandidate
    loss: Annotated[str, StorableText]
    gradient: Annotated[str, StorableText]
    trajectory: Annotated[list[StepRecord], DeltaChannel(append)]
    failures: Annotated[list[FailureRecord], DeltaChannel(append)]
    choices: Annotated[list[PersonChoice], DeltaChannel(append)]
    usage: Annotated[Usage, add_usage]
    highest_reward: float | None
    second_rewards: dict[str, float]
    warnings: list[OveroptimizationWarning]
    stop_reason: StopReason | None
    answer: Annotated[str, StorableText]


def new_run() -> PartialState:
    """What empties the state of a thread for the next run; the conversation stays."""
    return {
        **{name: Overwrite([]) for name in ("cache", "trajectory", "failures", "choices")},
        "usage": Overwrite({}),
        "step": 0,
        **dict.fromkeys(("loss", "gradient", "answer"), ""),
        "highest_reward": None,
        "second_rewards": {},
        "warnings": [],
        "stop_reason": None,
    }


def is_finished(state: StateSnapshot | Mapping[str, Any]) -> bool:
    """Whether a run has ended, so that there is nothing to resume.

    `next` of a snapshot does not say it: after a process was killed it may be empty although the run goes on with
    `graph.invoke(None, config)`.

    Examples:
        >>> from langgraph.checkpoint.memory import InMemorySaver
        >>> from tpo_graph import create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> policy, reward = ScriptedChatModel(["hello"]), TableReward({"hello": 1.0})
        >>> graph = create_tpo_graph(policy, reward, checkpointer=InMemorySaver(), interrupt_before=["score"])
        >>> thread = {"configurable": {"thread_id": "1"}}
        >>> _ = graph.invoke({"query": "hi"}, thread, context={"n": 1, "mode": "bon"})
        >>> is_finished(graph.get_state(thread))
        False
        >>> _ = graph.invoke(None, thread, context={"n": 1, "mode": "bon"})
        >>> is_finished(graph.get_state(thread))
        True

    Args:
        state: what `graph.get_state(config)` returns, or the values of a state. Of a thread that is used again, values
            alone may be those of the run before.
    """
    if isinstance(state, StateSnapshot):
        # tasks that are done and not yet part of a checkpoint are in `tasks` and not in `next`
        return not state.tasks and is_finished(state.values)
    return state.get("stop_reason") is not None
