"""Scores a preference data set with a reward model, as a stream."""

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.pairs.records import BadLine, Pair, read_pairs
from tpo_graph.rewards.pairs.report import PairReport, PairScore, PairTally
from tpo_graph.rewards.parts import RunContext, part_scores
from tpo_graph.rewards.scoring_report import ScoringReport

if TYPE_CHECKING:
    from tpo_graph.rewards.base import RewardModel

__all__ = ["score_pairs"]

GIVE_UP = 10
"""Failures without a single success: the reward model is at fault then, not the pairs."""


async def score_pairs(
    model: "RewardModel",
    lines: Iterable[str | bytes],
    *,
    max_concurrency: int = 8,
    on_progress: Callable[[PairTally], None] | None = None,
    on_scores: Callable[[PairScore], None] | None = None,
) -> PairReport:
    """Report how often the reward model prefers the chosen response.

    Both responses of a pair are scored in one call. No more lines are read than are being scored, so that a file of any
    size fits. A pair that can't be scored is left out and named; so is a line that is no pair.

    Args:
        model: any reward model.
        lines: lines of JSON; see `pair_records.read_pairs`.
        max_concurrency: pairs in flight, 1 or more.
        on_progress: called after every line, with what was counted so far.
        on_scores: called with the rewards of every pair that counts, in the order in which they are known.

    Raises:
        ConfigurationError: `max_concurrency` is below 1, or no line is a pair.
        RewardError: no pair can be scored; raised after ten failures without a success.
    """
    if max_concurrency < 1:
        raise ConfigurationError(f"max_concurrency must be at least 1; it is {max_concurrency!r}.")
    run = _Run(model, on_progress or (lambda _: None), on_scores or (lambda _: None))
    await run.over(lines, max_concurrency)
    if run.tally.pairs == 0:
        if run.failure is not None:
            raise run.failure
        raise ConfigurationError("No line is a pair that could be scored.", hint=_first_reason(run.tally))
    return run.tally.report()


class _Run:
    """One pass over a file.

    Attributes:
        tally: what was counted.
        failure: the reward model's first error.
    """

    def __init__(
        self, model: "RewardModel", progress: Callable[[PairTally], None], tell: Callable[[PairScore], None]
    ) -> None:
        self._model = model
        self._progress = progress
        self._tell = tell
        self._failures = 0
        self.tally = PairTally()
        self.failure: RewardError | None = None

    async def over(self, lines: Iterable[str | bytes], max_concurrency: int) -> None:
        waiting: set[asyncio.Task[None]] = set()
        pairs = read_pairs(lines)
        try:
            # reading may wait for a pipe, which the event loop must not
            while (pair := await asyncio.to_thread(next, pairs, None)) is not None:
                if isinstance(pair, BadLine):
                    self.tally.leave_out("bad", pair.line, pair.reason)
                    self._progress(self.tally)
                    continue
                waiting.add(asyncio.create_task(self._score(pair)))
                if len(waiting) >= max_concurrency:
                    waiting = await self._some(waiting)
            while waiting:
                waiting = await self._some(waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _some(self, waiting: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if self.failure is not None and self._failures >= GIVE_UP and not self.tally.pairs:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            raise self.failure
        return left

    async def _score(self, pair: Pair) -> None:
        try:
            # a pair is a run of its own: what other pairs of the same prompt got must not move its scale
            texts = (pair.chosen, pair.rejected)
            run = RunContext(anchors=texts)
            chosen, rejected = await part_scores(self._model, pair.messages, texts, run)
        except RewardError as error:
            self._failures += 1
            self.failure = self.failure or error
            self.tally.leave_out("unscored", pair.line, error.message)
        else:
            self._count(pair, chosen, rejected, run.report)
        self._progress(self.tally)

    def _count(self, pair: Pair, chosen: float | None, rejected: float | None, report: ScoringReport) -> None:
        if chosen is None or rejected is None:
            self.tally.leave_out("unscored", pair.line, "the reward does not apply to it")
        elif not (math.isfinite(chosen) and math.isfinite(rejected)):
            told = next(iter(report.reasons.values()), f"the rewards are {chosen} and {rejected}")
            self.tally.leave_out("unscored", pair.line, told)
        else:
            scored = PairScore(line=pair.line, chosen=chosen, rejected=rejected, truncated=bool(report.truncated))
            self.tally.add(pair.chosen, pair.rejected, scored)
            self._tell(scored)


def _first_reason(tally: PairTally) -> str:
    report = tally.report()
    lost = [*report["bad_lines"], *report["unscored_lines"]]
    return f"Line {lost[0]['line']}: {lost[0]['reason']}." if lost else "The file is empty."
