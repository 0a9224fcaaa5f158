"""How many completions one request may ask for: found out as a provider refuses them or returns fewer."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpo_graph.policies.provider_errors import names_n, smaller_n

__all__ = ["Refusal", "RequestSize", "pieces"]


@dataclass(frozen=True)
class Refusal:
    """A request for several completions that the provider refused, maybe for their number.

    Attributes:
        asked: how many it asked for.
        smaller: how many to ask for next.
        is_sure: the error says that it is about their number.
    """

    asked: int
    smaller: int
    is_sure: bool

    @classmethod
    def of(cls, error: Exception, asked: int) -> "Refusal":
        """What a refused request for `asked` completions tells."""
        return cls(asked, smaller_n(error, asked), names_n(error, asked))


class RequestSize:
    """What one provider is known to take.

    Args:
        most: completions a request, at most; None when no limit is known.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._doubted = 0  # refused once without a word about the number, while fewer were taken

    def took(self, asked: int, came: int, after: Refusal | None) -> None:
        """Learn from a request that was answered.

        A limit is remembered when fewer came, when the refusal before was about the number, or when the same number
        was refused before: any other refusal may have been about this one text.

        Args:
            asked: completions that it asked for.
            came: those that came.
            after: the refusal that made it ask for fewer.
        """
        if came < asked or (after and (after.is_sure or after.asked == self._doubted)):
            self.most = min(self.most or came, came)
        elif after:
            self._doubted = after.asked
        elif asked >= self._doubted:
            self._doubted = 0


def pieces(places: Sequence[int], most: int | None) -> list[list[int]]:
    """Ascending `places` as requests: runs without a gap, of at most `most`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] + 1 == place and (most is None or len(runs[-1]) < most):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
