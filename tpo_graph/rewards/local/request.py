"""One call of `score` on its way through the worker."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError, TPOError
from tpo_graph.rewards.local.counts import ScoreCounts, no_counts
from tpo_graph.rewards.local.encoding import EncodedText
from tpo_graph.rewards.scoring_report import ScoringReport

__all__ = ["Request", "Scored", "as_reward_error"]

Scored: TypeAlias = tuple[list[float], ScoreCounts]
"""The scores of one request, and what was done for them."""


@dataclass(slots=True, eq=False)
class Request:
    """One call of `score` on its way.

    Attributes:
        messages: the conversation.
        responses: what to score.
        future: resolved with scores and counts; stays pending until then, so that it can be cancelled at any time.
        places: for each different text, where its score belongs in `scores`.
        waiting: texts whose turn has not come.
        missing: texts without a score.
        scores: one for each response.
        counts: what was done so far.
        report: for whoever asked; complete when the future is.
    """

    messages: Sequence[BaseMessage]
    responses: Sequence[str]
    future: "Future[Scored]" = field(default_factory=Future)
    places: dict[EncodedText, list[int]] = field(default_factory=dict)
    waiting: deque[EncodedText] = field(default_factory=deque)
    missing: int = 0
    scores: list[float] = field(default_factory=list)
    counts: ScoreCounts = field(default_factory=no_counts)
    report: ScoringReport = field(default_factory=ScoringReport)

    def fail(self, error: BaseException) -> None:
        """End the request with an error; one that has ended or was cancelled stays as it is."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def take(self, text: EncodedText, score: float) -> None:
        """Note a text's score, and end the request with the last one."""
        for place in self.places[text]:
            self.scores[place] = score
        self.missing -= 1
        self.end_if_complete()

    def end_if_complete(self) -> None:
        """Resolve the future when every text has its score."""
        if not self.missing and not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result((self.scores, self.counts))


def as_reward_error(error: Exception) -> TPOError:
    """What a request ends with: an error of this package as it is, any other as a RewardError."""
    if isinstance(error, TPOError):
        return error
    mapped = RewardError(f"The reward model failed: {type(error).__name__}: {error}")
    mapped.__cause__ = error
    return mapped
