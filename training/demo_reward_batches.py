"""Draws the batches that the demonstration reward learns from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo_reward_corruptions import Case, corrupt
from demo_reward_counts import fit_counts
from demo_reward_data import HARMLESS, HELPFUL, LLMBAR, Message, Pair, Reply, read_pairs, replies, sentences
from demo_reward_model import build_tokenizer, render

VOCABULARY = 8192
PAIRS_A_STEP = 12
GROUPS_A_STEP = 6
TOPIC_GROUPS_A_STEP = 4
TOPIC_GROUP = 4
HARMLESS_SHARE = 0.15  # of the harmless pairs in a pass: they reward refusals, which the helpful ones do not
# The margin to be learnt on a helpful pair: the rule's log-odds, stretched so that noise does not drown them, and a
# little for the label.
RULE_STRETCH = 2.5
LABEL_MARGIN = 0.4


@dataclass(frozen=True)
class Link:
    """One comparison of a batch: row `better` should score above row `worse`.

    Attributes:
        better: Place of the better row.
        worse: Place of the worse row.
        margin: The difference of the rewards that is to be learnt; None means the larger the better.
    """

    better: int
    worse: int
    margin: float | None = None


@dataclass
class Batch:
    """Rows of token ids, and the comparisons between them."""

    rows: list[list[int]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


class Batches:
    """Draws batches for ever; `seed` decides all draws that follow it.

    Args:
        data: Folder with the pair files; only the training side of the split is read.
        start: Folder with MiniLM's tokenizer.
    """

    def __init__(self, data: Path, start: Path) -> None:
        self.helpful = read_pairs(data, HELPFUL, "train")
        self.harmless = read_pairs(data, HARMLESS, "train")
        self.llmbar = read_pairs(data, LLMBAR, "train")
        everything = self.helpful + self.harmless + self.llmbar
        self.replies: Sequence[Reply] = list(replies(everything))
        self.plain_questions = [r for r in self.replies if 4 <= len(r.prompt[-1]["content"].split()) <= 30]
        self.short_replies = [
            r for r in self.replies if len(r.text.split()) < 50 and len(r.prompt[-1]["content"].split()) < 40
        ]
        texts = [m["content"] for p in everything for m in p.prompt]
        texts += [text for p in everything for text in (p.chosen, p.rejected)]
        self.tokenizer, self.origin = build_tokenizer(start, texts, VOCABULARY)
        self.rule = fit_counts(self.helpful)
        self.seed("")

    def seed(self, seed: str) -> None:
        """Starts the draws anew."""
        self.rng = random.Random(seed)
        self._pairs = self._passes()

    def _passes(self) -> Iterator[Pair]:
        while True:
            once = self.helpful + self.rng.sample(self.harmless, int(len(self.harmless) * HARMLESS_SHARE)) + self.llmbar
            self.rng.shuffle(once)
            yield from once

    def _context(self, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation, or often its last message alone: most questions at run time have no history."""
        return prompt[-1:] if len(prompt) > 1 and self.rng.random() < 0.45 else prompt

    def _snippet(self, text: str) -> str:
        """One or two sentences of a text, 30 words at most."""
        parts = sentences(text)
        start = self.rng.randrange(len(parts))
        return " ".join(" ".join(parts[start : start + 2]).split()[:30])

    def topics(self) -> Batch:
        """Questions with a snippet of their answer, against the same question or the same snippet with another.

        That each snippet is once the better and once the worse row leaves nothing to learn but whether the two belong
        together.
        """
        batch = Batch()
        for _ in range(TOPIC_GROUPS_A_STEP):
            group = self.rng.sample(self.plain_questions, TOPIC_GROUP)
            answers = [self._snippet(reply.text) for reply in group]
            first = len(batch.rows)
            for shift in (0, 1):
                for i, reply in enumerate(group):
                    answer = answers[(i + shift) % TOPIC_GROUP]
                    batch.rows.append(render(self.tokenizer, reply.prompt[-1:], answer, 96))
            for i in range(TOPIC_GROUP):
                mixed = first + TOPIC_GROUP + i
                batch.links += [Link(first + i, mixed), Link(first + (i + 1) % TOPIC_GROUP, mixed)]
        return batch

    def mixed(self) -> Batch:
        """Preference pairs, and intact replies beside spoilt ones."""
        batch = Batch()
        # Mostly short, for speed; what is too long loses its start, [CLS] included, as at run time.
        limit = 448 if self.rng.random() < 0.15 else 224
        for _ in range(PAIRS_A_STEP):
            pair = next(self._pairs)
            context = self._context(pair.prompt)
            margin = LABEL_MARGIN + RULE_STRETCH * self.rule(pair) if pair.subset in HELPFUL else None
            batch.links.append(Link(len(batch.rows), len(batch.rows) + 1, margin))
            batch.rows += [render(self.tokenizer, context, text, limit) for text in (pair.chosen, pair.rejected)]
        self._add_spoilt(batch, limit)
        return batch

    def _add_spoilt(self, batch: Batch, limit: int) -> None:
        """Adds replies, each against two corruptions of itself and against the next one's text.

        As in `topics`, each off-topic text is the intact one of another group, and should lose to both of its parents.
        """
        short = self.rng.random() < 0.5
        group = self._apart(self.short_replies if short else self.replies, GROUPS_A_STEP)
        first = len(batch.rows)
        for i, reply in enumerate(group):
            following = group[(i + 1) % len(group)]
            context = reply.prompt[-1:] if short else self._context(reply.prompt)
            case = Case(reply, self.replies, self.rng)
            texts = (reply.text, following.text, corrupt(case), corrupt(case))
            row, next_row = len(batch.rows), first + 4 * ((i + 1) % len(group))
            batch.links += [Link(row, row + 1), Link(row, row + 2), Link(row, row + 3), Link(next_row, row + 1)]
            batch.rows += [render(self.tokenizer, context, text, limit) for text in texts]

    def _apart(self, replies: Sequence[Reply], count: int) -> list[Reply]:
        """Draws replies of different conversations."""
        drawn: dict[str, Reply] = {}
        while len(drawn) < count:
            reply = self.rng.choice(replies)
            drawn[reply.key] = reply
        return list(drawn.values())
