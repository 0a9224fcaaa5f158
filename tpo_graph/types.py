"""The records that a run is made of: TypedDicts of plain values.

Nothing here is a dataclass, a pydantic object, a numpy scalar or a tensor, so that a checkpoint reads
back as what was written and an edit in LangGraph Studio keeps its type.
"""

from typing import Any, Literal, NotRequired, TypeAlias, cast

# the one of typing has no field information that pydantic can read before Python 3.12
from typing_extensions import TypedDict

JSON: TypeAlias = Any
"""Any JSON value."""

JSONObject: TypeAlias = dict[str, Any]
"""A JSON object, as in the body of a request."""

Options: TypeAlias = Any
"""Keyword arguments whose types belong to another library or class."""

PartialState: TypeAlias = dict[str, Any]
"""What a node returns: new values for some keys of the state."""

Node: TypeAlias = Any
"""Whatever LangGraph takes as a node: a function of `(state, runtime)`, sync or async, or a Runnable."""

PERSON = "person"
"""The name of the reward that is whatever a person says."""

Mode: TypeAlias = Literal["tpo", "revision", "bon"]
"""`tpo` compares best and worst; `revision` shows no rejected response; `bon` stops after the first score."""

Phase: TypeAlias = Literal["sample", "score", "select", "loss", "gradient", "update"]
"""A node of the graph. The policy is asked in `sample`, `loss`, `gradient` and `update`."""

StopReason: TypeAlias = Literal[
    "depth",  # D steps are done
    "converged",  # the best reward gained less than `tolerance` in each of the last `patience` steps
    "target",  # the best reward reached `target_reward`, or the highest that the reward model can give
    "budget",  # `budget_seconds` were over, or the next step would not fit into `budget_requests` or `budget_tokens`
    # a step is lost when it adds no candidate; two in a row end the run for the reason of the last
    "updates_failed",  # no revision could be used
    "policy_failed",  # the policy or the critic failed, or the critic wrote nothing
    "reward_failed",  # the reward model failed
    "bon",  # best of N ends after the first score
    "person",  # a person stopped it
]

FailureReason: TypeAlias = Literal[
    "out_of_time",  # `budget_seconds` were over; `text` has what was not scored
    "request_failed",  # the provider raised; `detail` has its message
    "empty",  # no text, or white space alone
    "no_tags",  # a revision without the opening tag
    "truncated",  # a revision that was cut before its closing tag, at the token limit or because the provider broke off
    "tool_calls",  # the policy called a tool and wrote no text
    "thinking_only",  # the model reasoned, and wrote no answer: its token limit may have gone into that
    "refused",  # the provider says that the model refuses; `detail` has its words
    "filtered",  # a filter of the provider cut it; `detail` says which, as far as the provider does
    "invalid",  # not valid for the schema that answers have to have
    "not_finite",  # the reward was NaN or infinite
    "scoring_failed",  # the reward model raised; `detail` has its message
]


class Candidate(TypedDict):
    """One response of the policy.

    Attributes:
        id: unique within the run.
        step: the step that drew it; 0 is the first sampling.
        text: the response, exactly as it may become the answer.
        truncated: the policy stopped inside it, at its token limit or because the provider broke off.
        finish_reason: how the policy's completion ended: "stop", "length", "tool_calls", "error", another word of the
            provider, or "" where it did not say. Not there where nobody wrote it down.
    """

    id: str
    step: int
    text: str
    truncated: bool
    finish_reason: NotRequired[str]


class ScoredCandidate(Candidate):
    """A candidate with its reward (a finite float, higher is better)."""

    reward: float


def scored_candidate(candidate: Candidate, reward: float) -> ScoredCandidate:
    """The candidate with its reward, in the order in which a person reads: the text is long and comes last.

    Args:
        candidate: what was scored.
        reward: a finite number.
    """
    rest = {name: value for name, value in candidate.items() if name != "text"}
    first = {"id": candidate["id"], "step": candidate["step"], "reward": reward}
    return cast("ScoredCandidate", {**first, **rest, "text": candidate["text"]})  # the same keys, in another order


class RankedCandidate(TypedDict):
    """A candidate of a step's ranking.

    Attributes:
        id: the candidate's.
        reward: the candidate's.
    """

    id: str
    reward: float


class PreferencePair(TypedDict):
    """The best and the worst candidate of the whole cache ("chosen" and "rejected" in prompts)."""

    best: ScoredCandidate
    worst: ScoredCandidate


class PersonChoice(TypedDict):
    """What a person decided at one question of a run. What they merely accepted is none of their decisions.

    Attributes:
        step: the step whose candidates they saw.
        best: the text that they chose, or wrote the critique on.
        worst: the text that it was chosen over; "" when they chose nothing.
        critique: what they wrote; "" when they wrote nothing.
    """

    step: int
    best: str
    worst: str
    critique: str


class FailureRecord(TypedDict):
    """A response or a request that could not be used, and why. Nothing that was paid for goes unrecorded.

    Attributes:
        phase: where it happened.
        step: in which step.
        reason: one of `FailureReason`.
        detail: the provider's message, or "".
        text: the text that could not be used, with the reasoning in front of it, or "".
        finish_reason: how the completion ended, as in `Candidate`, also "content_filter" and "refusal"; "" where there
            was none. Not there where nobody wrote it down.
    """

    phase: Phase
    step: int
    reason: FailureReason
    detail: str
    text: str
    finish_reason: NotRequired[str]


class StepRecord(TypedDict):
    """What one step did; a run's trajectory is a list of these.

    Attributes:
        step: 0 for the first sampling, then 1..D.
        best_id: id of the best candidate of the whole cache after this step.
        best_reward: its reward; never falls from one step to the next.
        worst_reward: the lowest reward of the whole cache.
        mean_reward: mean reward of the candidates that this step added; None when it added none.
        ranking: ids and rewards of the candidates that this step added, best first; equal rewards in the order in which
            they were drawn. Not there where nobody wrote it down.
        candidates: how many scored candidates this step added.
        failures: how many responses and requests of this step could not be used.
        requests: requests of this step to policy and critic, and to a reward model that counts its own (a judge).
        input_tokens: prompt tokens of this step, as the provider counts them.
        output_tokens: completion tokens of this step.
        seconds: wall time since the step before was selected (for step 0: since the run began).
        loss: the textual loss that led to this step's candidates; "" for step 0.
        gradient: the textual gradient that led to them; "" for step 0.
    """

    step: int
    best_id: str
    best_reward: float
    worst_reward: float
    mean_reward: float | None
    ranking: NotRequired[list[RankedCandidate]]
    candidates: int
    failures: int
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    loss: str
    gradient: str


class NewCandidates(TypedDict):
    """What a node drew or scored.

    Attributes:
        phase: `sample` and `update` draw, `score` scores what they drew.
        step: the step that it belongs to.
        candidates: those of `score` have their `reward`.
        failures: what could not be used.
    """

    phase: Literal["sample", "update", "score"]
    step: int
    candidates: list[Candidate] | list[ScoredCandidate]
    failures: list[FailureRecord]


class StreamEvent(TypedDict, total=False):
    """What a run writes into LangGraph's stream `custom` while it goes on; it has one of the two keys.

    Attributes:
        tpo_candidates: after `sample`, `update` and `score`.
        tpo_step: after `select`.
    """

    tpo_candidates: NewCandidates
    tpo_step: StepRecord


class PhaseUsage(TypedDict):
    """What one phase has used so far.

    Attributes:
        requests: requests that were sent, the refused ones included.
        input_tokens: prompt tokens; a prompt that one request shares among N completions counts once.
        output_tokens: completion tokens of all N.
        seconds: wall time spent in the phase.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float


Usage: TypeAlias = dict[str, PhaseUsage]
"""`PhaseUsage` by phase name."""
