"""Cutting a response out of a completion: its blank edges, and the tags that fence a revised response."""

import re
from functools import lru_cache
from typing import NamedTuple

from tpo_graph.types import FailureReason

_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")
_XML_TAG = re.compile(r"<(/?)([\w.:-]+)>")
_MARKS = "*_`~"
_MOST_MARKS = 6
_FENCE_BEFORE = re.compile(r"(?:^|\n)[ \t]*`{3,}[\w-]*[ \t]*\n[ \t]*\Z")
_FENCE_AFTER = re.compile(r"[ \t]*\n[ \t]*`{3,}[ \t]*(?=\n|\Z)")
_MARKED_LINE = re.compile(r"\n[ \t#>*_-]*\Z")
_WINDOW = 40  # characters before a tag in which its marks are looked for


class Extraction(NamedTuple):
    """A revised response, or why there is none.

    Attributes:
        text: what stood between the tags, without blank edges.
        problem: why the text can't be a candidate; None when it can.
        is_closed: a closing tag ends the text; False where nothing closes it.
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
    another one follows. Where nothing closes the text, it is whole unless the completion was cut. Without tags the
    completion is the text.

    Where tags like `<new_text>` fence nothing as they are written, other spellings count: another case, spaces, an
    attribute, `-` for `_`, HTML escapes. Markdown marks around such a tag belong to it.

    Args:
        completion: what the policy wrote.
        open_tag: text before a revised response; "" for none.
        close_tag: text after it; may equal `open_tag`.
        opened: the prompt ended with the opening tag, so that the completion begins inside.
        closed: the provider ended the completion at the closing tag and left it out.
        truncated: the completion was cut, at the token limit as a rule, so that a block that is still open has no end.
        keep_truncated: keep what follows the opening tag although it was cut.
    """
    if not open_tag:
        whole = without_blank_edges(completion)
        if truncated and not keep_truncated:
            return Extraction(whole, "truncated", is_closed=False)
        return Extraction(whole, None if whole else "empty", is_closed=not truncated)
    exact, lenient = _tag_patterns(open_tag, close_tag)
    is_xml = exact != lenient
    # a model may repeat the tag that the prompt ended with, and a server may keep the stop text
    repeated = lenient.match(completion.lstrip()) if opened else None
    text = completion if not opened or (repeated and not repeated.lastgroup) else f"{open_tag}{completion}"
    text = f"{text}{close_tag}" if closed and not text.rstrip().endswith(close_tag) else text
    tags = _last_block(text, exact, truncated=truncated)
    if is_xml and (tags is None or tags[1] is None):
        tags = _last_block(text, lenient, truncated=truncated)
    if tags is None:
        return Extraction("", "no_tags" if text.strip() else "empty")
    opening, closing = tags
    if is_xml:
        inner = _without_marks(text, opening, closing)
    else:
        inner = text[opening.end() : closing.start() if closing else None]
    # only what stands on a line of its own is indented on purpose
    inner = without_blank_edges(inner) if _BLANK_LINES.match(inner) else inner.strip()
    if closing is None and truncated and not keep_truncated:
        return Extraction(inner, "truncated", is_closed=False)
    return Extraction(inner, None if inner else "empty", is_closed=closing is not None)


@lru_cache(maxsize=64)
def _tag_patterns(open_tag: str, close_tag: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Both tags as they are written, and in any spelling; the group `close` is there in a closing one.

    Possessive quantifiers keep both linear in the length of a text.
    """
    patterns = []
    for spelled in (re.escape, _any_spelling):
        opening, closing = spelled(open_tag), spelled(close_tag)
        patterns.append(re.compile(opening if opening == closing else f"{closing}(?P<close>)|{opening}"))
    return patterns[0], patterns[1]


def _any_spelling(tag: str) -> str:
    """A regular expression for an XML-like tag however models spell it, and for any other tag as it is."""
    if not (xml := _XML_TAG.fullmatch(tag)):
        return re.escape(tag)
    slash, name = xml.groups()
    return (
        r"(?i:(?:\\?<|&(?:lt|#60|#x3c);)\s*+"
        rf"{slash}\s*+{spelled_name(name)}(?:\s[^<>&\n]*+)?+\s*+"
        r"\\?(?:>|&(?:gt|#62|#x3e);))"
    )


def spelled_name(name: str) -> str:
    """A regular expression for the name of a tag with `-`, a space or an escaped `_` for `_`."""
    return r"\\?[-_ ]".join(map(re.escape, re.split("[-_]", name)))


def _last_block(
    text: str, pattern: re.Pattern[str], *, truncated: bool
) -> tuple[re.Match[str], re.Match[str] | None] | None:
    """The tags of the last outermost block, with None where nothing closes it; None when nothing opens one."""
    tags = list(pattern.finditer(text))
    if tags and not pattern.groups:  # equal tags have no depth
        is_open = len(tags) == 1 or (truncated and len(tags) % 2 == 1)
        return tags[0], None if is_open else tags[-1]
    depth = 0
    opening: re.Match[str] | None = None
    block: tuple[re.Match[str], re.Match[str]] | None = None
    for tag in tags:
        if not tag.lastgroup:
            opening = opening if depth else tag
            depth += 1
        elif opening is not None:
            # a closing tag at depth 0 is a stray: the block before it extends to here
            depth = max(0, depth - 1)
            block = block if depth else (opening, tag)
    if opening is None or (not depth and block):
        return block
    if truncated:
        return opening, None
    before = text[text.rfind("\n", 0, opening.start()) + 1 : opening.start()]
    if block and before.strip(f" \t{_MARKS}"):
        return block  # a tag inside a line, behind a whole block, is spoken of
    # tags were opened inside the text and not closed there: the last closing tag is the block's own
    closing = next((tag for tag in reversed(tags) if tag.lastgroup), None)
    return opening, closing if closing and closing.start() >= opening.end() else None


def _without_marks(text: str, opening: re.Match[str], closing: re.Match[str] | None) -> str:
    """The text between two tags, without the Markdown marks that stand directly around them."""
    start, end = opening.end(), closing.start() if closing else len(text)
    if _FENCE_BEFORE.search(text, max(0, opening.start() - _WINDOW), opening.start()):
        if after := _FENCE_AFTER.match(text, start):
            start = after.end()
            before = _FENCE_BEFORE.search(text, max(start, end - _WINDOW), end)
            if closing and before and _FENCE_AFTER.match(text, closing.end()):
                end = before.start()
        elif not closing and text.rstrip().endswith("```") and text.count("```", start) % 2:
            end = text.rfind("```")  # of the fence around it all
    marks = _marks_around(text, opening, since=0)
    start += len(marks)
    if closing:
        line = _MARKED_LINE.search(text, max(start, end - _WINDOW), end)
        end = line.start() if line else end - len(marks and _marks_around(text, closing, since=start))
    return text[start:end]


def _marks_around(text: str, tag: re.Match[str], *, since: int) -> str:
    """The marks before a tag that stand behind it as well, as in `**<tag>**`."""
    before = text[max(since, tag.start() - _MOST_MARKS) : tag.start()]
    marks = before[len(before.rstrip(_MARKS)) :]
    while not text.startswith(marks[::-1], tag.end()):
        marks = marks[1:]
    return marks
