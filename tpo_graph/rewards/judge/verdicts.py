"""The verdict in what a judge wrote: behind its thinking, and in the forms that models give it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from langchain_core.messages import AIMessage

from tpo_graph.errors import ConfigurationError
from tpo_graph.policies.thinking import strip_thinking
from tpo_graph.types import JSONObject

ReadVerdict: TypeAlias = Callable[[str], str | float | None]
"""From a judge's answer, without its thinking, to the verdict; None where there is none."""

_COMPARED = 10  # characters before the verdict; further back, a character of several tokens may not be one in them
_LEAST_MASS = 0.5  # below it, what the labels have of the probability says little about the response
# full-width characters and their ASCII ones, one for one
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_MARKS = r"[ \t*_#`\"'“”()\[\]{}<>$\\\u2013\u2014-]{0,20}"  # bounded: a text of nothing else must not take for ever
_STRIPPED = " \t\r\n*_#`\"'“”()[]{}<>$\\:="


class NoVerdictError(ValueError):
    """A judge's answer holds no verdict.

    Attributes:
        answer: what the judge wrote, without its thinking; "" where it wrote nothing else.
    """

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.answer = answer.strip()


class VerdictReader:
    """Finds the verdict in a judge's answer, and how likely it was.

    Args:
        labels: the verdicts that there are; none where every finite number is one.
        own: how to find it: a regular expression, whose first group or else whole match is the verdict, and whose last
            match counts; or a function. None finds what models write of their own accord, as in `7`, `**7**`, `[[7]]`,
            `Score: 7`, `7/10`, `{"verdict": "7"}` or a line that is a verdict, and no number out of running prose.

    Raises:
        ConfigurationError: `own` is no regular expression.
    """

    def __init__(self, labels: Sequence[str], own: str | ReadVerdict | None = None) -> None:
        self.labels = tuple(labels)
        self._function = own if callable(own) else None
        self._whole_lines: re.Pattern[str] | None = None
        if isinstance(own, str):
            try:
                self._stated = re.compile(own, re.MULTILINE)
            except re.error as error:
                raise ConfigurationError(f"The reader {own!r} is not a regular expression: {error}.") from error
        elif own is None:
            self._stated, self._whole_lines = _usual_patterns(self.labels)

    def certain(self, text: str) -> dict[str, float]:
        """Probabilities that are all on the verdict in a text.

        Raises:
            NoVerdictError: there is none.
        """
        return self._all_on(self._find(text)[0])

    def probabilities(self, message: AIMessage) -> dict[str, float] | None:
        """Probabilities of the labels, from the log probabilities of the verdict's token.

        Returns:
            Probabilities, which sum to 1; None where the message has no log probabilities.

        Raises:
            NoVerdictError: its text holds none, and labels have less than half of the probability of the first token.
        """
        logprobs = message.response_metadata.get("logprobs")
        tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if not tokens or not any(token.get("top_logprobs") for token in tokens):
            return None
        texts = [str(token.get("token", "")) for token in tokens]
        try:
            verdict, place = self._find(message.text)
        except NoVerdictError:
            # labels may have the most of the probability together, and another token more than each
            first = next((token for token, text in zip(tokens, texts, strict=True) if text.strip()), tokens[0])
            masses = _masses(first, self.labels)
            if sum(masses.values()) < _LEAST_MASS:
                raise
        else:
            # a server may leave the thinking out of the text and not of the tokens, so they are compared at their ends
            before = min(place, _COMPARED)
            start = "".join(texts).rfind(message.text[place - before :])
            place = start + before if start >= 0 else sum(map(len, texts))
            end = 0
            masses = {}
            for token, text in zip(tokens, texts, strict=True):
                end += len(text)
                if place < end:
                    masses = _masses(token, self.labels)
                    break
            if not masses.get(verdict):  # it is not one token
                return self._all_on(verdict)
        total = sum(masses.values())
        return {label: mass / total for label, mass in masses.items()}

    def _find(self, text: str) -> tuple[str, int]:
        """The verdict, and where in the text it begins (at its end where a function has read it).

        Raises:
            NoVerdictError: there is none.
        """
        text = text.translate(_ASCII)
        answer = strip_thinking(text).text
        if self._function:
            return self._label(self._function(answer), answer), len(text)
        matches = list(self._stated.finditer(answer))
        if not matches and self._whole_lines:
            matches = list(self._whole_lines.finditer(answer))
            if len({match[1] for match in matches}) > 1:
                raise NoVerdictError(answer)
        if not matches:
            raise NoVerdictError(answer)
        last = matches[-1]
        group = next((place for place, value in enumerate(last.groups(), 1) if value is not None), 0)
        return self._label(last[group], answer), text.rfind(answer) + last.start(group)

    def _label(self, value: object, answer: str) -> str:
        verdict = str(value).strip()
        value_read = number(verdict)
        if not self.labels and value_read is not None:
            return verdict
        for label in self.labels:
            if verdict == label or (value_read is not None and value_read == number(label)):
                return label
        raise NoVerdictError(answer)

    def _all_on(self, verdict: str) -> dict[str, float]:
        return {**dict.fromkeys(self.labels, 0.0), verdict: 1.0}


def number(text: str) -> float | None:
    """The finite number that a text is; None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _masses(token: JSONObject, labels: Sequence[str]) -> dict[str, float]:
    """Probabilities of labels at one token; " 7", "7" and "**7" are tokens of their own for the same label."""
    masses = dict.fromkeys(labels, 0.0)
    for alternative in token.get("top_logprobs") or ():
        label = str(alternative.get("token", "")).translate(_ASCII).strip(_STRIPPED)
        if label in masses and alternative.get("logprob") is not None:
            masses[label] += math.exp(alternative["logprob"])
    return masses


def _usual_patterns(labels: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What states a verdict anywhere in an answer, and a line that is one by itself; their first group has it."""
    either = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    # no part of a word, of a larger number or of a range
    is_numeric = all(label.isdecimal() for label in labels)
    zero = r"(?:\.0+)?" if is_numeric else ""
    label = rf"(?<![\w.,+-])((?-i:{either})){zero}(?!\w|[.,]\d|[ \t]*[\u2013-][ \t]*\d)"
    start = rf"(?:^|[.!?;,:]\s){_MARKS}(?:(?:so|thus|therefore|hence),? )?"
    end = rf"(?={_MARKS}(?:$|[.,;:!?(\u2013\u2014-]|</|because\b))"
    nouns = "verdict|score|grade|rating|judge?ment|winner|choice"
    if is_numeric:
        # many models think of ten where the scale ends at nine
        top = max(map(int, labels))
        verdict = rf"{label}(?:{_MARKS}(?:/|of|out of){_MARKS}(?:{top}|{top + 1})(?!\w|[.,]\d))?"
        object_ = "(?:it|this|(?:this|the) (?:response|answer))"
        more = rf"{start}I(?:'d| would)? (?:give|rate|grade) {object_}(?: an?)? {verdict}{end}"
    else:
        verdict = rf"(?:(?:response|assistant|option|answer) )?{label}"
        nouns += "|(?:better|best)(?: response| answer| one)?"
        more = rf"{start}{verdict} is (?:clearly |slightly |much )?(?:the )?(?:better|best)\b"
    modifiers = "(?:(?:my|the|final|overall|total) )*"
    colon, is_ = rf"{_MARKS}[:=\]>]{_MARKS}", rf"{_MARKS} is {_MARKS}"
    stated = (
        # an answer or a result that "is" something may be that of the question
        rf"{start}{modifiers}(?:(?:{nouns})(?:{colon}|{is_})|(?:answer|result){colon}){verdict}{end}",
        rf"[\"'](?:{nouns}|answer|result)[\"']\s*:\s*[\"']?{verdict}[\"']?\s*[,}}]",
        rf"\[\[[ \t]*{verdict}[ \t]*\]\]",
        rf"\\boxed\{{(?:\\text\{{)?{verdict}\}}",
        more,
    )
    line = rf"^{_MARKS}{verdict}{_MARKS}[.!]?{_MARKS}$"
    flags = re.IGNORECASE | re.MULTILINE
    return re.compile("|".join(stated), flags), re.compile(line, flags)
