"""Combinations of reward models from a small TOML file.

    combine = "weighted_sum"          # or gate, minimum, mean_minus_deviation

    [parts.quality]
    reward = "hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B"
    options = { device = "cpu" }      # what load_reward takes for it

    [parts.brevity]
    reward = "length:50-150"
    weight = 0.3
    scale = "raw"

A gate has `[checks.NAME]` tables beside the one part that orders the rest. A part may be a combination itself: instead
of `reward` it then has `combine` and parts of its own, or its `reward` is another TOML file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.combinations import Combination, Gate, MeanMinusDeviation, Minimum, Part, WeightedSum
from tpo_graph.rewards.recipes.format import PartRecipe, Recipe, read_recipe

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel

__all__ = ["load_recipe"]

T = TypeVar("T")
Load: TypeAlias = "Callable[..., RewardModel]"

_KINDS: dict[str, Callable[..., Combination]] = {
    "weighted_sum": WeightedSum,
    "minimum": Minimum,
    "mean_minus_deviation": MeanMinusDeviation,
}


def load_recipe(path: str | Path, *, load: "Load | None" = None) -> "RewardModel":
    """The combination that a file describes. The whole file is checked before a part is loaded.

    Args:
        path: the TOML file. Files that it names are looked up from its folder.
        load: loads a part by name and options; None takes `load_reward`.

    Raises:
        ConfigurationError: the file has a mistake, or a part can't be named so; the message says where.
        RewardError: a part can't be loaded.
    """
    recipe = read_recipe(Path(path))
    # once with nothing loaded: what the combinations themselves refuse shows before the first model is here
    _combination(recipe, lambda _, **__: _Unloaded())
    if load is None:
        from tpo_graph.rewards.load import load_reward

        load = load_reward
    return _combination(recipe, load)


class _Unloaded:
    """Stands for a part while the recipe is checked."""

    async def score(self, messages: "Sequence[BaseMessage]", responses: Sequence[str]) -> list[float]:
        """Never called."""
        raise NotImplementedError(f"{len(messages)} messages, {len(responses)} responses: nothing is loaded yet")


def _combination(recipe: Recipe, load: Load) -> "RewardModel":
    if recipe.combine == "gate":
        checks = {name: _content(check, load) for name, check in recipe.checks.items()}
        (score,) = recipe.parts.values()
        return _made(recipe.where, lambda: Gate(checks, _content(score, load), **recipe.numbers))
    parts = {name: _part(part, load) for name, part in recipe.parts.items()}
    return _made(recipe.where, lambda: _KINDS[recipe.combine](parts, **recipe.numbers))


def _part(part: PartRecipe, load: Load) -> Part:
    return _made(part.where, lambda: Part(_content(part, load), **part.settings))


def _content(part: PartRecipe, load: Load) -> "RewardModel":
    if isinstance(part.content, Recipe):
        return _combination(part.content, load)
    name = part.content
    return _made(part.where, lambda: load(name, **part.options))


def _made(where: str, make: Callable[[], T]) -> T:
    """What `make` returns, with the place in the file put before its errors."""
    try:
        return make()
    except (ConfigurationError, RewardError) as error:
        if error.message.startswith(where.partition(" ")[0]):
            raise
        raise type(error)(f"{where}: {error.message}", hint=error.hint) from error
