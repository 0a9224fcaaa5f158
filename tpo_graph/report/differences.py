"""Which words of a text are new, and which of the text before it are gone."""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["same", "removed", "added"]

# Chinese, Japanese and Korean have no white space between words: there a character counts as one. Marks that combine
# and joiners stay with what they belong to.
_CJK = r"\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef"
_ASCII_SIGNS = r"!-/:-@\[-`{-~"
_TOKEN = re.compile(rf"\s+|[{_CJK}]|[{_ASCII_SIGNS}]|[^\s{_CJK}{_ASCII_SIGNS}]+")
_MOST_TOKENS = 8000
_SPECK = 2  # words

Span: TypeAlias = tuple[int, int, int]
"""A stretch that is the same: where it begins in the old tokens and in the new ones, and how long it is."""


class Piece(NamedTuple):
    """A stretch of text that two versions share, or that only one of them has."""

    kind: Kind
    text: str


def word_differences(before: str, after: str) -> list[Piece]:
    """The two texts as one sequence of pieces: without "added" they are `before`, without "removed" `after`.

    Of very long texts, all between their common beginning and end counts as changed.

    Examples:
        >>> [tuple(piece) for piece in word_differences("a red car", "a blue car")]
        [('same', 'a '), ('removed', 'red'), ('added', 'blue'), ('same', ' car')]
    """
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    shortest = min(len(old), len(new))
    head = next((place for place in range(shortest) if old[place] != new[place]), shortest)
    rest = shortest - head
    tail = next((place for place in range(rest) if old[-1 - place] != new[-1 - place]), rest)
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(len(middle_old), len(middle_new)) > _MOST_TOKENS:
        spans: Sequence[Span] = [(len(middle_old), len(middle_new), 0)]
    else:
        # white space alone is no reason to call two places the same
        matcher = difflib.SequenceMatcher(str.isspace, middle_old, middle_new)
        spans = _without_specks(matcher.get_matching_blocks(), middle_new)
    pieces = [Piece("same", "".join(new[:head]))]
    old_at = new_at = 0
    for old_from, new_from, size in spans:
        pieces.append(Piece("removed", "".join(middle_old[old_at:old_from])))
        pieces.append(Piece("added", "".join(middle_new[new_at:new_from])))
        pieces.append(Piece("same", "".join(middle_new[new_from : new_from + size])))
        old_at, new_at = old_from + size, new_from + size
    pieces.append(Piece("same", "".join(new[len(new) - tail :])))
    return _joined(pieces)


def _without_specks(spans: Sequence[Span], new: Sequence[str]) -> list[Span]:
    """The stretches that are the same, without the word or two that two rewritten passages share by chance."""
    kept: list[Span] = []
    old_at = new_at = 0
    for place, (old_from, new_from, size) in enumerate(spans):
        if size and place + 1 < len(spans):
            words = sum(not token.isspace() for token in new[new_from : new_from + size])
            old_next, new_next, _ = spans[place + 1]
            before = max(old_from - old_at, new_from - new_at)
            after = max(old_next - old_from, new_next - new_from) - size
            if words <= _SPECK and min(before, after) > 4 * words:
                continue
        kept.append((old_from, new_from, size))
        old_at, new_at = old_from + size, new_from + size
    return kept


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces that have a text, neighbours of one kind as one."""
    groups = itertools.groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.kind)
    return [Piece(kind, "".join(piece.text for piece in group)) for kind, group in groups]
