"""The document of a run: read back from the file that `tpo-graph run --json` writes, and asked who came from whom.

A file may come from anywhere, and from a later version: what is there is checked, what is not known is left out, and
what is missing has a default, apart from the few keys that make it a document of a run.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_graph.errors import ConfigurationError
from tpo_graph.settings import read_text
from tpo_graph.types import Phase

_SHOWN_PROBLEMS = 3


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class DrawnCandidate(_Record):
    """A candidate; its reward is None where it was not scored."""

    id: str
    step: int = Field(ge=0)
    text: str
    truncated: bool = False
    finish_reason: str = ""
    reward: float | None = None


class Step(_Record):
    """What `tpo_graph.types.StepRecord` says of a step."""

    step: int = Field(ge=0)
    best_id: str
    best_reward: float
    worst_reward: float
    mean_reward: float | None = None
    candidates: int = 0
    failures: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    loss: str = ""
    gradient: str = ""


class Failure(_Record):
    """What could not be used; the reason may be one that this version does not know."""

    phase: str
    step: int
    reason: str
    detail: str = ""
    text: str = ""
    finish_reason: str = ""


class Choice(_Record):
    """What a person decided at a step."""

    step: int
    best: str = ""
    worst: str = ""
    critique: str = ""


class PhaseCost(_Record):
    """What a phase used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


class PhaseDone(_Record):
    """A phase that is done, and how long it took."""

    phase: Phase
    step: int = Field(ge=0)
    seconds: float = Field(0.0, ge=0)


class Warned(_Record):
    """What to look at before the reward is trusted."""

    kind: str = ""
    message: str


class Message(_Record):
    """A message of the conversation."""

    role: str
    content: str


class RunError(_Record):
    """The error that ended a run."""

    kind: str = ""
    message: str
    hint: str = ""


class Comparison(_Record):
    """The candidates that a step was written from; there is no `rejected` where nothing could be compared."""

    chosen: DrawnCandidate
    rejected: DrawnCandidate | None


class RunDocument(_Record):
    """A run as plain values, with the keys of `tpo-graph run --json`."""

    answer: str | None
    cache: list[DrawnCandidate]
    trajectory: list[Step]
    stop_reason: str | None = None
    best: DrawnCandidate | None = None
    unscored: list[DrawnCandidate] = []
    failures: list[Failure] = []
    choices: list[Choice] = []
    warnings: list[Warned] = []
    usage: dict[str, PhaseCost] = {}
    phases: list[PhaseDone] = []
    loss: str = ""
    gradient: str = ""
    seconds: float | None = None
    messages: list[Message] = []
    models: dict[str, str] = {}
    variant: str | None = None
    prompts: str | None = None
    settings: dict[str, Any] | None = None
    interrupted: bool = False
    error: RunError | None = None

    @cached_property
    def candidates(self) -> list[DrawnCandidate]:
        """All candidates, in the order in which they were drawn; those without a reward come last."""
        return [*self.cache, *self.unscored]

    @cached_property
    def by_id(self) -> dict[str, DrawnCandidate]:
        """The candidates by id."""
        return {candidate.id: candidate for candidate in reversed(self.candidates)}

    def record_before(self, step: int) -> Step | None:
        """The record of the step before `step`; of the last one that there is."""
        return max((r for r in self.trajectory if r.step < step), key=lambda record: record.step, default=None)

    def parent(self, candidate: DrawnCandidate) -> DrawnCandidate | None:
        """The candidate that this one is a revision of: the best one after the step before; None for a first draft."""
        record = self.record_before(candidate.step)
        parent = self.by_id.get(record.best_id) if record else None
        return parent if parent and parent.step < candidate.step else None

    def line_of_descent(self, candidate: DrawnCandidate) -> list[DrawnCandidate]:
        """The candidate, what it is a revision of, and so on to a first draft."""
        line = [candidate]
        while (parent := self.parent(line[-1])) is not None:
            line.append(parent)
        return line

    def comparison(self, step: int) -> Comparison | None:
        """The pair that loss and gradient of a step are about: best and worst after the step before."""
        record = self.record_before(step)
        chosen = self.by_id.get(record.best_id) if record else None
        if record is None or chosen is None:
            return None
        known = [candidate for candidate in self.cache if candidate.step <= record.step]
        # two candidates may have one reward, and a person may have told them apart
        picked = [choice.worst for choice in self.choices if choice.step == record.step and choice.worst]
        rejected = next((c for c in known if picked and c.text == picked[-1]), None) or next(
            (c for c in known if c.reward == record.worst_reward), None
        )
        return Comparison(chosen=chosen, rejected=rejected if rejected and rejected.id != chosen.id else None)

    @property
    def question(self) -> str:
        """The last message of the user; "" where the run did not get so far."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")


def read_run(path: Path) -> RunDocument:
    """Read the document of a run from its file.

    Args:
        path: what `tpo-graph run --json` printed, or `--save` wrote.

    Raises:
        ConfigurationError: the file can't be read, is too large or nested too deep, or is no such document.
    """
    title = f"Run file {str(path)!r}"
    hint = "Make one with: tpo-graph run --save run.json QUESTION."
    text = read_text(path, title="Run file")
    try:
        values = json.loads(text.removeprefix("\ufeff"))
        return RunDocument.model_validate(values)
    except RecursionError as problem:
        raise ConfigurationError(f"{title} is nested too deep.", hint=hint) from problem
    except ValidationError as problem:
        raise ConfigurationError(f"{title} is not the document of a run: {_problems(problem)}", hint=hint) from problem
    except ValueError as problem:
        raise ConfigurationError(f"{title} is not valid JSON: {problem}.", hint=hint) from problem


def _problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    shown = [
        f"{'.'.join(map(str, problem['loc'])) or 'all of it'}: {problem['msg']}"
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    more: Sequence[str] = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    return f"{'; '.join([*shown, *more])}."
