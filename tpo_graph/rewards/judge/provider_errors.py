"""What the errors of chat model providers mean for a judge: each LangChain integration has its own."""

import re
from collections.abc import Mapping

from tpo_graph.errors import RewardError

__all__ = ["is_refusal", "judge_failed", "may_pass", "names_knob"]

_REFUSED = frozenset({400, 422, 501})


def is_refusal(error: Exception) -> bool:
    """Whether an error may be about the way of asking, so that another way may work.

    A ValueError that comes again is one; see `may_pass`.
    """
    return isinstance(error, TypeError | ValueError | NotImplementedError) or _status(error) in _REFUSED


def may_pass(error: Exception) -> bool:
    """Whether the same request may go through: a ValueError is a refusal, or one answer that was cut or no JSON."""
    return isinstance(error, ValueError) and _status(error) is None


def names_knob(error: Exception, knob: str) -> bool:
    """Whether a provider refused a request and named this field of it."""
    return _status(error) in _REFUSED and re.search(rf"\b{knob}\b", str(error)) is not None


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def judge_failed(error: Exception) -> RewardError:
    """The error to raise for one of a provider's."""
    said = " ".join(str(error).split()) or type(error).__name__
    hints: Mapping[int | None, str] = {
        401: "Check the API key.",
        403: "Check the API key.",
        404: "Check the model's name and the address.",
        429: "Lower max_concurrency=, or wait: the provider limits the rate or the quota.",
    }
    return RewardError(f"The judge failed: {type(error).__name__}: {said}", hint=hints.get(_status(error), ""))
