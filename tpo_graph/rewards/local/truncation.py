"""The truncation policy: which tokens a text that is too long for the model loses."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tpo_graph.errors import RewardError

__all__ = ["TRUNCATIONS", "Cut", "TooLongError", "Truncation", "plan_cut"]

Truncation: TypeAlias = Literal["error", "truncate_prompt", "truncate_response"]

TRUNCATIONS: tuple[Truncation, ...] = ("error", "truncate_prompt", "truncate_response")


class TooLongError(RewardError):
    """One text does not fit into the model; others of the same conversation may."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens to drop from a text.

    Attributes:
        prompt: from the start of the conversation, after the tokenizer's own first tokens.
        response: from the end of the response, before what closes its turn.
    """

    prompt: int = 0
    response: int = 0


def plan_cut(*, length: int, limit: int | None, leading: int, prompt: int, tail: int, truncation: Truncation) -> Cut:
    """Decide what a text loses.

    `truncate_prompt` drops the oldest tokens of the conversation, `truncate_response` the last tokens of the response.
    What one of them can't give comes from the other: a response that fills the model alone keeps its start.

    Args:
        length: tokens of the text.
        limit: tokens that the model takes; None for no limit.
        leading: tokens at the start that always stay (begin of text, [CLS]).
        prompt: tokens before the response, `leading` included.
        tail: tokens after the response, which always stay (they close the turn, and a decoder is read there).
        truncation: the policy.

    Raises:
        TooLongError: for a text over the limit when the policy is `error`, or when nothing of it would be left.
    """
    if limit is None or length <= limit:
        return Cut()
    excess = length - limit
    if truncation == "error":
        raise TooLongError(
            f"A text of {length} tokens is longer than the {limit} tokens that the reward model takes.",
            hint="Allow truncation='truncate_prompt' or 'truncate_response', or ask the policy for shorter responses.",
        )
    from_prompt = max(prompt - leading, 0)
    from_response = max(length - prompt - tail, 0)
    if excess > from_prompt + from_response:
        raise TooLongError(
            f"The reward model takes {limit} tokens, and {length - from_prompt - from_response} of a text's tokens "
            "are the chat template's own: nothing of the text would be left.",
            hint="Raise max_length.",
        )
    if truncation == "truncate_prompt":
        cut = min(excess, from_prompt)
        return Cut(prompt=cut, response=excess - cut)
    cut = min(excess, from_response)
    return Cut(prompt=excess - cut, response=cut)
