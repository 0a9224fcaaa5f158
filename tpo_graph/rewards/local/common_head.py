"""Token ids of texts that begin alike: what they have in common is tokenised once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CommonHead"]


class CommonHead:
    """The start of a text, up to an added token that many texts have there.

    A tokenizer of the `tokenizers` library cuts a text at its added tokens before it does anything else, and tokenises
    the pieces one by one. So the ids of a text are those of what comes before an added token and those of the rest,
    which begins with that token. Where there is no such place, texts are tokenised whole.

    Args:
        tokenizer: gives the ids; begin and end tokens of its own are left out.
        text: the first of the texts.
        before: the head ends before this place of it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, *, before: int) -> None:
        self._tokenizer = tokenizer
        self.ids: tuple[int, ...] = self._encoded(text)
        """Of the first text."""
        # one that takes white space before it, or is looked for in changed text, is no clean cut
        cuts = [
            token.content
            for token in (tokenizer.added_tokens_decoder.values() if tokenizer.is_fast else ())
            if not (token.lstrip or token.normalized or token.single_word)
        ]
        end, token = max(((text.rfind(token, 0, before), token) for token in cuts), default=(-1, ""))
        self._common = text[: end + len(token)] if end > 0 else ""
        self._length = max(end, 0)
        self._head = self._encoded(text[: self._length])
        if self._head + self._encoded(text[self._length :]) != self.ids:
            self._common, self._length, self._head = "", 0, ()

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text."""
        if not self._length or not text.startswith(self._common):
            return self._encoded(text)
        return self._head + self._encoded(text[self._length :])

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
