"""What the demonstration reward is worth, on prompts that training never saw.

Two questions. Does it agree with people on which of two responses is better? And does it see that an answer was
spoilt, in the four ways in which small language models spoil theirs?
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from demo_reward_corruptions import MEASURED, Case
from demo_reward_data import HARMLESS, HELPFUL, LLMBAR, Message, Reply, is_intact, read_pairs
from demo_reward_model import render, score_batch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

SEED = 20250122
Scorer = Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is compared.
        pairs: How many comparisons.
        accuracy: Share that the reward got right, a tie counting half.
        low: Lower end of the 95% Wilson interval.
        high: Upper end of it.
        length_rule: Share that "the longer text wins" gets right.
    """

    name: str
    pairs: int
    accuracy: float
    low: float
    high: float
    length_rule: float


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion."""
    centre = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - margin) / (1 + z * z / count), (centre + margin) / (1 + z * z / count)


def share_won(better: Sequence[float], worse: Sequence[float]) -> float:
    """How often the first is above the second; a tie counts half."""
    return sum((b > w) + 0.5 * (b == w) for b, w in zip(better, worse, strict=True)) / len(better)


def load_scorer(checkpoint: Path) -> Scorer:
    """Loads the checkpoint as any other reward model is loaded, in float32; equal inputs are scored once."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)

    known: dict[tuple[int, ...], float] = {}

    @torch.inference_mode()
    def score(items: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        rows = [tuple(render(tokenizer, prompt, response)) for prompt, response in items]
        new = [row for row in dict.fromkeys(rows) if row not in known]
        if new:
            known.update(zip(new, score_batch(model, new).tolist(), strict=True))
        return [known[row] for row in rows]

    return score


def compare(name: str, score: Scorer, triples: Sequence[tuple[Sequence[Message], str, str]]) -> Row:
    """Scores (prompt, better, worse) and counts how often the better one wins."""
    better = score([(prompt, text) for prompt, text, _ in triples])
    worse = score([(prompt, text) for prompt, _, text in triples])
    accuracy = share_won(better, worse)
    by_length = share_won([len(b) for _, b, _ in triples], [len(w) for _, _, w in triples])
    return Row(name, len(triples), accuracy, *wilson(accuracy, len(triples)), by_length)


def measure_preferences(score: Scorer, data: Path) -> list[Row]:
    """Compares the chosen with the rejected response of every held-out pair, by subset and in total."""
    rows = []
    for label, subsets in (("all helpful", HELPFUL), *((name, (name,)) for name in (*HELPFUL, *HARMLESS, *LLMBAR))):
        pairs = read_pairs(data, subsets, "heldout")
        rows.append(compare(label, score, [(p.prompt, p.chosen, p.rejected) for p in pairs]))
    return rows


def measure_corruptions(score: Scorer, data: Path) -> list[Row]:
    """Compares every intact held-out chosen answer with itself after one corruption of each kind.

    An answer that ends inside a sentence, or has fewer than eight words, is no intact answer and is left out.
    """
    pairs = read_pairs(data, HELPFUL, "heldout")
    intact = [Reply(p.prompt, p.chosen, p.key) for p in pairs if is_intact(p.chosen)]
    rng = random.Random(SEED)
    rows = []
    for name, corruption in MEASURED.items():
        triples = [(reply.prompt, reply.text, corruption(Case(reply, intact, rng))) for reply in intact]
        rows.append(compare(name, score, triples))
    mean, count = (sum(row.accuracy for row in rows) / len(rows)), len(rows) * len(intact)
    by_length = sum(row.length_rule for row in rows) / len(rows)
    return [Row("mean of the four", count, mean, *wilson(mean, count), by_length), *rows]


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Prints rows as a table for people."""
    table = Table(title=title, title_justify="left")
    table.add_column("held-out")
    for heading in ("pairs", "right", "95% interval", "longer wins"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        interval = f"{row.low:.1%} to {row.high:.1%}"
        table.add_row(row.name, str(row.pairs), f"{row.accuracy:.1%}", interval, f"{row.length_rule:.1%}")
    console.print(table)


def as_json(preferences: Sequence[Row], corruptions: Sequence[Row]) -> dict[str, list[dict[str, object]]]:
    """The same rows as plain values."""
    return {"preferences": [asdict(row) for row in preferences], "corruptions": [asdict(row) for row in corruptions]}
