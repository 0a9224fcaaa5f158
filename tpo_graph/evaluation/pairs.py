"""Scores a preference data set with a reward model: how often it prefers what people preferred, beside the length rule.

The data is a stream of lines with prompt, chosen and rejected response.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.prompts.template import role_of
from tpo_graph.rewards.base import RewardModel, RunContext, gather, score_responses
from tpo_graph.rewards.warnings import WatchedReward
from tpo_graph.types import JSON, JSONObject

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

    Examples:
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


_COLUMNS = ("prompt", "chosen", "rejected")

GIVE_UP = 10
"""Failures without a single success: the reward model is at fault then, not the pairs."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one conversation.

    Attributes:
        line: its line in the file, from 1.
        messages: the conversation; other columns of the line travel with its last user message.
        chosen: the response that people preferred.
        rejected: the other one.
    """

    line: int
    messages: list[BaseMessage]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class BadLine:
    """A line that does not hold a pair, and why."""

    line: int
    reason: str


async def score_pairs(
    model: RewardModel,
    lines: Iterable[str | bytes],
    *,
    max_concurrency: int = 8,
    on_progress: Callable[[PairTally], None] | None = None,
    on_scores: Callable[[PairScore], None] | None = None,
) -> PairReport:
    """Report how often the reward model prefers the chosen response.

    Both responses of a pair are scored in one call. No more lines are read than are being scored, so that a file of any
    size fits. A pair that can't be scored is left out and named; so is a line that does not hold a pair.

    Args:
        model: any reward model; a second one that watches it is not asked.
        lines: lines of JSON, as `read_pairs` takes them.
        max_concurrency: pairs in flight, 1 or more.
        on_progress: called after every line, with what was counted so far.
        on_scores: called with the rewards of every pair that counts, as soon as they are known.

    Raises:
        ConfigurationError: `max_concurrency` is below 1, or no line is a pair.
        RewardError: no pair can be scored; raised after ten failures without a success.
    """
    if max_concurrency < 1:
        raise ConfigurationError(f"max_concurrency must be at least 1; it is {max_concurrency!r}.")
    model = model.reward if isinstance(model, WatchedReward) else model
    tally = PairTally()
    pairs, reading = read_pairs(lines), asyncio.Lock()
    failures = 0
    first_failure: RewardError | None = None

    async def work() -> None:
        nonlocal failures, first_failure
        while True:
            async with reading:
                # reading may wait for a pipe, which the event loop must not
                pair = await asyncio.to_thread(next, pairs, None)
            if pair is None:
                return
            if isinstance(pair, BadLine):
                tally.leave_out("bad", pair.line, pair.reason)
            else:
                try:
                    score = await _score_pair(model, pair)
                except RewardError as error:
                    failures += 1
                    first_failure = first_failure or error
                    score = error.message
                if isinstance(score, str):
                    tally.leave_out("unscored", pair.line, score)
                else:
                    tally.add(pair.chosen, pair.rejected, score)
                    if on_scores is not None:
                        on_scores(score)
            if on_progress is not None:
                on_progress(tally)
            if first_failure is not None and failures >= GIVE_UP and not tally.pairs:
                raise first_failure

    await gather(work() for _ in range(max_concurrency))
    report = tally.report()
    if tally.pairs == 0:
        if first_failure is not None:
            raise first_failure
        left_out = [*report["bad_lines"], *report["unscored_lines"]]
        hint = f"Line {left_out[0]['line']}: {left_out[0]['reason']}." if left_out else "The file is empty."
        raise ConfigurationError("No line is a pair that could be scored.", hint=hint)
    return report


async def _score_pair(model: RewardModel, pair: Pair) -> PairScore | str:
    """The rewards of a pair, or why it has none."""
    # a pair is a run of its own: what other pairs of the same prompt got must not move its scale
    texts = pair.chosen, pair.rejected
    scoring = await score_responses(model, pair.messages, texts, RunContext(anchors=texts))
    chosen, rejected = scoring.scores
    if chosen is None or rejected is None:
        return "the reward does not apply to it"
    if not (math.isfinite(chosen) and math.isfinite(rejected)):
        return next(iter(scoring.reasons.values()), f"the rewards are {chosen} and {rejected}")
    return PairScore(line=pair.line, chosen=chosen, rejected=rejected, truncated=bool(scoring.truncated))


def read_pairs(lines: Iterable[str | bytes]) -> Iterator[Pair | BadLine]:
    """Read JSON Lines one by one; empty lines are passed over.

    `prompt` is a text or a list of messages. `chosen` and `rejected` are texts or lists of messages, whose last one is
    the response; what comes before it is the conversation, the same in both. It may go on from `prompt`, or take its
    place.

    Args:
        lines: the lines of a file.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _pair(number, json.loads(line))
        except UnicodeDecodeError:
            yield BadLine(number, "it is not UTF-8")
        except json.JSONDecodeError as error:
            yield BadLine(number, f"it is not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            yield BadLine(number, "it is nested too deep")
        except ConfigurationError as error:
            yield BadLine(number, error.message)


def _pair(number: int, row: JSON) -> Pair:
    if not isinstance(row, dict):
        raise ConfigurationError(f"it is {type(row).__name__}, not an object")
    before, chosen = _response(row, "chosen")
    other, rejected = _response(row, "rejected")
    if before and other and not _same(before, other):
        raise ConfigurationError("chosen and rejected answer different conversations")
    before = before or other
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        messages: list[BaseMessage] = [HumanMessage(prompt)]
    elif isinstance(prompt, list) and prompt:
        messages = _messages(prompt, "prompt")
    elif prompt is None and before:
        messages = before
    else:
        raise ConfigurationError(f"prompt is {_shown(prompt)}; it must be a text or a list of messages")
    if before:
        # the fuller of the two counts, and either may leave the system message to the other
        system, turns = _split_system(messages)
        system_before, turns_before = _split_system(before)
        is_other_system = system and system_before and not _same(system, system_before)
        if is_other_system or not _same(turns, turns_before[: len(turns)]):
            raise ConfigurationError("chosen and rejected do not go on from prompt")
        messages = (system or system_before) + turns_before
    columns = {name: value for name, value in row.items() if name not in _COLUMNS}
    last = next((message for message in reversed(messages) if role_of(message) == "user"), None)
    if last is not None:
        last.additional_kwargs = {**columns, **last.additional_kwargs}
    return Pair(number, messages, chosen, rejected)


def _split_system(messages: list[BaseMessage]) -> tuple[list[BaseMessage], list[BaseMessage]]:
    count = int(role_of(messages[0]) == "system")
    return messages[:count], messages[count:]


def _same(left: list[BaseMessage], right: list[BaseMessage]) -> bool:
    turns, others = ([(role_of(message), message.text) for message in messages] for messages in (left, right))
    return turns == others


def _response(row: JSONObject, name: str) -> tuple[list[BaseMessage], str]:
    value = row.get(name)
    if isinstance(value, str):
        return [], value
    if not isinstance(value, list) or not value:
        raise ConfigurationError(f"{name} is {_shown(value)}; it must be a text or a list of messages")
    *before, last = _messages(value, name)
    if (role := role_of(last)) != "assistant":
        raise ConfigurationError(f"{name} ends with a message of the {role}; the last one must be the assistant's")
    return before, last.text


def _messages(value: list[JSON], name: str) -> list[BaseMessage]:
    try:
        return convert_to_messages(value)
    except Exception as error:  # LangChain has no error of its own for a message that it can't read
        raise ConfigurationError(f"{name} can't be read as messages: {str(error).splitlines()[0]}") from error


def _shown(value: object) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
