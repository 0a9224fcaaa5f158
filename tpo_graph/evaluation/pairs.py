"""Scores a preference data set with a reward model, as a stream of lines with prompt, chosen and rejected response."""

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.evaluation.pairs_report import PairReport, PairScore, PairTally
from tpo_graph.rewards.base import RewardModel, RunContext, gather, score_responses
from tpo_graph.rewards.warnings import WatchedReward
from tpo_graph.types import JSON, JSONObject

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
    last = next((message for message in reversed(messages) if message.type == "human"), None)
    if last is not None:
        last.additional_kwargs = {**columns, **last.additional_kwargs}
    return Pair(number, messages, chosen, rejected)


def _split_system(messages: list[BaseMessage]) -> tuple[list[BaseMessage], list[BaseMessage]]:
    count = int(messages[0].type == "system")
    return messages[:count], messages[count:]


def _same(left: list[BaseMessage], right: list[BaseMessage]) -> bool:
    return [(message.type, message.text) for message in left] == [(message.type, message.text) for message in right]


def _response(row: JSONObject, name: str) -> tuple[list[BaseMessage], str]:
    value = row.get(name)
    if isinstance(value, str):
        return [], value
    if not isinstance(value, list) or not value:
        raise ConfigurationError(f"{name} is {_shown(value)}; it must be a text or a list of messages")
    *before, last = _messages(value, name)
    if last.type != "ai":
        raise ConfigurationError(f"{name} ends with a {last.type} message; the last one must be the assistant's")
    return before, last.text


def _messages(value: list[JSON], name: str) -> list[BaseMessage]:
    try:
        return convert_to_messages(value)
    except Exception as error:  # LangChain has no error of its own for a message that it can't read
        raise ConfigurationError(f"{name} can't be read as messages: {str(error).splitlines()[0]}") from error


def _shown(value: object) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
