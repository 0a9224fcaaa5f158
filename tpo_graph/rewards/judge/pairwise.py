"""A chat model as reward model that compares: a tournament finds the best and the worst response."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph.accounting import no_usage
from tpo_graph.errors import RewardError
from tpo_graph.rewards.base import RunContext, RunExtremes, Scoring, charge_errors, gather, run_key
from tpo_graph.rewards.judge.base import ChatModelJudge, judge_arguments
from tpo_graph.rewards.judge.prompts import PAIRWISE, JudgePrompt, joined_rubric, render_conversation
from tpo_graph.types import Options

Compare: TypeAlias = Callable[[str, str], Awaitable[float]]
"""How likely the first is better than the second: 0 to 1, 0.5 for a tie."""

_REMEMBERED_RUNS = 1024


class PairwiseJudgeReward(ChatModelJudge):
    """Compares responses with any chat model, each pair in both orders, whose mean counts.

    Where one of the two orders fails, the other one counts alone.

    The rewards are places and not grades: the best and the worst have the highest and the lowest, the others lie
    between in a rough order. That holds over all steps of a run: new responses meet the best and the worst so far, so
    that a reward above that of the best so far means that the judge preferred the response to it. Rewards of different
    runs can't be compared.

    A run says what its best and worst are. Where it can't, as for a part of a combination, the judge remembers them,
    and holds the tournament of the first candidates again when it has forgotten. Calls without a run (`score`) belong
    together when they are about the same conversation.

    N responses cost about 3 N requests, and 4 more from the second step on.

    Args:
        model: the judge: a chat model, or the name of one as `load_policy` takes it, which is loaded at once.
        preference: what a good response is, in words; it is the rubric, and the run's preference is added to it. With
            neither there is a general one.
        prompt: what the judge is shown; None for this package's own words.
        samples: verdicts to take the mean of where log probabilities are missing.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument that can't be used.
    """

    default_prompt = PAIRWISE

    def __init__(
        self,
        model: BaseChatModel | str,
        *,
        preference: str = "",
        prompt: JudgePrompt | None = None,
        samples: int = 1,
        max_concurrency: int = 16,
    ) -> None:
        super().__init__(model, preference=preference, prompt=prompt, samples=samples, max_concurrency=max_concurrency)
        self._extremes: BoundedCache[tuple[bytes, str], RunExtremes] = BoundedCache(_REMEMBERED_RUNS)

    async def score_in_detail(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> Scoring:
        """Rewards that show the best and the worst of all responses of the run.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to compare; may be empty.
            run: the run that they are compared for; its preference is added to the rubric.

        Raises:
            RewardError: the judge failed for both orders of a pair; a tournament needs all of its comparisons.
        """
        texts = list(dict.fromkeys(responses))
        if not texts:
            return Scoring([])
        usage = no_usage()
        rubric = joined_rubric(self.preference, run.preference)
        shared = {"rubric": rubric, "conversation": render_conversation(messages)}

        async def preference_for_first(first: str, second: str) -> float:
            request = self._prompt.render({**shared, "first": first, "second": second})
            probabilities = await self._probabilities(request, usage)
            if len(self.labels) == 3:  # the third is a tie
                return probabilities[self.labels[0]] + probabilities[self.labels[2]] / 2
            return probabilities[self.labels[0]]

        async def compare(left: str, right: str) -> float:
            if left == right:
                return 0.5
            shares: list[float] = []
            failures: list[RewardError] = []

            async def ask(first: str, second: str) -> None:
                try:
                    share = await preference_for_first(first, second)
                except RewardError as error:
                    failures.append(error)
                else:
                    shares.append(share if first == left else 1 - share)

            await gather([ask(left, right), ask(right, left)])
            if not shares:
                raise failures[0]
            # rounded, so that a judge that always prefers what stands first gives an exact tie
            return round(sum(shares) / len(shares), 6)

        with charge_errors(usage):
            if run.extremes is not None:
                rewards, _ = await _place(texts, await best_and_worst(texts, compare), run.extremes, compare)
            else:
                key = (run_key(messages, run.anchors), rubric)
                rewards = await self._place_in_run(key, texts, run.anchors, compare)
        return Scoring([rewards[response] for response in responses], usage=usage)

    async def _place_in_run(
        self, run: tuple[bytes, str], texts: Sequence[str], anchors: tuple[str, ...] | None, compare: Compare
    ) -> Mapping[str, float]:
        """Rewards against the best and the worst that are remembered of a run; the new ones are remembered."""
        if anchors is not None and set(texts) == set(anchors):
            # a run begins, and what another one with the same first candidates found is not its own
            rewards, extremes = await _place(texts, await best_and_worst(texts, compare), None, compare)
            self._extremes.put(run, extremes)
            return rewards
        stored = before = self._extremes.get(run)
        of_anchors: Mapping[str, float] = {}
        if before is None and anchors:
            # forgotten, or a run that is resumed elsewhere
            first = list(dict.fromkeys(anchors))
            of_anchors, before = await _place(first, await best_and_worst(first, compare), None, compare)
        new = [text for text in texts if text not in of_anchors]
        if not new:
            return of_anchors
        result = await best_and_worst(new, compare)
        while True:
            rewards, extremes = await _place(new, result, before, compare)
            if self._extremes.replace(run, stored, extremes):
                return {**of_anchors, **rewards}
            stored = before = self._extremes.get(run)  # another call about the same run was faster


def load_pairwise_judge(name: str, **options: Options) -> PairwiseJudgeReward:
    """A judge that compares responses in pairs.

    Args:
        name: a chat model, as in "openai:gpt-4o-mini" or "vllm:http://127.0.0.1:8000/v1#model".
        **options: `preference`, `prompt` (or a table or TOML file of one), `samples`, `max_concurrency`; others go to
            the chat model.

    Raises:
        ConfigurationError: a name or an option that can't be used.
        PolicyError: the chat model's server does not answer.
    """
    return PairwiseJudgeReward(**judge_arguments("pairwise-judge", name, options))


@dataclass(frozen=True)
class TournamentResult:
    """What a tournament found.

    Attributes:
        best: place of the best in the sequence.
        worst: place of the worst; `best` itself where there is only one text.
        levels: for each text, how far it got: above 0 among the winners of the first round, below 0 among its losers.
            The best has the highest, the worst the lowest; between others, levels are a rough order.
        tied: every comparison was a tie.
    """

    best: int
    worst: int
    levels: Sequence[int]
    tied: bool


async def best_and_worst(texts: Sequence[str], compare: Compare) -> TournamentResult:
    """Compare in rounds; the comparisons of a round run at the same time.

    In the first round each text meets one other. The winners then meet for the best place, the losers for the worst
    one: together about 1.5 N comparisons, where ranking all would take N log N. Ties go to the earlier one.

    Args:
        texts: what to compare, at least one.
        compare: compares two.
    """
    levels = [0] * len(texts)
    if len(texts) == 1:
        return TournamentResult(0, 0, levels, tied=True)
    tied = True

    async def first_wins(pair: tuple[int, int]) -> bool:
        nonlocal tied
        share = await compare(texts[pair[0]], texts[pair[1]])
        tied = tied and share == 0.5
        return share >= 0.5

    async def last_one(places: Sequence[int], sign: int) -> int:
        """The one that is left when each round keeps the better (sign 1) or the worse (sign -1) of two."""
        level = 1
        while len(places) > 1:
            pairs = list(zip(places[::2], places[1::2], strict=False))
            kept = []
            for pair, wins in zip(pairs, await gather(map(first_wins, pairs)), strict=True):
                stays, goes = pair if wins == (sign > 0) else reversed(pair)
                kept.append(stays)
                levels[goes] = sign * level
            places = kept + list(places[2 * len(pairs) :])
            level += 1
        levels[places[0]] = sign * level
        return places[0]

    pairs = [(place, place + 1) for place in range(0, len(texts) - 1, 2)]
    wins = await gather(map(first_wins, pairs))
    winners = [pair[0] if won else pair[1] for pair, won in zip(pairs, wins, strict=True)]
    losers = [pair[1] if won else pair[0] for pair, won in zip(pairs, wins, strict=True)]
    if len(texts) % 2:
        # the odd one meets the last loser: it is then out of the running for one of the two places
        odd = len(texts) - 1
        (losers if await first_wins((losers[-1], odd)) else winners).append(odd)
    best, worst = await gather([last_one(winners, 1), last_one(losers, -1)])
    return TournamentResult(best, worst, levels, tied)


async def _place(
    texts: Sequence[str], result: TournamentResult, before: RunExtremes | None, compare: Compare
) -> tuple[Mapping[str, float], RunExtremes]:
    """Rewards by text after a tournament, against the best and the worst of the run before it; and those after it."""
    best, worst = texts[result.best], texts[result.worst]
    is_better = is_worse = True
    if before is None:
        high, low = (0.0, 0.0) if result.tied else (1.0, -1.0)
    else:
        is_better = await compare(best, before.best) > 0.5
        # texts that are all alike can't be both better than the best and worse than the worst
        is_worse = not (is_better and result.tied) and await compare(worst, before.worst) < 0.5
        width = before.best_reward - before.worst_reward
        high = before.best_reward + 1 if is_better else before.worst_reward + 0.75 * width
        low = before.worst_reward - 1 if is_worse else before.worst_reward + 0.25 * width
        if result.tied:  # they share the place of the one that met both extremes
            high = low = high if is_better else low if is_worse else (high + low) / 2
    top, bottom = max(result.levels), min(result.levels)
    rewards = {}
    for place, (text, level) in enumerate(zip(texts, result.levels, strict=True)):
        # one reward for each level: the best and the worst at the ends, the others in the middle half between them
        share = 0.25 + 0.5 * (level - bottom) / (top - bottom) if top > bottom else 1.0
        ends = {result.worst: low, result.best: high}
        rewards[text] = ends.get(place, low + share * (high - low))
    return rewards, RunExtremes(
        best=best if before is None or is_better else before.best,
        best_reward=high if before is None or is_better else before.best_reward,
        worst=worst if before is None or is_worse else before.worst,
        worst_reward=low if before is None or is_worse else before.worst_reward,
    )
