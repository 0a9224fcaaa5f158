"""A chat model as reward model that compares: a tournament finds the best and the worst response."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.concurrency import gather
from tpo_graph.rewards.judge.choice import Verdicts
from tpo_graph.rewards.judge.prompts import DEFAULT_RUBRIC, PAIRWISE, JudgePrompt, render_conversation
from tpo_graph.rewards.judge.tournament import Standing, hold_tournament
from tpo_graph.types import PhaseUsage

__all__ = ["PairwiseJudgeReward"]

_REMEMBERED = 1024  # conversations


@dataclass(frozen=True)
class _Extremes:
    """The best and the worst response so far to one conversation, with their rewards."""

    best: str
    best_reward: float
    worst: str
    worst_reward: float


class PairwiseJudgeReward:
    """Compares responses with any chat model, each pair in both orders, whose mean counts.

    The rewards are places and not grades: the best and the worst have the highest and the lowest, the others lie
    between in a rough order. That holds over all calls for one conversation: the judge remembers the best and the
    worst so far and lets new responses meet them, so that a reward above that of the best so far means that the
    judge preferred the response to it. Rewards of different conversations can't be compared.

    N responses cost about 3 N requests, and 4 more from the second call on.

    Args:
        model: the judge.
        preference: what a good response is, in words; it is the rubric. "" takes a general one.
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
        self._extremes: OrderedDict[str, _Extremes] = OrderedDict()
        self._lock = threading.Lock()  # loops of several threads may share this

    @property
    def usage(self) -> PhaseUsage:
        """Requests and tokens of all calls so far; its seconds stay 0."""
        return self._verdicts.usage

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        """Rewards by which the best and the worst of all responses to this conversation can be told.

        Raises:
            RewardError: the judge failed; a tournament needs all of its comparisons.
        """
        scores, _ = await self.score_with_usage(messages, responses)
        return scores

    async def score_with_usage(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], *, preference: str = ""
    ) -> tuple[list[float], PhaseUsage]:
        """`score`, and what it cost.

        Args:
            messages: the conversation.
            responses: texts to compare; may be empty.
            preference: the rubric of this call; "" takes the judge's own.

        Returns:
            The rewards, and the requests and tokens of this call (its seconds stay 0).

        Raises:
            RewardError: the judge failed.
        """
        used = no_usage()
        texts = list(dict.fromkeys(responses))
        if not texts:
            return [], used
        rubric = preference.strip() or self.preference or DEFAULT_RUBRIC
        shared = {"rubric": rubric, "conversation": render_conversation(messages)}

        async def compare(left: str, right: str) -> float:
            if left == right:
                return 0.5
            orders = [self._share(shared, left, right, used), self._share(shared, right, left, used)]
            forward, backward = await gather(orders)
            # rounded, so that a judge that always prefers what stands first gives an exact tie
            return round((forward + 1 - backward) / 2, 6)

        standing = await hold_tournament(texts, compare)
        best, worst = texts[standing.best], texts[standing.worst]
        key = hashlib.sha256("\0".join(shared.values()).encode("utf-8", errors="surrogatepass")).hexdigest()
        while True:
            known = self._extremes.get(key)
            better = known is not None and await compare(best, known.best) > 0.5
            # where all are alike, they can't be both better than the best and worse than the worst
            worse = known is not None and not (better and standing.tied) and await compare(worst, known.worst) < 0.5
            high, low = _span(known, better=better, worse=worse, tied=standing.tied)
            rewards = _rewards(standing, high, low)
            found = _Extremes(
                best=best if known is None or better else known.best,
                best_reward=rewards[standing.best] if known is None or better else known.best_reward,
                worst=worst if known is None or worse else known.worst,
                worst_reward=rewards[standing.worst] if known is None or worse else known.worst_reward,
            )
            if self._remember(key, known, found):
                break
        by_text = dict(zip(texts, rewards, strict=True))
        return [by_text[response] for response in responses], used

    async def _share(self, shared: dict[str, str], first: str, second: str, used: PhaseUsage) -> float:
        """How likely the judge is to prefer what it is shown first."""
        request = self._prompt.render({**shared, "first": first, "second": second})
        return (await self._verdicts.ask(request, used))["A"]

    def _remember(self, key: str, known: _Extremes | None, found: _Extremes) -> bool:
        """Keep the new extremes, unless another call for the same conversation was faster."""
        with self._lock:
            if self._extremes.get(key) is not known:
                return False
            self._extremes[key] = found
            self._extremes.move_to_end(key)
            while len(self._extremes) > _REMEMBERED:
                self._extremes.popitem(last=False)
            return True


def _span(known: _Extremes | None, *, better: bool, worse: bool, tied: bool) -> tuple[float, float]:
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
