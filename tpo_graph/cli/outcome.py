"""What a run of the command is asked for, and how it ended with everything that it produced."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from typing_extensions import TypedDict

from tpo_graph.cli.output import describe_error
from tpo_graph.errors import PolicyError, RewardError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PERSON, Candidate, JSONObject, Phase, ScoredCandidate, Usage

if TYPE_CHECKING:
    from tpo_graph.prompts.pack import PromptPack

Role: TypeAlias = Literal["policy", "critic", "reward model", "second reward model"]
"""What a model is in a run."""

State: TypeAlias = Mapping[str, Any]
"""A `TPOState`, or the beginning of one."""


class PhaseRecord(TypedDict):
    """A phase that is done, its step, and how long it took."""

    phase: Phase
    step: int
    seconds: float


@dataclass(frozen=True)
class RunRequest:
    """What is to be answered, and by what.

    Attributes:
        question: the user message.
        settings: the settings of the run.
        models: names of policy and reward model, and maybe of critic and second reward model.
        system: the system message, "" for none.
        prompts: a pack; None takes the one that suits the policy.
        variant: a set of nodes that take the place of the paper's, by name; None for the paper's.
        ask: let a person choose after each scoring, and edit the critique.
    """

    question: str
    settings: TPOSettings
    models: Mapping[Role, str]
    system: str = ""
    prompts: "PromptPack | None" = None
    variant: str | None = None
    ask: bool = False

    @property
    def conversation(self) -> list[tuple[str, str]]:
        """Roles and texts of the messages that the run begins with."""
        return [*([("system", self.system)] if self.system else []), ("user", self.question)]

    @property
    def person_rates(self) -> bool:
        """Whether a person is the reward model."""
        return self.models["reward model"].strip() == PERSON


@dataclass
class Outcome:
    """How a run ended, with everything that was paid for.

    Attributes:
        request: what was asked for; None when that could not be understood.
        prompts: the name of the prompt pack; "" while it is not decided.
        state: the last state of the graph; empty when the graph did not start.
        phase: the phase that started last; None before the first.
        phases: the phases that are done, in their order.
        error: what ended the run, or None.
        interrupted: a person ended it.
        seconds: wall time, loading included.
    """

    request: RunRequest | None = None
    prompts: str = ""
    state: State = field(default_factory=dict)
    phase: Phase | None = None
    phases: list[PhaseRecord] = field(default_factory=list)
    error: BaseException | None = None
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def best(self) -> ScoredCandidate | None:
        """The best candidate so far: the one that a person picked, else the one with the highest reward."""
        from tpo_graph.selection import preference_pair

        if self.state.get("choices") and self.state.get("best"):
            picked: ScoredCandidate = self.state["best"]
            return picked
        cache = self.state.get("cache")
        return preference_pair(cache)["best"] if cache else None

    @property
    def answer(self) -> str | None:
        """The answer of the run, or of a run that did not finish the text of the best candidate."""
        return self.state.get("answer") or (self.best["text"] if self.best else None)

    @property
    def unscored(self) -> list[Candidate]:
        """The candidates that were drawn and have no reward."""
        if isinstance(self.error, RewardError) and self.error.unscored:
            return self.error.unscored
        return list(self.state.get("pending") or [])

    @property
    def usage(self) -> Usage:
        """What was used, including the requests of a phase that failed."""
        from tpo_graph.accounting import add_usage

        failed = self.error.usage if isinstance(self.error, (PolicyError, RewardError)) else None
        return add_usage(self.state.get("usage"), {self.phase: failed} if self.phase and failed else {})

    def document(self) -> JSONObject:
        """The run as plain values; the same keys whether it finished, failed or was interrupted."""
        from tpo_graph import __version__
        from tpo_graph.prompts.template import role_of

        state, request = self.state, self.request
        messages = [(role_of(message), message.text) for message in state.get("messages", [])]
        return {
            "version": __version__,
            "answer": self.answer,
            "stop_reason": state.get("stop_reason"),
            "best": self.best,
            "worst": state.get("worst"),
            "trajectory": state.get("trajectory", []),
            "cache": state.get("cache", []),
            "unscored": self.unscored,
            "loss": state.get("loss", ""),
            "gradient": state.get("gradient", ""),
            "failures": state.get("failures", []),
            "choices": state.get("choices", []),
            "warnings": state.get("warnings", []),
            "usage": self.usage,
            "phases": self.phases,
            "seconds": round(self.seconds, 3),
            "messages": [
                {"role": role, "content": text} for role, text in messages or (request.conversation if request else [])
            ],
            "models": dict(request.models) if request else {},
            "variant": request.variant if request else None,
            "prompts": self.prompts or None,
            "settings": request.settings.model_dump(mode="json") if request else None,
            "interrupted": self.interrupted,
            "error": describe_error(self.error) if self.error else None,
        }
