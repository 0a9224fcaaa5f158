"""Patterns that a response must, or must not, hold."""

import asyncio
import math
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.verifiers.checkers import Checkers, CheckKilledError, shared_checkers

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["RegexVerifier"]

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
