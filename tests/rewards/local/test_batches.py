"""Which texts share a forward pass, and when a prefix is worth one of its own."""

import random

import pytest

from tpo_graph.rewards.local.batches import BatchLimits, prefix_of, split_by_length, worthwhile
from tpo_graph.rewards.local.encoding import EncodedText

LIMITS = BatchLimits(tokens=384, continued_tokens=384, pass_tokens=24, prefix_rows=10_000)


def text(length, *, shared=0):
    return EncodedText(tuple(range(length)), shared, (length - 1,))


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], []),
        ([10], [[10]]),
        ([10, 30, 20], [[30, 20, 10]]),  # 30 tokens of padding, two passes of 24 saved
        ([100, 100, 10, 10], [[100, 100], [10, 10]]),
        ([250, 250], [[250], [250]]),  # two would be over the limit
        ([5000, 10], [[5000], [10]]),
        ([64] * 8, [[64] * 2, [64] * 6]),
    ],
)
def test_texts_of_similar_length_share_a_pass(lengths, batches):
    division = split_by_length([text(length) for length in lengths], LIMITS)
    assert sorted([len(one.ids) for one in batch] for batch in division) == sorted(batches)


def test_the_division_costs_least():
    """Against every division of the sorted lengths."""
    chance = random.Random(3)

    def cost(lengths):
        if not lengths:
            return 0
        ends = [end for end in range(1, len(lengths) + 1) if end == 1 or end * lengths[0] <= LIMITS.tokens]
        return min(LIMITS.pass_tokens + end * lengths[0] + cost(lengths[end:]) for end in ends)

    for _ in range(20):
        lengths = [chance.randint(1, 200) for _ in range(8)]
        batches = split_by_length([text(length) for length in lengths], LIMITS)
        spent = sum(LIMITS.pass_tokens + len(batch) * len(batch[0].ids) for batch in batches)
        assert spent == cost(sorted(lengths, reverse=True))


def test_a_prefix_leaves_each_text_a_token_and_its_positions():
    assert prefix_of([text(10, shared=8), text(12, shared=8)]) == tuple(range(8))
    assert prefix_of([text(8, shared=8), text(12, shared=8)]) == tuple(range(7))
    assert prefix_of([EncodedText(tuple(range(12)), 8, (5, 11)), text(12, shared=8)]) == tuple(range(5))


@pytest.mark.parametrize(
    ("prefix", "texts", "total", "kept", "worth"),
    [
        (1000, 20, 20_800, False, True),
        (1000, 1, 1_040, False, False),
        (1000, 1, 1_040, True, True),
        (20, 5, 200, False, False),  # saves 80 tokens, fewer than four passes cost
        (40, 8, 4_000, False, False),  # saves a fourteenth
    ],
)
def test_when_a_prefix_is_worthwhile(prefix, texts, total, kept, worth):
    assert worthwhile(LIMITS, prefix=prefix, texts=texts, total=total, kept=kept) is worth
