"""Text of models and servers, made safe for a terminal: no control character of theirs reaches it."""

import re

__all__ = ["clean", "one_line", "plural"]

# all control characters but tab and newline, and halves of surrogate pairs, which no encoding can write
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    r"""`text` with every control character shown as a sign; tabs and newlines stay.

    Example:
        >>> clean("a\x1b[31mb")
        'a␛[31mb'
    """
    return _UNSAFE.sub(_sign, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 400) -> str:
    r"""`text` on one line of at most `limit` characters.

    Example:
        >>> one_line("one\n two three", limit=9)
        'one two …'
    """
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def plural(count: int, word: str) -> str:
    """A count and its noun.

    Example:
        >>> plural(1, "request"), plural(2, "request")
        ('1 request', '2 requests')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    return "\u2421" if code == 0x7F else "\ufffd"
