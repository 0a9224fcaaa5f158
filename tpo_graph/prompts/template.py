"""Prompt templates: `$name`, `${name}` or `{{name}}` from a fixed list, checked when they are read.

What is put in is never parsed again, so a response may hold `$query`, `{{best}}` or any brace.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tpo_graph.errors import PromptError

Syntax: TypeAlias = Literal["both", "dollar", "braces"]
"""Which marks are variables: `both`, or `dollar` or `braces` alone, the other then being plain text."""

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_DOLLAR = rf"(?P<escape>\$\$)|\$(?P<plain>{_NAME})|\$\{{(?P<fenced>{_NAME})\}}"
_BRACES = rf"\{{\{{\s*(?P<braces>{_NAME})\s*\}}\}}"
_MARKS: dict[Syntax, re.Pattern[str]] = {
    "both": re.compile(f"{_DOLLAR}|{_BRACES}"),
    "dollar": re.compile(_DOLLAR),
    "braces": re.compile(_BRACES),
}


@dataclass(frozen=True)
class Template:
    """A text with variables.

    Attributes:
        pieces: literal texts at even places, variable names at odd places.
    """

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, *, allowed: Collection[str], where: str, syntax: Syntax = "both") -> "Template":
        """Read a template.

        Args:
            text: the template; `$$` is a literal dollar where dollars are marks.
            allowed: the variables that may stand in it.
            where: names the template in errors, as in "loss.toml (user)".
            syntax: which marks are variables.

        Raises:
            PromptError: a variable that is not allowed; the message lists those that are.
        """
        pieces = [""]
        end = 0
        for mark in _MARKS[syntax].finditer(text):
            pieces[-1] += text[end : mark.start()]
            end = mark.end()
            name = mark.groupdict()
            variable = name.get("plain") or name.get("fenced") or name.get("braces")
            if variable is None:
                pieces[-1] += "$"
                continue
            if variable not in allowed:
                raise _unknown(mark.group(), variable, allowed, where)
            pieces += [variable, ""]
        pieces[-1] += text[end:]
        return cls(tuple(pieces))

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables that the text uses."""
        return frozenset(self.pieces[1::2])

    @property
    def literal(self) -> str:
        """The text without its variables."""
        return "".join(self.pieces[::2])

    def render(self, values: Mapping[str, str]) -> str:
        """The text with every variable replaced, once.

        Raises:
            PromptError: a variable has no value.
        """
        missing = self.variables - values.keys()
        if missing:
            raise PromptError(f"No value for the prompt variable {sorted(missing)[0]!r}.")
        return "".join(values[piece] if place % 2 else piece for place, piece in enumerate(self.pieces))


def _unknown(mark: str, variable: str, allowed: Collection[str], where: str) -> PromptError:
    close = difflib.get_close_matches(variable, allowed, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return PromptError(
        f"Unknown variable {mark!r} in {where}; allowed there: {', '.join(sorted(allowed))}.{guess}",
        hint='Write $$ for a literal dollar sign, or set syntax = "braces" or "dollar" in pack.toml.',
    )
