"""Finds the best and the worst of several things by comparing them in pairs: about three comparisons for two things."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tpo_graph.rewards.concurrency import gather

__all__ = ["Compare", "Standing", "hold_tournament"]

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
