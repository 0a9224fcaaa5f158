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

A reward model with a second one that watches, which must be the whole and not a part, has one table of each:

    combine = "watched"

    [parts.quality]
    reward = "hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B"

    [watch.other]
    reward = "judge:openai:gpt-4o-mini"
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.combinations import Combination, Gate, MeanMinusDeviation, Minimum, Part, Scale, WeightedSum
from tpo_graph.rewards.warnings import WatchedReward

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tpo_graph.rewards.base import RewardModel


# Reads a recipe file into records, and finds every mistake in it before a reward model is loaded.

COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "weighted_sum": (),
    "minimum": (),
    "mean_minus_deviation": ("penalty",),
    "gate": ("pass_at",),
    "watched": (),
}
"""What `combine` may be, and the numbers that each takes."""

_PART_KEYS = ("reward", "options", "weight", "scale")
_GROUPS: Mapping[str, tuple[str, ...]] = {"gate": ("checks", "parts"), "watched": ("parts", "watch")}
_ONE_ALONE: Mapping[tuple[str, str], str] = {
    ("gate", "parts"): "a gate has one part that orders what passes as many checks",
    ("watched", "parts"): "a reward that is watched has one part",
    ("watched", "watch"): "one reward watches",
}


@dataclass(frozen=True)
class Recipe:
    """A combination.

    Attributes:
        where: file and table, for messages.
        combine: one of `COMBINATIONS`.
        parts: its parts by name.
        checks: a gate's checks by name.
        watch: the one that watches, by name.
        numbers: what the combination takes beside its parts.
    """

    where: str
    combine: str
    parts: "dict[str, PartRecipe]"
    checks: "dict[str, PartRecipe]" = field(default_factory=dict)
    watch: "dict[str, PartRecipe]" = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PartRecipe:
    """A part: a reward model by name, or a combination.

    Attributes:
        where: file and table, for messages.
        content: the name, or the combination.
        options: options of the name's loader.
        settings: `weight` and `scale`, where they are given.
    """

    where: str
    content: str | Recipe
    options: dict[str, Any]  # Any: each loader has options of its own
    settings: dict[str, Any]


def read_recipe(path: Path, *, inside: tuple[Path, ...] = ()) -> Recipe:
    """Read a file, and those that it names.

    Args:
        path: the TOML file.
        inside: the files that led here.

    Raises:
        ConfigurationError: a file can't be read, is no TOML, or has a mistake; the message says where.
    """
    place = path.resolve()
    if place in inside:
        chain = " -> ".join(each.name for each in (*inside, place))
        raise ConfigurationError(f"The recipe {str(path)!r} contains itself: {chain}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The recipe {str(path)!r} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The recipe {str(path)!r} is not valid TOML: {error}.") from error
    return _Reader(path, (*inside, place)).recipe(table, "")


@dataclass(frozen=True)
class _Reader:
    """Reads the tables of one file.

    Attributes:
        path: the file; names of files in it are relative to its folder.
        inside: it and the files that led to it.
    """

    path: Path
    inside: tuple[Path, ...]

    def recipe(self, table: Mapping[str, Any], at: str) -> Recipe:
        where = self._where(at)
        combine = table.get("combine")
        if not isinstance(combine, str) or combine not in COMBINATIONS:
            told = "There is no `combine`" if combine is None else f"Unknown combine = {combine!r}"
            raise ConfigurationError(f"{where}: {told}; allowed: {', '.join(COMBINATIONS)}.")
        groups = _GROUPS.get(combine, ("parts",))
        self._only(table, ("combine", *groups, *COMBINATIONS[combine]), at)
        numbers = {name: self._number(table, name, at) for name in COMBINATIONS[combine] if name in table}
        takes = {"weighted_sum": _PART_KEYS, "gate": _PART_KEYS[:2], "watched": _PART_KEYS[:2]}.get(
            combine, ("reward", "options", "scale")
        )
        read = {group: self._parts(table.get(group), f"{at}{group}", takes) for group in groups}
        for group, parts in read.items():
            if (combine, group) in _ONE_ALONE and len(parts) != 1:
                raise ConfigurationError(
                    f"{where}: {_ONE_ALONE[combine, group]}; here are {len(parts)}.",
                    hint="A part may be a combination itself.",
                )
        return Recipe(where, combine, numbers=numbers, **read)

    def _parts(self, tables: Any, at: str, takes: tuple[str, ...]) -> dict[str, PartRecipe]:  # Any: raw TOML
        if not isinstance(tables, dict) or not tables:
            raise ConfigurationError(f"{self._where(at)}: at least one table [{at}.NAME] is needed.")
        return {name: self._part(table, f"{at}.{name}", takes) for name, table in tables.items()}

    def _part(self, table: Any, at: str, takes: tuple[str, ...]) -> PartRecipe:  # Any: raw TOML
        where = self._where(at)
        if not isinstance(table, dict):
            raise ConfigurationError(f"{where}: {table!r} is no table; write [{at}] with a reward in it.")
        settings = self._settings(table, at, takes)
        if "combine" in table:
            if "reward" in table or "options" in table:
                raise ConfigurationError(f"{where}: a part has either a reward or a combination, not both.")
            nested = {name: value for name, value in table.items() if name not in settings}
            return PartRecipe(where, self.recipe(nested, f"{at}."), {}, settings)
        self._only(table, takes, at)
        name, options = table.get("reward"), table.get("options", {})
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"{where}: reward = {name!r}; it must name a reward model.")
        if not isinstance(options, dict):
            raise ConfigurationError(f"{where}: options = {options!r}; it must be a table.")
        if name.endswith(".toml"):
            if options:
                raise ConfigurationError(f"{where}: a recipe takes no options, but {', '.join(options)} was given.")
            return PartRecipe(where, read_recipe(self.path.parent / name, inside=self.inside), {}, settings)
        return PartRecipe(where, beside(name, self.path.parent), options, settings)

    def _settings(self, table: Mapping[str, Any], at: str, takes: tuple[str, ...]) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if "weight" in table and "weight" in takes:
            settings["weight"] = self._number(table, "weight", at)
        if "scale" in table and "scale" in takes:
            scale = table["scale"]
            if isinstance(scale, dict):
                self._only(scale, Scale._fields, f"{at}.scale")
                scale = Scale(*(self._number(scale, name, f"{at}.scale") for name in Scale._fields))
            settings["scale"] = scale
        return settings

    def _number(self, table: Mapping[str, Any], name: str, at: str) -> float:
        value = table.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(f"{self._where(at)}: {name} = {value!r}; it must be a number.")
        return float(value)

    def _only(self, table: Mapping[str, Any], allowed: tuple[str, ...], at: str) -> None:
        for name in table:
            if name not in allowed:
                raise ConfigurationError(f"{self._where(at)}: unknown key {name!r}; allowed: {', '.join(allowed)}.")

    def _where(self, at: str) -> str:
        table = at.rstrip(".")
        return f"{self.path.name} [{table}]" if table else self.path.name


def beside(name: str, folder: Path) -> str:
    """The name with its file, if it names one, looked up from `folder`.

    Example:
        >>> beside("json_schema:answer.json", Path("recipes"))
        'json_schema:recipes/answer.json'
    """
    scheme, colon, rest = name.partition(":")
    names_a_file = (
        scheme == "json_schema"
        or (scheme == "hf" and rest.startswith(("./", "../")))
        or (scheme == "python" and rest.rpartition(":")[0].endswith(".py"))
    )
    return f"{scheme}{colon}{(folder / rest).as_posix()}" if names_a_file and rest else name


T = TypeVar("T")
Load: TypeAlias = "Callable[..., RewardModel]"

_KINDS: dict[str, Callable[..., Combination]] = {
    "weighted_sum": WeightedSum,
    "minimum": Minimum,
    "mean_minus_deviation": MeanMinusDeviation,
}


def load_recipe(path: str | Path, *, load: "Load") -> "RewardModel":
    """The combination that a file describes. The whole file is checked before a part is loaded.

    Args:
        path: the TOML file. Files that it names are looked up from its folder.
        load: loads a part by name and options, as `load_reward` does.

    Raises:
        ConfigurationError: the file has a mistake, or a part can't be named so; the message says where.
        RewardError: a part can't be loaded.
    """
    recipe = read_recipe(Path(path))
    # once with nothing loaded: what the combinations themselves refuse shows before the first model is here
    _combination(recipe, lambda _, **__: _Unloaded())
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
    if recipe.combine == "watched":
        (reward,), (second,) = recipe.parts.values(), recipe.watch.values()
        return _made(recipe.where, lambda: WatchedReward(_content(reward, load), _content(second, load)))
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
