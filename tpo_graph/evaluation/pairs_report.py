"""How often a reward model prefers what people preferred, and the length rule beside it."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypedDict

Z_95 = 1.959963984540054
"""Half the width, in deviations, of the interval that holds 95% of a normal distribution."""

LISTED = 100
"""Lines at most that a report names; beyond that it counts."""


class Accuracy(TypedDict):
    """A share of pairs, with its interval.

    Attributes:
        accuracy: (wins + ties / 2) / pairs, in [0, 1].
        low: lower end of the 95% interval (Wilson's).
        high: upper end.
        wins: pairs in which chosen came first.
        ties: pairs in which both got the same.
        losses: pairs in which rejected came first.
    """

    accuracy: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


class UnscoredPair(TypedDict):
    """A line that does not count, and why."""

    line: int
    reason: str


class PairScore(TypedDict):
    """The rewards of one pair.

    Attributes:
        line: its line in the file, from 1.
        chosen: reward of the response that people preferred.
        rejected: reward of the other one.
        truncated: the reward model could not read one of them with the conversation whole.
    """

    line: int
    chosen: float
    rejected: float
    truncated: bool


class PairReport(TypedDict):
    """What `tpo-graph score` reports.

    Attributes:
        pairs: pairs that were scored; accuracies are over these.
        reward: how often the reward model prefers chosen.
        length_rule: how often chosen is the longer one, in characters.
        advantage: accuracy of the reward minus that of the length rule, over the same pairs.
        advantage_low: lower end of its 95% interval, from the differences pair by pair.
        advantage_high: upper end; an interval around 0 means that the reward says no more than length does.
        mean_margin: mean of reward(chosen) - reward(rejected).
        truncated: scored pairs that the reward model could not read whole: the conversation lacked its start, or a
            response its end.
        truncated_lines: the first 100 of them.
        unscored: pairs without two finite rewards.
        unscored_lines: the first 100 of them.
        bad: lines that do not hold a pair.
        bad_lines: the first 100 of them.
    """

    pairs: int
    reward: Accuracy
    length_rule: Accuracy
    advantage: float
    advantage_low: float
    advantage_high: float
    mean_margin: float
    truncated: int
    truncated_lines: list[int]
    unscored: int
    unscored_lines: list[UnscoredPair]
    bad: int
    bad_lines: list[UnscoredPair]


@dataclass
class _Votes:
    wins: int = 0
    ties: int = 0
    losses: int = 0

    def add(self, chosen: float, rejected: float) -> float:
        """Count one pair; returns its share: 1.0, 0.5 or 0.0."""
        if chosen == rejected:
            self.ties += 1
            return 0.5
        if chosen > rejected:
            self.wins += 1
            return 1.0
        self.losses += 1
        return 0.0

    def accuracy(self) -> Accuracy:
        pairs = self.wins + self.ties + self.losses
        share = (self.wins + self.ties / 2) / pairs if pairs else math.nan
        low, high = wilson_interval(share, pairs)
        return Accuracy(accuracy=share, low=low, high=high, wins=self.wins, ties=self.ties, losses=self.losses)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share; it stays within [0, 1] and holds for few pairs too.

    Example:
        >>> low, high = wilson_interval(1.0, 10)
        >>> round(low, 3), high
        (0.722, 1.0)
    """
    if count == 0:
        return 0.0, 1.0
    square = Z_95 * Z_95
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z_95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    # the ends of 0 and 1 are exact; rounding is not
    return (0.0 if share == 0 else max(0.0, middle - half)), (1.0 if share == 1 else min(1.0, middle + half))


@dataclass
class PairTally:
    """Adds pairs up as they come; its size does not grow with their number."""

    _reward: _Votes = field(default_factory=_Votes)
    _length: _Votes = field(default_factory=_Votes)
    _margins: float = 0.0
    _gains: float = 0.0
    _squared_gains: float = 0.0
    _truncated: int = 0
    _truncated_lines: list[int] = field(default_factory=list)
    _left_out: Counter[str] = field(default_factory=Counter)
    _left_out_lines: dict[str, list[UnscoredPair]] = field(default_factory=lambda: {"unscored": [], "bad": []})

    @property
    def pairs(self) -> int:
        """Pairs that were scored."""
        return self._reward.wins + self._reward.ties + self._reward.losses

    def add(self, chosen: str, rejected: str, score: PairScore) -> None:
        """Count a pair with two finite rewards.

        Args:
            chosen: the text that people preferred.
            rejected: the other one.
            score: their rewards.
        """
        gain = self._reward.add(score["chosen"], score["rejected"]) - self._length.add(len(chosen), len(rejected))
        self._margins += score["chosen"] - score["rejected"]
        if score["truncated"]:
            self._truncated += 1
            if len(self._truncated_lines) < LISTED:
                self._truncated_lines.append(score["line"])
        self._gains += gain
        self._squared_gains += gain * gain

    def leave_out(self, kind: Literal["unscored", "bad"], line: int, reason: str) -> None:
        """Note a line that does not count.

        Args:
            kind: a pair without two finite rewards, or a line that does not hold a pair.
            line: its number.
            reason: why it does not count.
        """
        self._left_out[kind] += 1
        if len(lines := self._left_out_lines[kind]) < LISTED:
            lines.append(UnscoredPair(line=line, reason=reason))

    def report(self) -> PairReport:
        """The report so far."""
        pairs = self.pairs
        gain = self._gains / pairs if pairs else math.nan
        variance = max(0.0, self._squared_gains / pairs - gain * gain) if pairs else 0.0
        half = Z_95 * math.sqrt(variance / (pairs - 1)) if pairs > 1 else math.inf
        return PairReport(
            pairs=pairs,
            reward=self._reward.accuracy(),
            length_rule=self._length.accuracy(),
            advantage=gain,
            advantage_low=max(-1.0, gain - half),
            advantage_high=min(1.0, gain + half),
            mean_margin=self._margins / pairs if pairs else math.nan,
            truncated=self._truncated,
            truncated_lines=sorted(self._truncated_lines),
            unscored=self._left_out["unscored"],
            unscored_lines=sorted(self._left_out_lines["unscored"], key=lambda pair: pair["line"]),
            bad=self._left_out["bad"],
            bad_lines=sorted(self._left_out_lines["bad"], key=lambda pair: pair["line"]),
        )
