"""Cutting a revised response out of the tags that fence it."""

from typing import NamedTuple

from tpo_graph.types import FailureReason

__all__ = ["Extraction", "extract_revision"]


class Extraction(NamedTuple):
    """A revised response, or why there is none.

    Attributes:
        text: what stood between the tags, without surrounding white space.
        problem: None when the text can be a candidate.
    """

    text: str
    problem: FailureReason | None


def extract_revision(
    completion: str,
    *,
    open_tag: str,
    close_tag: str,
    opened: bool = False,
    closed: bool = False,
    keep_truncated: bool = False,
) -> Extraction:
    """The text between the tags of a completion.

    Of several fenced blocks the last counts: models quote the tags, or draft, before they answer. Tags inside a
    block belong to its text as long as they are balanced; a stray closing tag does not end a block when another
    one follows.

    Args:
        completion: what the policy wrote.
        open_tag: text before a revised response.
        close_tag: text after it; may equal `open_tag`.
        opened: the prompt ended with the opening tag, so that the completion begins inside.
        closed: the provider ended the completion at the closing tag and left it out.
        keep_truncated: take what follows the opening tag although nothing closes it.
    """
    # a model may repeat the tag that the prompt ended with, and a server may keep the stop text
    text = f"{open_tag}{completion}" if opened and not completion.lstrip().startswith(open_tag) else completion
    start = text.find(open_tag)
    if start < 0:
        return Extraction("", "empty" if not text.strip() else "no_tags")
    text = f"{text}{close_tag}" if closed and not text.rstrip().endswith(close_tag) else text
    inner = _last_block(text, open_tag, close_tag)
    if inner is None:
        inner = text[start + len(open_tag) :]
        if not keep_truncated:
            return Extraction(inner.strip(), "not_closed")
    inner = inner.strip()
    return Extraction(inner, None if inner else "empty")


def _last_block(text: str, open_tag: str, close_tag: str) -> str | None:
    """The last outermost block, or None when no block is closed."""
    if open_tag == close_tag:
        first, last = text.find(open_tag), text.rfind(close_tag)
        return text[first + len(open_tag) : last] if last >= first + len(open_tag) else None
    depth = 0
    start = position = text.find(open_tag)
    block: str | None = None
    while True:
        opening, closing = text.find(open_tag, position), text.find(close_tag, position)
        if closing < 0:
            break
        if 0 <= opening < closing:
            start = opening if depth == 0 else start
            depth += 1
            position = opening + len(open_tag)
            continue
        # a closing tag at depth 0 is a stray: the block before it goes on up to here
        depth = max(0, depth - 1)
        position = closing + len(close_tag)
        if depth == 0:
            block = text[start + len(open_tag) : closing]
    if block is None:
        # tags were opened inside the text and not closed there: the last closing tag is the block's own
        first, last = text.find(open_tag), text.rfind(close_tag)
        block = text[first + len(open_tag) : last] if last > first else None
    return block
