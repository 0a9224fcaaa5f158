"""Reads a recipe file into records, and finds every mistake in it before a reward model is loaded."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.combinations import Scale

__all__ = ["COMBINATIONS", "PartRecipe", "Recipe", "read_recipe"]

COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "weighted_sum": (),
    "minimum": (),
    "mean_minus_deviation": ("penalty",),
    "gate": ("pass_at",),
}
"""What `combine` may be, and the numbers that each takes."""

_PART_KEYS = ("reward", "options", "weight", "scale")


@dataclass(frozen=True)
class Recipe:
    """A combination.

    Attributes:
        where: file and table, for messages.
        combine: one of `COMBINATIONS`.
        parts: its parts by name.
        checks: a gate's checks by name.
        numbers: what the combination takes beside its parts.
    """

    where: str
    combine: str
    parts: "dict[str, PartRecipe]"
    checks: "dict[str, PartRecipe]" = field(default_factory=dict)
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
        groups = ("checks", "parts") if combine == "gate" else ("parts",)
        self._only(table, ("combine", *groups, *COMBINATIONS[combine]), at)
        numbers = {name: self._number(table, name, at) for name in COMBINATIONS[combine] if name in table}
        takes = {"weighted_sum": _PART_KEYS, "gate": _PART_KEYS[:2]}.get(combine, ("reward", "options", "scale"))
        read = {group: self._parts(table.get(group), f"{at}{group}", takes) for group in groups}
        if combine == "gate" and len(read["parts"]) != 1:
            raise ConfigurationError(
                f"{where}: a gate has one part that orders what passes as many checks; here are {len(read['parts'])}.",
                hint="A part may be a combination itself.",
            )
        return Recipe(where, combine, read["parts"], read.get("checks", {}), numbers)

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
