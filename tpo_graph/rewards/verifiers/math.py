"""Mathematical answers, compared with a reference by the math-verify library."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from tpo_graph.errors import ConfigurationError, MissingDependencyError, RewardError
from tpo_graph.rewards.base import PartialRewardModel, PartialScores, RunContext, query_references
from tpo_graph.rewards.verifiers.checkers import Checkers, shared_checkers
from tpo_graph.rewards.verifiers.child_process import CheckKilledError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

_DELIMITERS = ("$", "\\(", "\\[", "\\boxed")


class MathVerifier(PartialRewardModel):
    r"""1.0 for a response whose final answer equals the reference, else 0.0; never NaN.

    The final answer is what math-verify takes for it: a `\boxed{}` comes first, then what follows "the final answer
    is", then the last expression; several with "and" between them are a set. A response without one, or one that can't
    be compared within the time limit, is wrong.

    The reference travels with the query, as `additional_kwargs["reference"]` of the last user message: a text, a
    number, or a list of which any is right. LaTeX may stand with or without its dollars.

    Args:
        reference: the reference where the query carries none.
        without_reference: what to do when there is none at all: `error` raises; with `not_applicable` the verifier has
            nothing to say, so that a combination goes by its other parts.
        seconds: time limit for one response; parsing and comparing may take half of it each.
        checkers: the processes to run in; None takes the shared ones.

    Attributes:
        killed: how many responses were counted wrong because the check gave no answer in time.

    Raises:
        ConfigurationError: the time limit is not above 0.
        MissingDependencyError: math-verify is not installed.
    """

    def __init__(
        self,
        reference: str | Sequence[str] | None = None,
        *,
        without_reference: Literal["error", "not_applicable"] = "error",
        seconds: float = 6.0,
        checkers: Checkers | None = None,
    ) -> None:
        if find_spec("math_verify") is None:
            raise MissingDependencyError(
                "Checking mathematical answers needs the package math-verify.",
                hint='Install it with: pip install "tpo-graph[verifiers]".',
            )
        if without_reference not in ("error", "not_applicable"):
            raise ConfigurationError(f"without_reference={without_reference!r}; allowed: 'error', 'not_applicable'.")
        if not seconds > 0:
            raise ConfigurationError(f"The time limit must be above 0 seconds; it is {seconds!r}.")
        self._references = [reference] if isinstance(reference, str) else list(reference or ())
        self._without_reference = without_reference
        self._seconds = seconds
        self._checkers = checkers or shared_checkers()
        self.killed = 0

    async def score_part(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,  # noqa: ARG002  # right and wrong need no scale
    ) -> PartialScores:
        """Check every response; see `PartialRewardModel.score_part`.

        Raises:
            RewardError: there is no reference, or it has no mathematical content.
        """
        references = query_references(messages) or self._references
        if not references:
            if self._without_reference == "not_applicable":
                return [None] * len(responses)
            raise RewardError(
                "The query has no reference answer to compare with.",
                hint='Give it with the query, as in HumanMessage("6 x 7?", additional_kwargs={"reference": "42"}).',
            )
        checks = (self._check(references, response) for response in responses)
        return list(await asyncio.gather(*checks))

    async def _check(self, references: list[str], response: str) -> float:
        arguments: dict[str, Any] = {"references": references, "response": response}  # Any: as JSON holds it
        arguments["step_seconds"] = max(1, int(self._seconds / 2))
        try:
            verdict = await self._checkers.check(f"{__name__}:check_math", arguments, seconds=self._seconds)
        except CheckKilledError:
            self.killed += 1
            return 0.0
        if verdict is None:
            raise RewardError(f"The reference {references!r} has nothing that math-verify can read.")
        return 1.0 if verdict else 0.0


def warm_up() -> None:
    """Import the library and have it build its tables; takes a second or two."""
    check_math(references=["\\frac{1}{2}"], response="$0.5$", step_seconds=60)


def check_math(*, references: list[str], response: str, step_seconds: int) -> bool | None:
    """Compare in the child process; None when no reference can be read.

    Args:
        references: any of these is right.
        response: where the answer is to be found.
        step_seconds: for parsing, and again for comparing; the library counts in whole seconds.
    """
    from math_verify import parse, verify  # type: ignore[import-untyped]  # the library has no types

    golden = [parsed for reference in references if (parsed := _parsed_reference(reference))]
    if not golden:
        return None
    answer = parse(response, parsing_timeout=step_seconds)
    return any(verify(each, answer, timeout_seconds=step_seconds) for each in golden)


@lru_cache(maxsize=256)
def _parsed_reference(reference: str) -> list[Any]:  # Any: SymPy expressions and texts
    from math_verify import parse

    # the library reads LaTeX between delimiters only, and data sets leave them out
    text = reference if any(mark in reference for mark in _DELIMITERS) else f"${reference}$"
    parsed: list[Any] = parse(text) or parse(reference)
    return parsed
