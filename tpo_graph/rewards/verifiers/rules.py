"""Patterns that a response must, or must not, hold."""

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.verifiers.checkers import Checkers, shared_checkers
from tpo_graph.rewards.verifiers.child_process import CheckKilledError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


# How long a response is, against how long it should be.

LengthUnit: TypeAlias = Literal["words", "characters", "tokens"]
"""Words are what white space divides, so Chinese, Japanese and Thai are better counted in characters."""

_UNITS = ("words", "characters", "tokens")
_BYTES_PER_TOKEN = 4


class LengthVerifier:
    """1.0 for a response within the range, and less the further it is outside; always above 0 and never NaN.

    Outside the range the reward is 1 / (1 + (distance / falloff) ** 2): flat at the edge, one half at `falloff` units
    outside, and never quite 0, so that of two responses that are far too long the shorter one still wins.

    Example:
        >>> import asyncio
        >>> asyncio.run(LengthVerifier(2, 4, falloff=2).score([], ["a b c", "a b c d e f"]))
        [1.0, 0.5]

    Args:
        shortest: fewest units that are right.
        longest: most units that are right; the same as `shortest` for a target, None for no upper limit.
        unit: `words`, `characters` or `tokens`.
        falloff: units outside the range at which the reward is one half, above 0; None takes a quarter of the nearer
            edge (1 at least).
        tokenize: text to tokens, for `tokens`; without it a token is taken to be four bytes of UTF-8.

    Raises:
        ConfigurationError: a range that holds nothing, a falloff that is not above 0, or an unknown unit.
    """

    def __init__(
        self,
        shortest: int = 0,
        longest: int | None = None,
        *,
        unit: LengthUnit = "words",
        falloff: float | None = None,
        tokenize: Callable[[str], Sequence[object]] | None = None,
    ) -> None:
        if unit not in _UNITS:
            raise ConfigurationError(f"Unknown unit of length {unit!r}; allowed: {', '.join(_UNITS)}.")
        if shortest < 0 or (longest is not None and longest < shortest):
            raise ConfigurationError(f"No length is at least {shortest} and at most {longest}.")
        if falloff is not None and not 0 < falloff < math.inf:
            raise ConfigurationError(f"The falloff must be a number above 0; it is {falloff!r}.")
        if tokenize is not None and unit != "tokens":
            raise ConfigurationError(f"A tokenizer counts tokens, and the unit is {unit!r}.")
        self._shortest = shortest
        self._longest = math.inf if longest is None else longest
        self._unit = unit
        self._falloff = falloff
        self._tokenize = tokenize

    async def score(
        self,
        messages: "Sequence[BaseMessage]",  # noqa: ARG002  # a length is that of the response alone
        responses: Sequence[str],
    ) -> list[float]:
        """Measure every response; see `RewardModel`."""
        if self._tokenize is None:
            return [self._reward(self._length(response)) for response in responses]
        # a tokenizer may take long enough to be felt
        lengths = await asyncio.to_thread(lambda: [self._length(response) for response in responses])
        return [self._reward(length) for length in lengths]

    def _length(self, text: str) -> int:
        if self._unit == "words":
            return len(text.split())
        if self._unit == "characters":
            return len(text)
        if self._tokenize is not None:
            return len(self._tokenize(text))
        return math.ceil(len(text.encode("utf-8", errors="surrogatepass")) / _BYTES_PER_TOKEN)

    def _reward(self, length: int) -> float:
        edge = min(max(length, self._shortest), self._longest)
        falloff = self._falloff or max(1.0, edge / 4)
        return 1.0 / (1.0 + ((length - edge) / falloff) ** 2)


_RANGE = re.compile(r"(?P<low>\d*)(?P<dash>-?)(?P<high>\d*)(?: ?(?P<unit>[a-z]+))?")


def parse_length(text: str) -> tuple[int, int | None, LengthUnit]:
    """Read a range: `150`, `100-200`, `-200`, `100-`, with `words`, `characters` or `tokens` after it.

    Without a unit it is in words.

    Example:
        >>> parse_length("100-200 tokens")
        (100, 200, 'tokens')

    Raises:
        ConfigurationError: the text is no range, or the unit is unknown.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match["low"] or match["high"]):
        raise ConfigurationError(
            f"{text!r} is no length.",
            hint='Write "150", "100-200", "-200" or "100-", with a unit if need be: "150 words".',
        )
    unit = next((known for known in _UNITS if known == (match["unit"] or "words")), None)
    if unit is None:
        raise ConfigurationError(f"Unknown unit of length {match['unit']!r}; allowed: {', '.join(_UNITS)}.")
    low = int(match["low"] or 0)
    high = int(match["high"]) if match["high"] else None if match["dash"] else low
    return low, high, unit  # type: ignore[return-value]  # one of `_UNITS`, which mypy takes for any text


Where: TypeAlias = Literal["anywhere", "whole"]


class RegexVerifier:
    r"""1.0 for a response in which the pattern is found as often as it should be, else 0.0.

    Runs in a child process, for the time that a pattern takes can grow without bound with the text (`(a+)+$`). A
    response for which the time limit is not enough has no score (NaN).

    Args:
        pattern: a regular expression of Python's `re`; flags go in front, as in `(?i)` and `(?s)`.
        where: `anywhere` counts what does not overlap; `whole` matches the entire response, white space around it
            left out.
        at_least: matches that are needed, 0 or more.
        at_most: matches that are allowed; None is without limit, and 0 with `at_least=0` forbids the pattern.
        seconds: time limit for one response.
        checkers: the processes to run in; None takes the shared ones.

    Raises:
        ConfigurationError: the pattern is not valid, or no count can satisfy the limits.
    """

    def __init__(
        self,
        pattern: str,
        *,
        where: Where = "anywhere",
        at_least: int = 1,
        at_most: int | None = None,
        seconds: float = 2.0,
        checkers: Checkers | None = None,
    ) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(f"The pattern {pattern!r} is no regular expression: {error}.") from error
        if where not in ("anywhere", "whole"):
            raise ConfigurationError(f"where={where!r}; allowed: 'anywhere', 'whole'.")
        if at_least < 0 or (at_most is not None and at_most < at_least):
            raise ConfigurationError(f"No number of matches is at least {at_least} and at most {at_most}.")
        if not seconds > 0:
            raise ConfigurationError(f"The time limit must be above 0 seconds; it is {seconds!r}.")
        self._pattern, self._where = pattern, where
        self._at_least, self._at_most = at_least, math.inf if at_most is None else at_most
        self._seconds = seconds
        self._checkers = checkers or shared_checkers()

    async def score(
        self,
        messages: "Sequence[BaseMessage]",  # noqa: ARG002  # a pattern looks at the response alone
        responses: Sequence[str],
    ) -> list[float]:
        """Check every response; see `RewardModel`."""
        return list(await asyncio.gather(*map(self._check, responses)))

    async def _check(self, response: str) -> float:
        arguments = {"pattern": self._pattern, "where": self._where, "text": response}
        try:
            found = await self._checkers.check(f"{__name__}:count_matches", arguments, seconds=self._seconds)
        except CheckKilledError:
            return math.nan
        return 1.0 if self._at_least <= found <= self._at_most else 0.0


def count_matches(*, pattern: str, where: Where, text: str) -> int:
    """How often the pattern is found, in the child process; 0 or 1 for `whole`."""
    compiled = _compiled(pattern)
    if where == "whole":
        return int(compiled.fullmatch(text.strip()) is not None)
    return sum(1 for _ in compiled.finditer(text))


_compiled = cache(re.compile)
