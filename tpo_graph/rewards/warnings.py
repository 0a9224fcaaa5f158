"""Watches a run for signs that the reward rises and the answers don't get better.

The more candidates a reward model judges, the more likely the winner is one that it is wrong about. What that looks
like is known: answers grow longer, repeat themselves, end at the token limit, and a second scorer stops agreeing.
Pure functions over what a run leaves behind; nothing here changes a reward.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, TypeGuard

from langchain_core.messages import BaseMessage
from typing_extensions import TypedDict

from tpo_graph.accounting import plus
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import (
    DetailedReward,
    RewardModel,
    RunContext,
    Scoring,
    SecondScoring,
    close_reward,
    highest_reward,
    score_responses,
    usage_of,
)
from tpo_graph.rewards.functions import as_reward_model
from tpo_graph.types import ScoredCandidate, StepRecord

WarningKind: TypeAlias = Literal[
    "length_correlation",  # the reward goes with the length of the candidates
    "duplicate_candidates",  # the policy writes the same texts again
    "repetitive_answer",  # the best candidate says the same words over and over
    "truncated_candidates",  # many candidates end at the token limit
    "truncated_answer",  # the best candidate does
    "second_scorer_falls",  # another reward of the best candidate fell while the first one rose
    "truncated_input",  # the reward model could not read candidates with their conversation whole
    "truncated_second_input",  # the other reward model could not either
    "second_scorer_failed",  # the other reward could not be had
]

LENGTH_CORRELATION = 0.7
"""With the 15 candidates of D2-N5 chance alone reaches this in 1 of 200 runs."""
FEWEST_FOR_CORRELATION = 10
DUPLICATES = 0.5
REPETITION = 0.3
TRUNCATED = 0.25
FALL = 0.5

_WORDS_IN_SEQUENCE = 6
_FEWEST_SEQUENCES = 24
# Chinese, Japanese and Korean have no white space between words: there a character counts as one
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class OveroptimizationWarning(TypedDict):
    """Something that a person should look at before they trust the reward.

    Attributes:
        kind: one of `WarningKind`.
        message: what was seen, in a sentence or two.
        value: the number that was measured.
        threshold: the number from which on there is a warning.
    """

    kind: WarningKind
    message: str
    value: float
    threshold: float


def overoptimization_warnings(
    cache: Sequence[ScoredCandidate],
    trajectory: Sequence[StepRecord],
    *,
    second_rewards: Mapping[str, float] | None = None,
) -> list[OveroptimizationWarning]:
    """All warnings about a run, finished or not; cheap enough for every step.

    Args:
        cache: its scored candidates.
        trajectory: one record a step.
        second_rewards: rewards of another scorer by candidate id, for all candidates or for some.

    Returns:
        Warnings, in the order of `WarningKind`; none for an empty cache.
    """
    if not cache:
        return []
    warnings: list[OveroptimizationWarning] = []

    def warn(kind: WarningKind, message: str, value: float, threshold: float) -> None:
        warnings.append(_warning(kind, message, value, threshold))

    rewards = {candidate["text"]: candidate["reward"] for candidate in cache}
    correlation = rank_correlation(list(rewards.values()), [len(text) for text in rewards])
    if len(rewards) >= FEWEST_FOR_CORRELATION and abs(correlation) >= LENGTH_CORRELATION:
        word = "longer" if correlation > 0 else "shorter"
        message = f"The {word} a candidate, the higher its reward (rank correlation {correlation:.2f})."
        warn("length_correlation", message, correlation, LENGTH_CORRELATION)

    repeated = len(cache) - len(rewards)
    if (share := repeated / len(cache)) >= DUPLICATES:
        message = f"{repeated} of {len(cache)} candidates repeat an earlier one; the policy finds little that is new."
        warn("duplicate_candidates", message, share, DUPLICATES)

    best = max(cache, key=lambda candidate: candidate["reward"])
    if (share := repetition(best["text"])) >= REPETITION:
        message = f"{share:.0%} of the word sequences of the best candidate ({best['id']}) occurred in it before."
        warn("repetitive_answer", message, share, REPETITION)

    truncated = sum(candidate["truncated"] for candidate in cache)
    if (share := truncated / len(cache)) >= TRUNCATED:
        message = f"{truncated} of {len(cache)} candidates end at the token limit; max_new_tokens may be too low."
        warn("truncated_candidates", message, share, TRUNCATED)
    if best["truncated"]:
        warn("truncated_answer", f"The best candidate ({best['id']}) ends at the token limit.", 1.0, 1.0)

    # the best candidate of the first step against the last one that has a second reward
    second = second_rewards or {}
    watched = [record for record in trajectory if record["best_id"] in second]
    if len(watched) >= 2:
        first, last = watched[0], watched[-1]
        before, after = second[first["best_id"]], second[last["best_id"]]
        spread = statistics.pstdev([second[candidate["id"]] for candidate in cache if candidate["id"] in second] or [0])
        fall = (before - after) / spread if spread else 0.0
        if last["best_reward"] > first["best_reward"] and fall >= FALL:
            message = (
                f"From step {first['step']} to {last['step']} the best reward rose from {first['best_reward']:.3g} to "
                f"{last['best_reward']:.3g} while the second scorer's fell from {before:.3g} to {after:.3g}, "
                f"{fall:.1f} of its deviations."
            )
            warn("second_scorer_falls", message, fall, FALL)
    return warnings


def scoring_warnings(
    warnings: Sequence[OveroptimizationWarning], scoring: Scoring, texts: Iterable[str]
) -> list[OveroptimizationWarning]:
    """The warnings of a run so far, with what the scoring of one more step adds to them.

    Args:
        warnings: those so far; a warning that is there already counts on.
        scoring: what the reward model reported, and the second one that watches.
        texts: the candidates of the step.
    """
    by_kind = {warning["kind"]: warning for warning in warnings}

    def count(kind: WarningKind, more: int) -> int:
        return more + (int(by_kind[kind]["value"]) if kind in by_kind else 0)

    second = scoring.second or SecondScoring()
    inputs: tuple[tuple[WarningKind, str, frozenset[str]], ...] = (
        ("truncated_input", "the reward model", scoring.truncated),
        ("truncated_second_input", "the second reward model", second.truncated),
    )
    for kind, model, truncated in inputs:
        if cut := truncated.intersection(texts):
            candidates = count(kind, len(cut))
            message = (
                f"{'1 candidate was' if candidates == 1 else f'{candidates} candidates were'} too long for {model} "
                "together with the conversation, and scored without the start of the conversation or the end of the "
                "response."
            )
            by_kind[kind] = _warning(kind, message, candidates, 1)
    if second.failure:
        steps = count("second_scorer_failed", 1)
        message = (
            f"The second reward model gave no reward in {'1 step' if steps == 1 else f'{steps} steps'}; "
            f"the last time: {second.failure}"
        )
        by_kind["second_scorer_failed"] = _warning("second_scorer_failed", message, steps, 1)
    return list(by_kind.values())


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's correlation in [-1, 1], equal values sharing their mean rank; 0.0 when one side is constant.

    Examples:
        >>> rank_correlation([1.0, 2.0, 3.0], [10, 20, 999])
        1.0

    Args:
        left: values.
        right: as many values, each belonging to the one of `left` at its place.
    """

    def ranks(values: Sequence[float]) -> list[float]:
        places: dict[float, list[int]] = {}
        for place, value in enumerate(sorted(values)):
            places.setdefault(value, []).append(place)
        return [statistics.fmean(places[value]) for value in values]

    if len(set(left)) < 2 or len(set(right)) < 2:
        return 0.0
    # `statistics.correlation` ranks by itself from Python 3.12 on
    return round(statistics.correlation(ranks(left), ranks(right)), 12)


def repetition(text: str) -> float:
    """Share of the text's sequences of six words that occurred in it before, in [0, 1]; 0.0 for a short text.

    Examples:
        >>> repetition("again and " * 50) > 0.9
        True

    Args:
        text: any text.
    """
    words = _WORD.findall(text.lower())
    sequences = [
        tuple(words[start : start + _WORDS_IN_SEQUENCE]) for start in range(len(words) - _WORDS_IN_SEQUENCE + 1)
    ]
    return 1.0 - len(set(sequences)) / len(sequences) if len(sequences) >= _FEWEST_SEQUENCES else 0.0


def _warning(kind: WarningKind, message: str, value: float, threshold: float) -> OveroptimizationWarning:
    return OveroptimizationWarning(kind=kind, message=message, value=float(value), threshold=float(threshold))


class WatchedReward(DetailedReward):
    """A reward model with a second one beside it, which watches and selects nothing.

    Candidates are scored and selected by the first. The second is asked about all candidates of step 0, whose spread is
    the measure for a fall, and then about each step's new best. When its reward of the best candidate falls while the
    first one's rises, the run has a warning; so it has when the second one fails, which ends no run.

    Examples:
        >>> from tpo_graph import create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> reward = WatchedReward(TableReward({"a": 1.0, "b": 2.0}), TableReward({"a": 5.0, "b": 4.0}))
        >>> graph = create_tpo_graph(ScriptedChatModel(["a", "b"]), reward)
        >>> graph.invoke({"query": "Why?"}, context={"mode": "bon", "n": 2})["second_rewards"]
        {'0-0': 5.0, '0-1': 4.0}

    Args:
        reward: scores the candidates.
        second: watches.

    Raises:
        ConfigurationError: one of them is not a reward model, or watched itself.
    """

    def __init__(self, reward: RewardModel, second: RewardModel) -> None:
        self.reward, self.second = as_reward_model(reward), as_reward_model(second)
        for model in (reward, second):
            if isinstance(model, WatchedReward):
                raise ConfigurationError("A reward model that is watched can't be watched once more, or watch.")

    @property
    def highest_reward(self) -> float | None:
        """That of the first reward model."""
        return highest_reward(self.reward)

    async def score_in_detail(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> Scoring:
        """Score with the first reward model, and ask the second one what it takes to see it fall.

        Args:
            messages: the conversation.
            responses: texts to score, at least one.
            run: the run that they are scored for; without one the second reward model is not asked.

        Raises:
            RewardError: the first reward model failed.
        """
        scoring = await score_responses(self.reward, messages, responses, run)
        scores = {text: score for text, score in zip(responses, scoring.scores, strict=True) if _is_finite(score)}
        if run.extremes is not None:
            best = max(scores, key=scores.__getitem__, default=None)
            scores = {best: scores[best]} if best is not None and scores[best] > run.extremes.best_reward else {}
        if run.anchors is None or not scores:
            return scoring
        texts = list(scores)
        try:
            # the run's extremes are the first reward model's
            watched = await score_responses(self.second, messages, texts, replace(run, extremes=None))
        except RewardError as error:
            usage, second = usage_of(error), SecondScoring(failure=str(error))
        else:
            rewards = {text: score for text, score in zip(texts, watched.scores, strict=True) if _is_finite(score)}
            failure = "" if rewards else watched.reasons.get(texts[0], f"it gave {watched.scores[0]}")
            usage, second = watched.usage, SecondScoring(rewards, watched.truncated, failure)
        return replace(scoring, usage=plus(scoring.usage, usage), second=second)

    def close(self) -> None:
        """Close both reward models, where they can be closed."""
        close_reward(self.reward)
        close_reward(self.second)


def _is_finite(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)
