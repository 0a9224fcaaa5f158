"""Judges by name: what follows the scheme is the name of a chat model, as `load_policy` takes it."""

from typing import TYPE_CHECKING, Any

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.judge.pairwise import PairwiseJudgeReward
from tpo_graph.rewards.judge.pointwise import JudgeReward

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["load_judge", "load_pairwise_judge"]

_JUDGE = ("preference", "prompt", "samples", "max_concurrency")


def load_judge(name: str, **options: Any) -> JudgeReward:  # Any: each option is checked by what takes it
    """A judge that grades each response.

    Args:
        name: a chat model, as in "openai:gpt-4o-mini" or "vllm:http://127.0.0.1:8000/v1#model".
        **options: `preference`, `prompt`, `samples`, `max_concurrency`; others go to the chat model.

    Raises:
        ConfigurationError: a name or an option that can't be used.
        PolicyError: the chat model's server does not answer.
    """
    model, mine = _model("judge", name, options)
    return JudgeReward(model, **mine)


def load_pairwise_judge(name: str, **options: Any) -> PairwiseJudgeReward:  # Any: as above
    """A judge that compares responses in pairs: `load_judge`'s arguments."""
    model, mine = _model("pairwise-judge", name, options)
    return PairwiseJudgeReward(model, **mine)


def _model(
    scheme: str,
    name: str,
    options: dict[str, Any],  # Any: as above
) -> "tuple[BaseChatModel, dict[str, Any]]":
    from tpo_graph.policies.load import load_policy

    if not name:
        raise ConfigurationError(f"'{scheme}:' names no chat model.", hint=f"For example {scheme}:openai:gpt-4o-mini.")
    mine = {key: options.pop(key) for key in _JUDGE if key in options}
    return load_policy(name, **options), mine
