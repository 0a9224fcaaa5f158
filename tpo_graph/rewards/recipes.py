"""Combinations of reward models from a TOML file.

    combine = "weighted_sum"          # or gate, minimum, mean_minus_deviation, watched

    [parts.quality]
    reward = "hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B"
    options = { device = "cpu" }      # what load_reward takes for it

    [parts.brevity]
    reward = "length:50-150"
    weight = 0.3
    scale = "raw"

A gate has `[checks.NAME]` tables beside the one part that orders the rest, and a reward that is watched has one
`[watch.NAME]` table beside its part. A part may be a combination itself: instead of `reward` it then has `combine` and
parts of its own, or its `reward` is another TOML file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.combinations import Gate, MeanMinusDeviation, Minimum, Part, Scale, WeightedSum
from tpo_graph.rewards.warnings import WatchedReward
from tpo_graph.settings import read_toml
from tpo_graph.types import JSON, JSONObject

Load: TypeAlias = Callable[..., RewardModel]
"""Loads a reward model by name and options, as `load_reward` does."""


@dataclass(frozen=True)
class _Kind:
    """What a recipe of one kind holds.

    Attributes:
        make: makes the reward model of the groups, in their order, and the numbers.
        groups: the tables of parts; `parts` where several may stand.
        numbers: the keys with numbers.
        part_keys: what a part may have beside `reward` and `options`.
    """

    make: Callable[..., RewardModel]
    groups: tuple[str, ...] = ("parts",)
    numbers: tuple[str, ...] = ()
    part_keys: tuple[str, ...] = ("scale",)


def _gate(checks: Mapping[str, RewardModel], parts: Mapping[str, RewardModel], **numbers: float) -> RewardModel:
    return Gate(checks, _only_one(parts, "a gate has one part that orders what passes as many checks"), **numbers)


def _watched(parts: Mapping[str, RewardModel], watch: Mapping[str, RewardModel]) -> RewardModel:
    return WatchedReward(
        _only_one(parts, "a reward that is watched has one part"), _only_one(watch, "one reward watches")
    )


def _only_one(models: Mapping[str, RewardModel], rule: str) -> RewardModel:
    if len(models) != 1:
        raise ConfigurationError(f"{rule}; here are {len(models)}.", hint="A part may be a combination itself.")
    return next(iter(models.values()))


_KINDS: Mapping[str, _Kind] = {
    "weighted_sum": _Kind(WeightedSum, part_keys=("weight", "scale")),
    "minimum": _Kind(Minimum),
    "mean_minus_deviation": _Kind(MeanMinusDeviation, numbers=("penalty",)),
    "gate": _Kind(_gate, groups=("checks", "parts"), numbers=("pass_at",), part_keys=()),
    "watched": _Kind(_watched, groups=("parts", "watch"), part_keys=()),
}


def load_recipe(path: str | Path, *, load: Load) -> RewardModel:
    """The combination that a file describes. The whole file is checked before a part is loaded.

    Args:
        path: the TOML file. Files that it names are looked up from its folder.
        load: loads a part by name and options, as `load_reward` does.

    Raises:
        ConfigurationError: the file has a mistake, or names a part that there is not; the message says where.
        RewardError: a part can't be loaded.
    """
    # once with nothing loaded, so that every mistake shows before the first model is here
    _File(Path(path), lambda *_, **__: _Unloaded()).reward()
    return _File(Path(path), load).reward()


class _Unloaded:
    """Stands for a part while the recipe is checked."""

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        raise NotImplementedError(f"{len(messages)} messages, {len(responses)} responses: nothing is loaded yet")


@dataclass(frozen=True)
class _File:
    """One recipe file.

    Attributes:
        path: the file; names of files in it are relative to its folder.
        load: loads a part.
        inside: the files that led to it.
    """

    path: Path
    load: Load
    inside: tuple[Path, ...] = ()

    def reward(self) -> RewardModel:
        """The reward model that the file describes."""
        files = (*self.inside, self.path.resolve())
        if files[-1] in self.inside:
            chain = " -> ".join(file.name for file in files)
            raise ConfigurationError(f"The recipe {str(self.path)!r} contains itself: {chain}.")
        return self._combination(read_toml(self.path, title="The recipe"), "")

    def _combination(self, table: JSONObject, at: str) -> RewardModel:
        with self._placed(at):
            combine = table.get("combine")
            kind = _KINDS.get(combine) if isinstance(combine, str) else None
            if kind is None:
                problem = "There is no `combine`" if combine is None else f"Unknown combine = {combine!r}"
                raise ConfigurationError(f"{problem}; allowed: {', '.join(_KINDS)}.")
            _refuse_other_keys(table, ("combine", *kind.groups, *kind.numbers))
            numbers = {name: _number(table, name) for name in kind.numbers if name in table}
            groups = [self._group(table.get(name), f"{at}.{name}".lstrip("."), kind) for name in kind.groups]
            return kind.make(*groups, **numbers)

    def _group(self, tables: JSON, at: str, kind: _Kind) -> dict[str, RewardModel | Part]:
        with self._placed(at):
            if not isinstance(tables, dict) or not tables:
                raise ConfigurationError(f"at least one table [{at}.NAME] is needed.")
        return {name: self._part(table, f"{at}.{name}", kind) for name, table in tables.items()}

    def _part(self, table: JSON, at: str, kind: _Kind) -> RewardModel | Part:
        with self._placed(at):
            if not isinstance(table, dict):
                raise ConfigurationError(f"{table!r} is not a table; write [{at}] with a reward in it.")
            settings = {name: table[name] for name in kind.part_keys if name in table}
            if "weight" in settings:
                settings["weight"] = _number(table, "weight")
            if isinstance(scale := settings.get("scale"), dict):
                with self._placed(f"{at}.scale"):
                    _refuse_other_keys(scale, Scale._fields)
                    settings["scale"] = Scale(*(_number(scale, name) for name in Scale._fields))
            if "combine" in table:
                if "reward" in table or "options" in table:
                    raise ConfigurationError("a part has either a reward or a combination, not both.")
                model = self._combination({name: table[name] for name in table if name not in settings}, at)
            else:
                _refuse_other_keys(table, ("reward", "options", *kind.part_keys))
                model = self._model(table.get("reward"), table.get("options", {}))
            return Part(model, **settings) if kind.part_keys else model

    def _model(self, name: JSON, options: JSON) -> RewardModel:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"reward = {name!r}; it must name a reward model.")
        if not isinstance(options, dict):
            raise ConfigurationError(f"options = {options!r}; it must be a table.")
        if name.endswith(".toml"):
            if options:
                raise ConfigurationError(f"a recipe takes no options, and here are: {', '.join(options)}.")
            return _File(self.path.parent / name, self.load, (*self.inside, self.path.resolve())).reward()
        if name.startswith(("judge:", "pairwise-judge:")) and isinstance(prompt := options.get("prompt"), str):
            options = {**options, "prompt": (self.path.parent / prompt).as_posix()}
        return self.load(_beside(name, self.path.parent), **options)

    @contextmanager
    def _placed(self, at: str) -> Iterator[None]:
        """Put file and table before the errors of a block, unless they have a place already."""
        try:
            yield
        except (ConfigurationError, RewardError) as error:
            if error.message.startswith(self.path.name):
                raise
            where = f"{self.path.name} [{at}]" if at else self.path.name
            raise type(error)(f"{where}: {error.message}", hint=error.hint) from error


def _number(table: JSONObject, name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} = {value!r}; it must be a number.")
    return float(value)


def _refuse_other_keys(table: JSONObject, allowed: tuple[str, ...]) -> None:
    for name in table:
        if name not in allowed:
            raise ConfigurationError(f"unknown key {name!r}; allowed: {', '.join(allowed)}.")


def _beside(name: str, folder: Path) -> str:
    """The name with its file, if it names one, looked up from the folder: `json_schema:recipes/answer.json`."""
    scheme, colon, rest = name.partition(":")
    names_a_file = (
        scheme == "json_schema"
        or (scheme == "hf" and rest.startswith(("./", "../")))
        or (scheme == "python" and rest.rpartition(":")[0].endswith(".py"))
    )
    return f"{scheme}{colon}{(folder / rest).as_posix()}" if names_a_file and rest else name
