"""A linear rule on a few counts, fitted to the preference pairs of the training side.

On a few thousand noisy pairs such a rule does better than a network that is trained on nothing but their labels. So the
network learns the rule's margins, with a little added for the label of each pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from demo_reward_data import Message, Pair, ends_sentence


def counts(prompt: Sequence[Message], text: str) -> list[float]:
    """Counts in a response: words, their variety, questions, a whole last sentence, the user's words, an apology."""
    words = text.lower().split()
    number = max(1, len(words))
    asked = set(prompt[-1]["content"].lower().split())
    return [
        math.log1p(len(words)),
        len(set(words)) / number,
        text.count("?"),
        float(ends_sentence(text)),
        sum(word in asked for word in words) / number,
        float("sorry" in words),
    ]


def fit_counts(pairs: Sequence[Pair]) -> Callable[[Pair], float]:
    """Fits a logistic regression without intercept to the differences of the counts, by Newton's method.

    Args:
        pairs: The pairs to fit.

    Returns:
        A function that gives the log-odds that the chosen response of a pair is the better one.
    """

    def difference(pair: Pair) -> list[float]:
        return [
            a - b for a, b in zip(counts(pair.prompt, pair.chosen), counts(pair.prompt, pair.rejected), strict=True)
        ]

    x = torch.tensor([difference(pair) for pair in pairs], dtype=torch.float64)  # (P, C)
    scale = x.std(dim=0)
    x /= scale
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(20):
        sure = torch.sigmoid(x @ weights)
        gradient = x.T @ (1 - sure) - weights
        curvature = (x * (sure * (1 - sure))[:, None]).T @ x + torch.eye(len(weights), dtype=torch.float64)
        weights += torch.linalg.solve(curvature, gradient)
    per_count = (weights / scale).tolist()
    return lambda pair: sum(w * d for w, d in zip(per_count, difference(pair), strict=True))
