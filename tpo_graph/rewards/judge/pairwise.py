"""Judges by name: what follows the scheme is the name of a chat model, as `load_policy` takes it."""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.base import PartialRewardModel, PartialScores, RunContext, RunExtremes, gather, run_key
from tpo_graph.rewards.judge.pointwise import JudgeReward, Verdicts
from tpo_graph.rewards.judge.prompts import PAIRWISE, JudgePrompt, joined_rubric, render_conversation
from tpo_graph.types import PhaseUsage

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


# Finds the best and the worst of several things by comparing them in pairs: about three comparisons for two things.

Compare: TypeAlias = Callable[[str, str], Awaitable[float]]
"""How likely the first is better than the second: 0 to 1, 0.5 for a tie."""


@dataclass(frozen=True)
class Standing:
    """What a tournament found.

    Attributes:
        best: place of the best in the sequence.
        worst: place of the worst; `best` itself when there is one thing alone.
        levels: for each, how far it came: above 0 among the winners of the first round, below 0 among its losers.
            The best has the highest, the worst the lowest; between others, levels are a rough order.
        tied: every comparison was a tie.
    """

    best: int
    worst: int
    levels: tuple[int, ...]
    tied: bool


async def hold_tournament(texts: Sequence[str], compare: Compare) -> Standing:
    """Compare in rounds; the comparisons of a round run at the same time.

    In the first round everything meets one other. The winners then meet for the best place, the losers for the worst
    one: together about 1.5 N comparisons, where ranking all would take N log N. Ties go to the earlier one.

    Args:
        texts: what to compare, at least one.
        compare: compares two.
    """
    levels = [0] * len(texts)
    if len(texts) == 1:
        return Standing(0, 0, (0,), tied=True)
    decisive = False

    async def earlier_wins(pair: tuple[int, int]) -> bool:
        nonlocal decisive
        share = await compare(texts[pair[0]], texts[pair[1]])
        decisive = decisive or share != 0.5
        return share >= 0.5

    pairs = [(place, place + 1) for place in range(0, len(texts) - 1, 2)]
    winners, losers = [], []
    for (left, right), left_wins in zip(pairs, await gather(map(earlier_wins, pairs)), strict=True):
        winners.append(left if left_wins else right)
        losers.append(right if left_wins else left)
    if len(texts) % 2:
        # the odd one meets the last loser: it is then out of the running for one of the two places
        odd = len(texts) - 1
        (losers if await earlier_wins((losers[-1], odd)) else winners).append(odd)
    winners.sort()
    losers.sort()

    level = 0
    while len(winners) > 1 or len(losers) > 1:
        level += 1
        up, down = _pairs(winners), _pairs(losers)
        results = await gather(map(earlier_wins, [*up, *down]))
        winners = _survivors(winners, up, results[: len(up)], levels, level)
        # who is the worse one stays in the running for the worst place
        losers = _survivors(losers, down, [not won for won in results[len(up) :]], levels, -level)
    levels[winners[0]], levels[losers[0]] = level + 1, -level - 1
    return Standing(winners[0], losers[0], tuple(levels), tied=not decisive)


def _pairs(places: Sequence[int]) -> list[tuple[int, int]]:
    return [(places[at], places[at + 1]) for at in range(0, len(places) - 1, 2)]


def _survivors(
    places: Sequence[int], pairs: Sequence[tuple[int, int]], first_stays: Sequence[bool], levels: list[int], level: int
) -> list[int]:
    """Who is in the next round; who is not gets the level of this one."""
    stay = []
    for (left, right), left_stays in zip(pairs, first_stays, strict=True):
        stay.append(left if left_stays else right)
        levels[right if left_stays else left] = level
    return stay + list(places[2 * len(pairs) :])


# A chat model as reward model that compares: a tournament finds the best and the worst response.

_REMEMBERED = 1024  # runs

_Key: TypeAlias = tuple[bytes, str]  # of a run, and the rubric


class PairwiseJudgeReward(PartialRewardModel):
    """Compares responses with any chat model, each pair in both orders, whose mean counts.

    The rewards are places and not grades: the best and the worst have the highest and the lowest, the others lie
    between in a rough order. That holds over all steps of a run: new responses meet the best and the worst so far, so
    that a reward above that of the best so far means that the judge preferred the response to it. Rewards of different
    runs can't be compared.

    A run tells its best and worst. Where it can't, as for a part of a combination, the judge remembers them, and holds
    the tournament of the first candidates again when it has forgotten. Calls without a run (`score`) belong together
    when they are about the same conversation.

    N responses cost about 3 N requests, and 4 more from the second step on.

    Args:
        model: the judge.
        preference: what a good response is, in words; it is the rubric, and the run's preference is added to it. With
            neither there is a general one.
        prompt: what the judge is told, in place of this package's own words.
        samples: verdicts to take the mean of where log probabilities are missing.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument that can't be used.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        preference: str = "",
        prompt: JudgePrompt = PAIRWISE,
        samples: int = 1,
        max_concurrency: int = 16,
    ) -> None:
        if not prompt.pairwise:
            raise ConfigurationError(
                "The prompt of a judge that compares must be pairwise: JudgePrompt(pairwise=True)."
            )
        self.preference = preference.strip()
        self._prompt = prompt
        self._verdicts = Verdicts(model, ("A", "B"), samples=samples, max_concurrency=max_concurrency)
        self._extremes: OrderedDict[_Key, RunExtremes] = OrderedDict()
        self._lock = threading.Lock()  # loops of several threads may share this

    @property
    def usage(self) -> PhaseUsage:
        """Requests and tokens of all calls so far; its seconds stay 0."""
        return self._verdicts.usage

    async def score_part(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> PartialScores:
        """Rewards by which the best and the worst of all responses of the run can be told.

        Raises:
            RewardError: the judge failed; a tournament needs all of its comparisons.
        """
        texts = list(dict.fromkeys(responses))
        if not texts:
            return []
        rubric = joined_rubric(self.preference, run.preference)
        shared = {"rubric": rubric, "conversation": render_conversation(messages)}

        async def compare(left: str, right: str) -> float:
            if left == right:
                return 0.5
            orders = [self._share(shared, left, right, run), self._share(shared, right, left, run)]
            forward, backward = await gather(orders)
            # rounded, so that a judge that always prefers what stands first gives an exact tie
            return round((forward + 1 - backward) / 2, 6)

        if run.extremes is not None:
            rewards, _ = await _placed(texts, await hold_tournament(texts, compare), run.extremes, compare)
        else:
            rewards = await self._remembered((run_key(messages, run.anchors), rubric), texts, run.anchors, compare)
        return [rewards[response] for response in responses]

    async def _share(self, shared: dict[str, str], first: str, second: str, run: RunContext) -> float:
        """How likely the judge is to prefer what it is shown first."""
        request = self._prompt.render({**shared, "first": first, "second": second})
        return (await self._verdicts.ask(request, run.report.used))["A"]

    async def _remembered(
        self, key: _Key, texts: Sequence[str], anchors: tuple[str, ...] | None, compare: Compare
    ) -> Mapping[str, float]:
        """Rewards against the best and the worst that are remembered of a run; the new ones are remembered."""
        if anchors is not None and set(texts) == set(anchors):
            # a run begins, and what another one with the same first candidates found is not its own
            rewards, found = await _placed(texts, await hold_tournament(texts, compare), None, compare)
            with self._lock:
                self._keep(key, found)
            return rewards
        stored = known = self._extremes.get(key)
        first: Mapping[str, float] = {}
        if known is None and anchors:
            # forgotten, or a run that is resumed elsewhere
            begun = list(dict.fromkeys(anchors))
            first, known = await _placed(begun, await hold_tournament(begun, compare), None, compare)
        new = [text for text in texts if text not in first]
        if not new:
            return first
        standing = await hold_tournament(new, compare)
        while True:
            rewards, found = await _placed(new, standing, known, compare)
            if self._replace(key, stored, found):
                return {**first, **rewards}
            stored = known = self._extremes.get(key)  # another call about the same run was faster

    def _replace(self, key: _Key, stored: RunExtremes | None, found: RunExtremes) -> bool:
        """Remember the new extremes, unless another call about the same run was faster."""
        with self._lock:
            if self._extremes.get(key) is not stored:
                return False
            self._keep(key, found)
            return True

    def _keep(self, key: _Key, found: RunExtremes) -> None:
        self._extremes[key] = found
        self._extremes.move_to_end(key)
        while len(self._extremes) > _REMEMBERED:
            self._extremes.popitem(last=False)


async def _placed(
    texts: Sequence[str], standing: Standing, known: RunExtremes | None, compare: Compare
) -> tuple[Mapping[str, float], RunExtremes]:
    """Rewards by text after a tournament, against the best and the worst known before it; and the new ones."""
    best, worst = texts[standing.best], texts[standing.worst]
    better = known is not None and await compare(best, known.best) > 0.5
    # where all are alike, they can't be both better than the best and worse than the worst
    worse = known is not None and not (better and standing.tied) and await compare(worst, known.worst) < 0.5
    high, low = _span(known, better=better, worse=worse, tied=standing.tied)
    rewards = _rewards(standing, high, low)
    found = RunExtremes(
        best=best if known is None or better else known.best,
        best_reward=rewards[standing.best] if known is None or better else known.best_reward,
        worst=worst if known is None or worse else known.worst,
        worst_reward=rewards[standing.worst] if known is None or worse else known.worst_reward,
    )
    return dict(zip(texts, rewards, strict=True)), found


def _span(known: RunExtremes | None, *, better: bool, worse: bool, tied: bool) -> tuple[float, float]:
    """The rewards of the best and the worst of a tournament, against those known before it."""
    if known is None:
        return (0.0, 0.0) if tied else (1.0, -1.0)
    width = known.best_reward - known.worst_reward
    high = known.best_reward + 1 if better else known.worst_reward + 0.75 * width
    low = known.worst_reward - 1 if worse else known.worst_reward + 0.25 * width
    if not tied:
        return high, low
    # all alike: they share the place of the one that met both extremes
    middle = high if better else low if worse else (high + low) / 2
    return middle, middle


def _rewards(standing: Standing, high: float, low: float) -> list[float]:
    """One reward for each level: `high` and `low` at the ends, the others in the middle half between them."""
    top, bottom = max(standing.levels), min(standing.levels)
    rewards = []
    for place, level in enumerate(standing.levels):
        share = 0.25 + 0.5 * (level - bottom) / (top - bottom) if top > bottom else 1.0
        rewards.append(
            high if place == standing.best else low if place == standing.worst else low + share * (high - low)
        )
    return rewards


_JUDGE = ("preference", "prompt", "samples", "max_concurrency")


def load_judge(name: str, **options: Any) -> JudgeReward:  # Any: each option is checked by what takes it
    """A judge that grades each response.

    Args:
        name: a chat model, as in "openai:gpt-4o-mini" or "vllm:http://127.0.0.1:8000/v1#model".
        **options: `preference`, `prompt`, `samples`, `max_concurrency`; others go to the chat model.

    Raises:
        ConfigurationError: a name or an option that can't be used.
        PolicyError: the chat model's server does not answer.
    """
    model, mine = _model("judge", name, options)
    return JudgeReward(model, **mine)


def load_pairwise_judge(name: str, **options: Any) -> PairwiseJudgeReward:  # Any: as above
    """A judge that compares responses in pairs: `load_judge`'s arguments."""
    model, mine = _model("pairwise-judge", name, options)
    return PairwiseJudgeReward(model, **mine)


def _model(
    scheme: str,
    name: str,
    options: dict[str, Any],  # Any: as above
) -> "tuple[BaseChatModel, dict[str, Any]]":
    from tpo_graph.policies.load import load_policy

    if not name:
        raise ConfigurationError(f"'{scheme}:' names no chat model.", hint=f"For example {scheme}:openai:gpt-4o-mini.")
    mine = {key: options.pop(key) for key in _JUDGE if key in options}
    return load_policy(name, **options), mine
