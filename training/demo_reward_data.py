"""The texts behind the demonstration reward: reading them, and splitting them by prompt.

Plain Python, no torch, so that the split can be read and tested on its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Message = dict[str, str]
Side = Literal["train", "dev", "heldout"]

HELPFUL = ("hh_helpful_base", "hh_helpful_online", "hh_helpful_rejection_sampled")
HARMLESS = ("hh_harmless_base",)
LLMBAR = ("llmbar",)

HELDOUT_PERCENT = 20
DEV_PERCENT = 4

WORD = re.compile(r"\S+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
MIN_INTACT_WORDS = 8


@dataclass(frozen=True)
class Pair:
    """One human preference: two responses to the same conversation.

    Attributes:
        subset: Name of the set it came from, such as `hh_helpful_base`.
        prompt: The conversation up to the response; the last message is the user's.
        chosen: The response that the annotator preferred.
        rejected: The other one.
    """

    subset: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    @property
    def key(self) -> str:
        """The first user message, normalised: what the split goes by."""
        first = next((m["content"] for m in self.prompt if m["role"] == "user"), "")
        return " ".join(first.lower().split())


@dataclass(frozen=True)
class Reply:
    """A response that is on topic and whole, in its conversation; no preference is known."""

    prompt: tuple[Message, ...]
    text: str
    key: str


def side_of(key: str) -> Side:
    """Says on which side of the split a first user message falls.

    Only the message decides, so the same prompt is on the same side in every subset.
    """
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    if bucket < HELDOUT_PERCENT:
        return "heldout"
    return "dev" if bucket < HELDOUT_PERCENT + DEV_PERCENT else "train"


def read_pairs(folder: Path, subsets: Sequence[str], side: Side) -> list[Pair]:
    """Reads `pairs_<subset>.jsonl` of each subset and keeps one side of the split.

    Args:
        folder: Where the files are.
        subsets: Names without `pairs_` and the suffix.
        side: Which side of the split to keep.

    Returns:
        The pairs in file order; pairs with an empty prompt or two equal responses are left out.

    Raises:
        FileNotFoundError: A file is not there.
    """
    pairs = []
    for subset in subsets:
        with (folder / f"pairs_{subset}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                raw = row["prompt"]
                prompt = [{"role": "user", "content": raw}] if isinstance(raw, str) else raw
                pair = Pair(subset, tuple(prompt), row["chosen"].strip(), row["rejected"].strip())
                if pair.key and pair.chosen != pair.rejected and side_of(pair.key) == side:
                    pairs.append(pair)
    return pairs


def ends_sentence(text: str) -> bool:
    """Says whether a text ends with `.`, `!` or `?`, closing quotes and brackets aside."""
    return text.rstrip(" \"')*\u201d\u2019").endswith((".", "!", "?"))


def is_intact(text: str) -> bool:
    """Says whether a text can stand for an intact answer: it ends a sentence and is at least eight words long."""
    return len(WORD.findall(text)) >= MIN_INTACT_WORDS and ends_sentence(text)


def replies(pairs: Sequence[Pair]) -> Iterator[Reply]:
    """Yields every intact assistant turn: both responses, and the turns inside the conversations."""
    seen = set()
    for pair in pairs:
        turns = [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
        turns += [(pair.prompt[:i], m["content"]) for i, m in enumerate(pair.prompt) if i and m["role"] == "assistant"]
        for prompt, text in turns:
            identity = (tuple(m["content"] for m in prompt), text)
            if is_intact(text) and identity not in seen:
                seen.add(identity)
                yield Reply(prompt, text.strip(), pair.key)


def sentences(text: str) -> list[str]:
    """Cuts a text after `.`, `!` and `?`."""
    return [part for part in SENTENCE_END.split(text.strip()) if part]
