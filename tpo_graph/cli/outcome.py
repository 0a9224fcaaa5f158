"""What a run is asked for, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tpo_graph.cli.events import Part, RunEnded
from tpo_graph.cli.loading import Load, load_by_name
from tpo_graph.errors import PolicyError, RewardError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PERSON, Candidate, Phase, ScoredCandidate, Usage

if TYPE_CHECKING:
    from tpo_graph.prompt_store import PromptPack

__all__ = ["Outcome", "RunRequest"]


@dataclass(frozen=True)
class RunRequest:
    """What is to be answered, and by what.

    Attributes:
        question: the user message.
        settings: the settings of the run.
        models: names of policy, reward model and maybe critic.
        system: the system message, "" for none.
        prompts: a pack; None takes the one that suits the policy.
        ask: let a person choose after each scoring, and edit the critique.
        load: makes a model of its name.
    """

    question: str
    settings: TPOSettings
    models: Mapping[Part, str]
    system: str = ""
    prompts: "PromptPack | None" = None
    ask: bool = False
    load: Load = load_by_name

    @property
    def person_rates(self) -> bool:
        """Whether a person is the reward model."""
        return self.models["reward model"].strip() == PERSON

    @property
    def conversation(self) -> list[tuple[str, str]]:
        """The messages of the run's input."""
        return [*([("system", self.system)] if self.system else []), ("user", self.question)]


@dataclass
class Outcome:
    """How a run ended, and all that it made.

    Attributes:
        state: the last state of the graph; empty when it did not begin.
        error: what ended it, or None.
        interrupted: a person ended it.
        seconds: wall time.
        prompts: name of the prompt pack that was used; "" when it was not known yet.
        phase: the one that began last; None before the first.
    """

    state: Mapping[str, Any] = field(default_factory=dict)  # Any: a TPOState
    error: BaseException | None = None
    interrupted: bool = False
    seconds: float = 0.0
    prompts: str = ""
    phase: Phase | None = None

    @property
    def best(self) -> ScoredCandidate | None:
        """The best candidate so far: the one that a person picked, else the one of the highest reward."""
        from tpo_graph.selection import preference_pair

        if self.state.get("choices") and self.state.get("best"):
            best: ScoredCandidate = self.state["best"]
            return best
        cache = self.state.get("cache") or []
        return preference_pair(cache)["best"] if cache else None

    @property
    def unscored(self) -> list[Candidate]:
        """Candidates that were drawn and have no reward."""
        if isinstance(self.error, RewardError) and self.error.unscored:
            return self.error.unscored
        return list(self.state.get("pending") or [])

    @property
    def usage(self) -> Usage:
        """What was used, by the phase that failed too."""
        from tpo_graph.accounting import add_usage

        lost = self.error.usage if isinstance(self.error, (PolicyError, RewardError)) else None
        return add_usage(self.state.get("usage"), {self.phase: lost} if self.phase and lost else {})

    def ended(self) -> RunEnded:
        """The last event of the run."""
        from tpo_graph.accounting import total

        used = total(self.usage)
        return RunEnded(
            ending="interrupted" if self.interrupted else "failed" if self.error else "finished",
            stop_reason=self.state.get("stop_reason"),
            best=self.best,
            requests=used["requests"],
            input_tokens=used["input_tokens"],
            output_tokens=used["output_tokens"],
            seconds=self.seconds,
            unscored=len(self.unscored),
        )
