"""Extractions: which numbers of a model's output are the reward, for models without a single-score head.

An extraction does not need torch: it names the kind of head to load, the positions of a text to read and the columns of
the output to keep there, and makes one reward of these numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

from tpo_graph.errors import ConfigurationError

HeadKind: TypeAlias = Literal["sequence", "token", "causal", "value"]
"""Sequence classification, token classification, next-token logits, or a value head on a causal model."""

Aggregate: TypeAlias = Literal["min", "product", "last"]

EXTRACTION_NAMES = (
    "label:NAME_OR_INDEX, process:min, process:product, process:last, last_token_logit:TOKEN_ID, nemotron, value_head"
)


class Extraction(Protocol):
    """How a reward is read from a model's output."""

    @property
    def head(self) -> HeadKind:
        """The head that must be loaded."""
        ...

    @property
    def step_token(self) -> str | None:
        """The token whose positions are read; None reads each text at one position, its pooled one."""
        ...

    @property
    def step_separator(self) -> str:
        """What divides a response into steps; only used with a `step_token`."""
        ...

    @property
    def columns(self) -> tuple[int | str, ...]:
        """Output columns to keep, as indices, label names or tokens; () keeps all of them."""
        ...

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """Make one reward of a text's outputs.

        Args:
            outputs: numbers of shape (positions, columns).
        """
        ...


class _OneNumber:
    """The one number at a text's pooled position, as the model gives it."""

    step_token: ClassVar[None] = None
    step_separator: ClassVar[str] = ""

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """Return the number itself, no activation applied."""
        return outputs[0][0]


@dataclass(frozen=True)
class SingleScore(_OneNumber):
    """The only output of a sequence classifier, which is what nearly every reward model has."""

    head: ClassVar[HeadKind] = "sequence"
    columns: ClassVar[tuple[int | str, ...]] = (0,)


@dataclass(frozen=True)
class LabelLogit(_OneNumber):
    """One label's logit of a sequence classifier with several labels.

    Attributes:
        label: name in the model's `id2label`, or index.
    """

    label: str | int
    head: ClassVar[HeadKind] = "sequence"

    @property
    def columns(self) -> tuple[int | str, ...]:
        """The label's column."""
        return (self.label,)


@dataclass(frozen=True)
class LastTokenLogit(_OneNumber):
    """One token's logit at the end of the text, from a language model trained so (Nemotron reward: token 0).

    Attributes:
        token: id in the vocabulary, or the token.
    """

    token: int | str = 0
    head: ClassVar[HeadKind] = "causal"

    @property
    def columns(self) -> tuple[int | str, ...]:
        """The token's column."""
        return (self.token,)


@dataclass(frozen=True)
class ValueHead(_OneNumber):
    """The value head that TRL's PPO trainer puts on a causal model (`v_head.summary`), at the last token."""

    head: ClassVar[HeadKind] = "value"
    columns: ClassVar[tuple[int | str, ...]] = (0,)


@dataclass(frozen=True, slots=True)
class ProcessReward:
    """A process reward model: a probability for each step of a response, aggregated to one reward.

    A response is cut into steps at `step_separator`; after each step comes `step_token`, where the model says
    how likely the steps so far are right.

    Attributes:
        aggregate: `min` (the weakest step), `product` (all steps right) or `last` (the last step's).
        step_token: a token of the model's vocabulary, as the model was trained with.
        step_separator: what divides steps in a response.
        positive: the column that means "right": a label's index, or (causal) a token.
        negative: the token that means "wrong" (causal only); with it the reward model is a language model whose
            two logits are compared, as in Math-Shepherd.
    """

    aggregate: Aggregate = "min"
    step_token: str | None = "\n"
    step_separator: str = "\n\n"
    positive: int | str = 1
    negative: str | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in ("min", "product", "last"):
            raise ConfigurationError(
                f"Unknown aggregate {self.aggregate!r} of a process reward; allowed: min, product, last."
            )
        if not self.step_token or not self.step_separator:
            raise ConfigurationError("A process reward needs a step_token and a step_separator that are not empty.")
        if isinstance(self.positive, str) != isinstance(self.negative, str):
            raise ConfigurationError(
                f"A process reward with positive={self.positive!r} and negative={self.negative!r} is not complete; "
                "give a label's index as positive alone, or two tokens, for example '+' and '-'."
            )

    @property
    def head(self) -> HeadKind:
        """Token classification, or a causal model when two tokens are compared."""
        return "token" if self.negative is None else "causal"

    @property
    def columns(self) -> tuple[int | str, ...]:
        """All labels, or the two tokens."""
        return () if self.negative is None else (self.positive, self.negative)

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """Aggregate the probabilities, by softmax over the columns, of all steps; NaN when no step is left to read."""
        column = self.positive if isinstance(self.positive, int) else 0
        probabilities = []
        for row in outputs:
            highest = max(row)
            powers = [math.exp(value - highest) for value in row]
            probabilities.append(powers[column] / sum(powers))
        # a probability is NaN where any of its row is; min() would drop one that is not the first
        if not probabilities or (self.aggregate == "min" and any(map(math.isnan, probabilities))):
            return math.nan
        if self.aggregate == "last":
            return probabilities[-1]
        return min(probabilities) if self.aggregate == "min" else math.prod(probabilities)


def extraction_by_name(name: str) -> Extraction:
    """Return the extraction of a name.

    Args:
        name: one of `EXTRACTION_NAMES`, such as `process:min`.

    Raises:
        ConfigurationError: for an unknown name.
    """
    fixed: dict[str, Extraction] = {
        "process:min": ProcessReward("min"),
        "process:product": ProcessReward("product"),
        "process:last": ProcessReward("last"),
        "nemotron": LastTokenLogit(0),
        "value_head": ValueHead(),
    }
    if name in fixed:
        return fixed[name]
    kind, _, argument = name.partition(":")
    if kind == "label" and argument:
        return LabelLogit(int(argument) if argument.isdecimal() else argument)
    if kind == "last_token_logit" and argument.isdecimal():
        return LastTokenLogit(int(argument))
    raise ConfigurationError(
        f"Unknown extraction {name!r}; allowed: {EXTRACTION_NAMES}.",
        hint="An extraction object (LabelLogit, ProcessReward, LastTokenLogit, ValueHead) is taken too.",
    )
