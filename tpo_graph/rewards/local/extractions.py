"""Extractions: which numbers of a model's output are the reward, for models without a single-score head.

An extraction is torch-free: it names the kind of head to load, the positions of a text to read, the columns of
the output to keep there, and how the numbers that come back make one reward.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from tpo_graph.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Token ids of texts that begin alike: what they have in common is tokenised once.


class CommonHead:
    """The start of a text, up to an added token that many texts have there.

    A tokenizer of the `tokenizers` library cuts a text at its added tokens before it does anything else, and tokenises
    the pieces one by one. So the ids of a text are those of what comes before an added token and those of the rest,
    which begins with that token. Where there is no such place, texts are tokenised whole.

    Args:
        tokenizer: gives the ids; begin and end tokens of its own are left out.
        text: the first of the texts.
        before: the head ends before this place of it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, *, before: int) -> None:
        self._tokenizer = tokenizer
        self.ids: tuple[int, ...] = self._encoded(text)
        """Of the first text."""
        # one that takes white space before it, or is looked for in changed text, is no clean cut
        cuts = [
            token.content
            for token in (tokenizer.added_tokens_decoder.values() if tokenizer.is_fast else ())
            if not (token.lstrip or token.normalized or token.single_word)
        ]
        end, token = max(((text.rfind(token, 0, before), token) for token in cuts), default=(-1, ""))
        self._common = text[: end + len(token)] if end > 0 else ""
        self._length = max(end, 0)
        self._head = self._encoded(text[: self._length])
        if self._head + self._encoded(text[self._length :]) != self.ids:
            self._common, self._length, self._head = "", 0, ()

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text."""
        if not self._length or not text.startswith(self._common):
            return self._encoded(text)
        return self._head + self._encoded(text[self._length :])

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


HeadKind: TypeAlias = Literal["sequence", "token", "causal", "value"]
"""Sequence classification, token classification, next-token logits, or a value head on a causal model."""

Aggregate: TypeAlias = Literal["min", "product", "last"]

EXTRACTION_NAMES = (
    "label:NAME_OR_INDEX",
    "process:min",
    "process:product",
    "process:last",
    "last_token_logit:TOKEN_ID",
    "nemotron",
    "value_head",
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
        """Make one reward of the outputs of a text, shape (positions, columns)."""
        ...


@dataclass(frozen=True, slots=True)
class SingleScore:
    """The one output of a sequence classifier: what nearly every reward model has."""

    head: HeadKind = "sequence"
    step_token: str | None = None
    step_separator: str = ""
    columns: tuple[int | str, ...] = (0,)

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """The score itself."""
        return outputs[0][0]


@dataclass(frozen=True, slots=True)
class LabelLogit:
    """One label's logit of a sequence classifier with several labels.

    Attributes:
        label: name in the model's `id2label`, or index.
    """

    label: str | int
    head: HeadKind = "sequence"
    step_token: str | None = None
    step_separator: str = ""

    @property
    def columns(self) -> tuple[int | str, ...]:
        """The label's column."""
        return (self.label,)

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """The logit, no activation applied."""
        return outputs[0][0]


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
        """Softmax over the columns at each step, then the aggregate; NaN when no step is left to read."""
        positive = self.positive if isinstance(self.positive, int) else 0
        steps = [_softmax(row)[positive] for row in outputs]
        if not steps:
            return math.nan
        if self.aggregate == "last":
            return steps[-1]
        # min() would drop a NaN that is not the first
        if self.aggregate == "min":
            return math.nan if any(math.isnan(step) for step in steps) else min(steps)
        return math.prod(steps)


@dataclass(frozen=True, slots=True)
class LastTokenLogit:
    """One token's logit at the end of the text, from a language model trained so (Nemotron reward: token 0).

    Attributes:
        token: id in the vocabulary, or the token.
    """

    token: int | str = 0
    head: HeadKind = "causal"
    step_token: str | None = None
    step_separator: str = ""

    @property
    def columns(self) -> tuple[int | str, ...]:
        """The token's column."""
        return (self.token,)

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """The logit itself."""
        return outputs[0][0]


@dataclass(frozen=True, slots=True)
class ValueHead:
    """The value head that TRL's PPO trainer puts on a causal model (`v_head.summary`), at the last token."""

    head: HeadKind = "value"
    step_token: str | None = None
    step_separator: str = ""
    columns: tuple[int | str, ...] = (0,)

    def reward(self, outputs: Sequence[Sequence[float]]) -> float:
        """The value itself."""
        return outputs[0][0]


def extraction_by_name(name: str) -> Extraction:
    """Return the extraction of a name such as `process:min`.

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
        f"Unknown extraction {name!r}; allowed: {', '.join(EXTRACTION_NAMES)}.",
        hint="An extraction object (LabelLogit, ProcessReward, LastTokenLogit, ValueHead) is taken too.",
    )


def _softmax(row: Sequence[float]) -> list[float]:
    """Softmax of one row; a NaN anywhere makes all of it NaN."""
    if any(math.isnan(value) for value in row):
        return [math.nan] * len(row)
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    total = sum(powers)
    return [power / total for power in powers]
