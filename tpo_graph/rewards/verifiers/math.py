"""Mathematical answers, compared with a reference by the math-verify library."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from tpo_graph.errors import ConfigurationError, MissingDependencyError, RewardError, install_hint
from tpo_graph.rewards.base import DetailedReward, RunContext, Scoring, query_references
from tpo_graph.rewards.verifiers.processes import Checkers, TimedCheck
from tpo_graph.types import Options

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


class MathVerifier(DetailedReward):
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
        checkers: the processes to run in; None takes those that all verifiers share.

    Raises:
        ConfigurationError: the time limit is not above 0.
        MissingDependencyError: math-verify is not installed.
    """

    highest_reward = 1.0

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
                hint=f"{install_hint('verifiers')}.",
            )
        if without_reference not in ("error", "not_applicable"):
            raise ConfigurationError(f"without_reference={without_reference!r}; allowed: 'error', 'not_applicable'.")
        self._references = [reference] if isinstance(reference, str) else list(reference or ())
        self._without_reference = without_reference
        # the library builds tables when it first reads something
        warm_up = {"references": [r"\frac{1}{2}"], "response": "$0.5$", "step_seconds": 60}
        self._check = TimedCheck("check_math", warm_up=warm_up, seconds=seconds, if_killed=False, checkers=checkers)
        self._step_seconds = max(1, int(seconds / 2))

    async def score_in_detail(
        self,
        messages: "Sequence[BaseMessage]",
        responses: Sequence[str],
        run: RunContext,  # noqa: ARG002  # right and wrong need no scale
    ) -> Scoring:
        """Check every response.

        Args:
            messages: the conversation, with the reference in its last user message.
            responses: the texts to check.
            run: the run that they are scored for, which does not matter.

        Returns:
            1.0 or 0.0 for each response; None where there is no reference and `without_reference` allows that.

        Raises:
            RewardError: there is no reference, or it has no mathematical content.
        """
        references = query_references(messages) or self._references
        if not references:
            if self._without_reference == "not_applicable":
                return Scoring([None] * len(responses))
            raise RewardError(
                "The query has no reference answer to compare with.",
                hint='Give it with the query, as in HumanMessage("6 x 7?", additional_kwargs={"reference": "42"}).',
            )
        fixed = {"references": references, "step_seconds": self._step_seconds}
        results = await self._check.run([{**fixed, "response": response} for response in responses])
        if None in results:
            raise RewardError(f"The reference {references!r} has nothing that math-verify can read.")
        return Scoring([float(is_right) for is_right in results])


def load_math(name: str, **options: Options) -> MathVerifier:
    """Load `math`, or `math:ANSWER` with a reference for queries that carry none; the options of `MathVerifier`."""
    return MathVerifier(name or None, **options)
