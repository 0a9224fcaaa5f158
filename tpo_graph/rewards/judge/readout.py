"""From a chat model's answer to probabilities of the possible verdicts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage

from tpo_graph.errors import RewardError

__all__ = ["from_logprobs", "from_parsed", "from_text"]

LEAST_MASS = 0.5


def from_logprobs(message: AIMessage, labels: Sequence[str]) -> dict[str, float] | None:
    """Probabilities from the log probabilities of the first token that is not blank.

    Args:
        message: the answer.
        labels: the possible verdicts, each one token.

    Returns:
        Probabilities by label, which sum to 1; None when the answer has no log probabilities.

    Raises:
        RewardError: when the labels have less than half of the probability: the model was about to write something
            else, and what is left would say little about the response.
    """
    logprobs = message.response_metadata.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not tokens:
        return None
    token = next((one for one in tokens if str(one.get("token", "")).strip()), tokens[0])
    top = token.get("top_logprobs") or ()
    if not top:
        return None
    masses = dict.fromkeys(labels, 0.0)
    for one in top:
        # " 7" and "7" are tokens of their own for the same verdict
        label = str(one.get("token", "")).strip()
        if label in masses and one.get("logprob") is not None:
            masses[label] += math.exp(one["logprob"])
    total = sum(masses.values())
    if total < LEAST_MASS:
        raise RewardError(
            f"The judge gives only {total:.0%} of its probability to a verdict ({labels[0]} to {labels[-1]}); its "
            f"answer begins with {str(token.get('token', ''))!r}.",
            hint="It may think before it answers: switch that off, take another model, or another prompt.",
        )
    return {label: mass / total for label, mass in masses.items()}


def from_parsed(parsed: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:  # Any: JSON that a model wrote
    """Probabilities from structured output, all on one label.

    Raises:
        RewardError: it has no verdict, or one that is not a label.
    """
    return _certain(str(parsed.get("verdict")).strip(), labels, shown=parsed)


def from_text(text: str, labels: Sequence[str]) -> dict[str, float]:
    """Probabilities from a plain answer, which must be a label and nothing else but a final dot.

    Raises:
        RewardError: it is something else.
    """
    return _certain(text.strip().removesuffix(".").strip("*` \n"), labels, shown=text)


def _certain(verdict: str, labels: Sequence[str], *, shown: object) -> dict[str, float]:
    if verdict not in labels:
        text = str(shown)
        raise RewardError(
            f"The judge answered {text[:80]!r}, which is no verdict from {labels[0]} to {labels[-1]}.",
            hint="Take a model that follows instructions better, or one with log probabilities or structured output.",
        )
    return {label: float(label == verdict) for label in labels}
