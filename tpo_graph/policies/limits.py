"""What one provider does not take: how it is found out as requests are refused, and when it is tried again."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage

from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.types import JSONObject

_Content: TypeAlias = str | list[str | JSONObject]
SYSTEM_ROLE: Final = "system role"
"""The part of a request that models without a system role refuse."""
_FIRST_PATIENCE = 100  # requests


class Refusal(NamedTuple):
    """A refused request for several completions, maybe refused for their number."""

    asked: int  # how many it asked for
    smaller: int  # how many to ask for next
    is_sure: bool  # the error is about their number


class ProviderLimits:
    """What was found out about one provider.

    A limit on the completions of a request is not believed for ever: after 100 requests more are asked for once, and
    if they are refused again, after 200 more, 400 more and so on.

    Args:
        takes_n: whether the client can ask for several completions at all.

    Attributes:
        most_completions: that a request may ask for; None while no limit is known.
        refused: parts of requests that the provider does not take: sampling knobs, names of the token limit, and
            `SYSTEM_ROLE`.
        warnings: those that were logged.
        thinking_tokens: what token limits need beside those of the answer.
    """

    def __init__(self, takes_n: bool) -> None:
        self._takes_n = takes_n
        self.most_completions: int | None = None if takes_n else 1
        self.refused: set[str] = set()
        self.warnings: set[str] = set()
        self.thinking_tokens = 0
        self._doubtful = 0  # lacking once, without a word about the number
        self._answered = 0  # requests since a larger number was last asked for
        self._patience = _FIRST_PATIENCE

    def most_to_ask_for(self, n: int) -> int | None:
        """How many of `n` completions the next request may ask for; None for all of them."""
        is_limited = self.most_completions is not None and n > self.most_completions
        if is_limited and self._takes_n and self._answered >= self._patience:
            self._answered = 0
            self._patience *= 2
            return None
        return self.most_completions

    def learn(self, asked: int, returned: int, refusal: Refusal | None) -> None:
        """Learn from a request that was answered.

        A limit is remembered when the refusal before was about the number, or when the same number was refused or not
        returned in full before: once, that may have been about this one text.

        Args:
            asked: completions that the request asked for.
            returned: those that the answer has.
            refusal: the refusal because of which it asked for fewer.
        """
        self._answered += 1
        if self.most_completions is not None and returned > self.most_completions:  # more than was thought
            self.most_completions, self._patience = None, _FIRST_PATIENCE
        lacking = refusal.asked if refusal else asked if returned < asked else None
        if lacking is not None and (lacking == self._doubtful or (refusal and refusal.is_sure)):
            self.most_completions = min(self.most_completions or returned, returned)
        elif lacking is not None:
            self._doubtful = lacking
        elif asked >= self._doubtful:
            self._doubtful = 0


def refused_part(
    failure: ProviderFailure,
    sent_without: AbstractSet[str],
    *,
    knobs: AbstractSet[str],
    limit_names: Sequence[str],
    messages: Sequence[BaseMessage],
) -> str | None:
    """The part of a request to leave out, or to send in another form, because the provider refused it.

    Args:
        failure: what came of the request.
        sent_without: parts that it was sent without.
        knobs: sampling knobs that may be left out.
        limit_names: the names that the token limit may have, the first of them first.
        messages: of the request, before any change.

    Returns:
        One for `ProviderLimits.refused`; None where the provider refused something else.
    """
    names = [name for name in limit_names if name not in sent_without]
    if failure.refuses_system_role and SYSTEM_ROLE not in sent_without and fold_system(messages) != list(messages):
        return SYSTEM_ROLE
    if len(names) > 1 and failure.refuses_field(names[0]):
        return names[0]
    return failure.refused_knob(knobs - sent_without)


def fold_system(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages for a model without a system role: system texts lead the message of the user that follows.

    Messages of the user become one where they follow one another, because such models want the roles to alternate.

    Args:
        messages: a conversation. What is left as it was is the same object.
    """
    folded: list[BaseMessage] = []
    for message in messages:
        is_system = message.type == "system" or getattr(message, "role", None) in ("system", "developer")
        user = HumanMessage(message.content) if is_system else message
        if folded and isinstance(user, HumanMessage) and isinstance(folded[-1], HumanMessage):
            folded[-1] = folded[-1].model_copy(update={"content": _joined(folded[-1].content, user.content)})
        else:
            folded.append(user)
    return folded


def _joined(first: _Content, second: _Content) -> _Content:
    """Two contents as one; blocks where one of them has some."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}".strip("\n")
    blocks: list[str | JSONObject] = []
    for content in (first, second):
        blocks += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return blocks
