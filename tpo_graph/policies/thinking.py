"""Reasoning that a model writes into its text, in front of the answer: `<think>...</think>` and other models' marks."""

import re
from typing import NamedTuple

from tpo_graph.prompts.revision_tags import without_blank_edges


class StrippedText(NamedTuple):
    """A text without the reasoning in front of it.

    Attributes:
        text: the answer, "" where the reasoning has no end; a text without reasoning is as it was.
        thinking: the reasoning with its marks, "" where there is none.
    """

    text: str
    thinking: str


class _Marks(NamedTuple):
    opening: re.Pattern[str]
    closing: re.Pattern[str]
    needs_both: bool = False  # an answer may begin with the opening words
    may_be_bare: bool = True  # a template may end with the opening mark, so that the text has the closing one alone


def _marks(opening: str, closing: str, *, needs_both: bool = False, may_be_bare: bool = True) -> _Marks:
    return _Marks(re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE), needs_both, may_be_bare)


_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
_MARKS = (
    *(_marks(f"<{tag}>", f"</{tag}>") for tag in _TAGS),
    _marks(r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    _marks("◁think▷", "◁/think▷"),  # Kimi
    _marks(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1
    _marks(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    _marks(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    _marks(r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    _marks("<unused94>thought", "<unused95>"),  # MedGemma
    # gpt-oss with its special tokens, and where a server has left them out
    _marks(
        r"(<\|start\|>assistant)?<\|channel\|>(analysis|commentary)",
        r"<\|channel\|>final\b[^<]*(<\|constrain\|>[^<]*)?<\|message\|>",
    ),
    _marks("analysis", "assistantfinal", needs_both=True, may_be_bare=False),
    _marks("Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]", needs_both=True),  # Apriel
    _marks(  # Granite
        "Here(?: is|'s) my thought process:", "Here(?: is|'s) my response:", needs_both=True, may_be_bare=False
    ),
)
_BLANK = re.compile(r"\s*")
_CODE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_QUOTES = "`\"'“”«»"
_BEFORE_ANSWER = re.compile(r"\s*<\|(?:begin_of_solution|START_RESPONSE|START_TEXT)\|>")
_AFTER_ANSWER = re.compile(
    r"\s*(?:<\|(?:end_of_solution|END_RESPONSE|END_TEXT|return|end)\|>|\[END FINAL RESPONSE\])(?:<\|end\|>)?\s*$"
)


def strip_thinking(text: str, *, may_be_bare: bool = True) -> StrippedText:
    """The text without the reasoning at its beginning.

    Reasoning is what stands between a model's marks, also several blocks in a row; all that stands before a closing
    mark alone; and all that follows an opening mark without an end. What an answer says about such marks, in code, in
    quotes, or as a pair in its middle, belongs to the answer.

    Args:
        text: what the model wrote.
        may_be_bare: whether a closing mark alone counts; not in a part of what the model wrote.
    """
    start = 0
    while (end := _end_of_thinking(text, start, may_be_bare=may_be_bare)) is not None:
        start = end
    if not start:
        return StrippedText(text, "")
    shell = _BEFORE_ANSWER.match(text, start)
    answer = _AFTER_ANSWER.sub("", text[shell.end() if shell else start :])
    return StrippedText(without_blank_edges(answer), text[:start].strip())


def _end_of_thinking(text: str, start: int, *, may_be_bare: bool) -> int | None:
    """Where the reasoning at `start` ends, behind its closing mark; None where there is none."""
    blank = _BLANK.match(text, start)
    begin = blank.end() if blank else start
    for marks in _MARKS:
        if opening := marks.opening.match(text, begin):
            ends = (mark.end() for mark in marks.closing.finditer(text, opening.end()) if not _is_quoted(text, mark))
            return next(ends, None if marks.needs_both else len(text))
    bare = [
        end
        for marks in _MARKS
        if may_be_bare and marks.may_be_bare and (end := _end_at_bare_mark(text, start, marks)) is not None
    ]
    return min(bare, default=None)


def _end_at_bare_mark(text: str, start: int, marks: _Marks) -> int | None:
    """Where a closing mark ends that no opening one belongs to."""
    code: list[tuple[int, int]] | None = None
    rest = start  # behind the last pair
    for mark in marks.closing.finditer(text, start):
        code = [found.span() for found in _CODE.finditer(text, start)] if code is None else code
        if _is_quoted(text, mark) or any(first <= mark.start() < last for first, last in code):
            continue
        # behind a block, an answer that speaks of marks is more likely than a block inside a block
        if start and any(_beside(text, mark)):
            continue
        opening = marks.opening.search(text, rest, mark.start())
        # a sentence of the reasoning may name the opening mark
        if opening is None or (_is_in_sentence(text, opening) and not all(_beside(text, mark))):
            return mark.end()
        rest = mark.end()
    return None


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    before, after = text[max(0, mark.start() - 1) : mark.start()], text[mark.end() : mark.end() + 1]
    return bool(before and after) and before in _QUOTES and after in _QUOTES


def _is_in_sentence(text: str, mark: re.Match[str]) -> bool:
    after = text[mark.end() : mark.end() + 1]
    return all(_beside(text, mark)) and (after.isspace() or after in ".,;:!?)")


def _beside(text: str, mark: re.Match[str]) -> tuple[str, str]:
    """What else stands on the mark's line, before it and after it."""
    first, last = text.rfind("\n", 0, mark.start()) + 1, text.find("\n", mark.end())
    return text[first : mark.start()].strip(), text[mark.end() : None if last < 0 else last].strip()
