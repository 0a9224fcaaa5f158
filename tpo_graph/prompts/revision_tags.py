"""Cutting a response out of a completion: its blank edges, and the tags that fence a revised response."""

import re
from typing import NamedTuple

from tpo_graph.types import FailureReason

_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


class Extraction(NamedTuple):
    """A revised response, or why there is none.

    Attributes:
        text: what stood between the tags, without blank edges.
        problem: why the text can't be a candidate; None when it can.
        is_closed: a closing tag ends the text; False where the text was kept although nothing closes it.
    """

    text: str
    problem: FailureReason | None
    is_closed: bool = True


def without_blank_edges(text: str) -> str:
    """The text without blank lines before it and white space after it; the first line keeps its indentation.

    A single leading space does not count as indentation: tokenizers put one before a word.
    """
    blank = _BLANK_LINES.match(text)
    text = text[blank.end() if blank else 0 :].rstrip()
    return text[1:] if text[:1] == " " and not text[1:2].isspace() else text


def extract_revision(
    completion: str,
    *,
    open_tag: str,
    close_tag: str,
    opened: bool = False,
    closed: bool = False,
    truncated: bool = False,
    keep_truncated: bool = False,
) -> Extraction:
    """The text between the tags of a completion.

    Of several fenced blocks the last one counts, because models quote the tags, or write a draft, before they answer.
    Tags inside a block belong to its text as long as they are balanced; a stray closing tag does not end a block when
    another one follows.

    Args:
        completion: what the policy wrote.
        open_tag: text before a revised response.
        close_tag: text after it; may equal `open_tag`.
        opened: the prompt ended with the opening tag, so that the completion begins inside.
        closed: the provider ended the completion at the closing tag and left it out.
        truncated: the completion ended at the token limit, so that a block that is still open has no end.
        keep_truncated: keep what follows the opening tag although nothing closes it.
    """
    # a model may repeat the tag that the prompt ended with, and a server may keep the stop text
    text = f"{open_tag}{completion}" if opened and not completion.lstrip().startswith(open_tag) else completion
    if open_tag not in text:
        return Extraction("", "no_tags" if text.strip() else "empty")
    text = f"{text}{close_tag}" if closed and not text.rstrip().endswith(close_tag) else text
    start, end = _last_block(text, open_tag, close_tag, truncated=truncated)
    inner = text[start:end]
    # only what stands on a line of its own is indented on purpose
    inner = without_blank_edges(inner) if _BLANK_LINES.match(inner) else inner.strip()
    is_closed = end is not None
    if not is_closed and not keep_truncated:
        return Extraction(inner, "not_closed", is_closed)
    return Extraction(inner, None if inner else "empty", is_closed)


def _last_block(text: str, open_tag: str, close_tag: str, *, truncated: bool) -> tuple[int, int | None]:
    """Where the last outermost block begins and ends; no end when nothing closes it."""
    first, last = text.find(open_tag) + len(open_tag), text.rfind(close_tag)
    if open_tag == close_tag:
        is_open = last < first or (truncated and text.count(open_tag) % 2 == 1)
        return first, None if is_open else last
    depth = position = 0
    start = first
    block: tuple[int, int] | None = None
    while True:
        opening, closing = text.find(open_tag, position), text.find(close_tag, position)
        if opening >= 0 and (closing < 0 or opening < closing):
            start = opening + len(open_tag) if depth == 0 else start
            depth += 1
            position = opening + len(open_tag)
        elif closing >= 0:
            # a closing tag at depth 0 is a stray: the block before it extends to here
            depth = max(0, depth - 1)
            position = closing + len(close_tag)
            block = (start, closing) if depth == 0 and closing >= start else block
        else:
            break
    if depth and truncated:
        return start, None
    if block is None:
        # tags were opened inside the text and not closed there: the last closing tag is the block's own
        return first, last if last >= first else None
    return block
