"""How a vLLM server is told to return the model's own number, and not a sigmoid or softmax of it.

vLLM applies an activation to classifier outputs unless a request says otherwise. The request's field was `activation`
first and is `use_activation` since; a server takes no notice of a field that it does not know. Sending both does not
do: versions that know both read `activation: false` as true. So the field that works is found out, once.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from tpo_graph.errors import ConfigurationError, RewardError

__all__ = ["ActivationField", "RawScores"]

ActivationField: TypeAlias = Literal["use_activation", "activation"]

Ask: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[list[float]]]  # Any: JSON
"""Sends a body and returns the scores of the answer."""

_NOISE = 0.01  # half precision gives one text slightly different scores from one batch to the next


class RawScores:
    """Asks for scores without an activation, and checks that the server does as asked.

    A score outside of [0, 1] is proof, so the check costs nothing with nearly every reward model. Only when all first
    scores lie inside is a second request made, without the field: from it can be told whether the field was heeded.

    Args:
        field: the field to send; None finds it out.

    Raises:
        ConfigurationError: there is no such field, and a server would take no notice of it.
    """

    def __init__(self, field: ActivationField | None = None) -> None:
        if field is not None and field not in get_args(ActivationField):
            allowed = ", ".join(get_args(ActivationField))
            raise ConfigurationError(f"Unknown activation_field {field!r}; allowed: {allowed}.")
        self.field = field

    async def __call__(self, ask: Ask, body: Mapping[str, Any]) -> list[float]:  # Any: JSON
        """Ask with the field that works.

        Raises:
            RewardError: the server heeds neither field.
        """
        if self.field is not None:
            return await ask({**body, self.field: False})
        scores = await ask({**body, "use_activation": False})
        finite = [score for score in scores if math.isfinite(score)]
        if not finite:
            return scores
        if any(not 0 <= score <= 1 for score in finite):
            self.field = "use_activation"
            return scores
        default = await ask(body)
        if _heeded(scores, default):
            self.field = "use_activation"
            return scores
        older = await ask({**body, "activation": False})
        if _heeded(older, default):
            self.field = "activation"
            return older
        raise RewardError(
            f"The vLLM server returns {finite[0]:.4g}, with and without an activation: it can't be told to leave a "
            "sigmoid or softmax out, or it uses none and all rewards lie between 0 and 1.",
            hint="If the server uses none (started so with --pooler-config) and the model's rewards are in that range, "
            "pass activation_field='use_activation'. Else take a newer vLLM.",
        )


def _heeded(scores: Sequence[float], default: Sequence[float]) -> bool:
    """Whether `scores`, asked for without an activation, differ from what the server returns by default."""
    pairs = [(s, d) for s, d in zip(scores, default, strict=True) if math.isfinite(s) and math.isfinite(d)]
    if any(not 0 <= score <= 1 for score, _ in pairs):
        return True
    return sum(abs(score - usual) for score, usual in pairs) > _NOISE * len(pairs)
