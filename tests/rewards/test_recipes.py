"""Recipes: what a TOML file may say, and where its mistakes are reported."""

import pytest
from langchain_core.messages import HumanMessage

from tpo_graph import ConfigurationError, RewardError
from tpo_graph.rewards import WatchedReward
from tpo_graph.rewards.load import load_reward
from tpo_graph.rewards.recipes import load_recipe
from tpo_graph.testing import TableReward

QUERY = [HumanMessage("Why?")]


class Loader:
    """Stands for `load_reward`: tables by name, and what was asked for."""

    def __init__(self, **tables):
        self.tables = tables
        self.requests = []

    def __call__(self, name, **options):
        self.requests.append((name, options))
        if name not in self.tables:
            raise ConfigurationError(f"Unknown reward model {name!r}.", hint="Name another.")
        return TableReward(self.tables[name])


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="recipe.toml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


LOADS = {"kind": {"a": 4.0, "b": 2.0}, "brief": {"a": 0.0, "b": 1.0}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            """
            combine = "weighted_sum"
            [parts.kind]
            reward = "kind"
            scale = "raw"
            options = { device = "cpu" }
            [parts.brief]
            reward = "brief"
            weight = 3
            scale = { mean = 0.5, deviation = 0.5 }
            """,
            [1.0, 5.0],
        ),
        (
            """
            combine = "minimum"
            parts.kind.reward = "kind"
            parts.brief.reward = "brief"
            """,
            [-1.0, -1.0],
        ),
        (
            """
            combine = "mean_minus_deviation"
            penalty = 0
            parts.kind.reward = "kind"
            parts.brief.reward = "brief"
            """,
            [0.0, 0.0],
        ),
        (
            """
            combine = "gate"
            pass_at = 0.9
            checks.brief.reward = "brief"
            parts.kind.reward = "kind"
            """,
            [0.9, 1 + 5 / 6],
        ),
        (
            """
            combine = "gate"
            checks.brief.reward = "brief"
            [parts.quality]
            combine = "weighted_sum"
            parts.kind = { reward = "kind", weight = 2, scale = "raw" }
            """,
            [0.5 + 4 / 9, 1.9],
        ),
    ],
)
async def test_recipes(recipe, text, expected):
    reward = load_recipe(recipe(text), load=Loader(**LOADS))
    assert await reward.score(QUERY, ["a", "b"]) == pytest.approx(expected)


def test_options_reach_the_loader(recipe):
    loader = Loader(**LOADS)
    load_recipe(recipe('combine = "minimum"\n[parts.x]\nreward = "kind"\noptions = { seconds = 3 }'), load=loader)
    assert loader.requests == [("kind", {"seconds": 3})]


async def test_a_recipe_in_a_recipe_and_files_beside_it(recipe, tmp_path):
    recipe('combine = "minimum"\nparts.x.reward = "json_schema:answer.json"', "inner/inner.toml")
    outer = recipe(
        """
        combine = "weighted_sum"
        parts.one = { reward = "inner/inner.toml", weight = 2, scale = "raw" }
        parts.two.reward = "python:mine.py:f"
        parts.three.reward = "hf:./model"
        parts.four.reward = "hf:owner/model"
        """
    )
    names = [
        f"json_schema:{(tmp_path / 'inner' / 'answer.json').as_posix()}",
        f"python:{(tmp_path / 'mine.py').as_posix()}:f",
        f"hf:{(tmp_path / 'model').as_posix()}",
        "hf:owner/model",
    ]
    loader = Loader(**{name: {} for name in names})
    load_recipe(outer, load=loader)
    assert [name for name, _ in loader.requests] == names


ONE = 'parts.x.reward = "kind"'
WATCH = 'watch.other.reward = "brief"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"recipe.toml: There is no `combine`; allowed: weighted_sum, minimum"),
        ('combine = "product"', "Unknown combine = 'product'"),
        ("combine = 3", "Unknown combine = 3"),
        ('combine = "minimum"', r"\[parts\]: at least one table \[parts.NAME\]"),
        (f'combine = "minimum"\npenalty = 1\n{ONE}', "unknown key 'penalty'; allowed: combine, parts"),
        (
            f'combine = "minimum"\n{ONE}\nparts.x.weight = 2',
            r"\[parts.x\]: unknown key 'weight'; allowed: reward, options, scale",
        ),
        ('combine = "minimum"\nparts.x = "kind"', "is not a table"),
        ('combine = "minimum"\nparts.x.weight = 1', "unknown key 'weight'"),
        ('combine = "minimum"\nparts.x.reward = 3', "must name a reward model"),
        ('combine = "minimum"\nparts.x.scale = "raw"', "reward = None"),
        (f'combine = "minimum"\n{ONE}\nparts.x.options = 3', "must be a table"),
        (f'combine = "weighted_sum"\n{ONE}\nparts.x.weight = "2"', "weight = '2'; it must be a number"),
        (f'combine = "weighted_sum"\n{ONE}\nparts.x.weight = nan', "finite"),
        (f'combine = "weighted_sum"\n{ONE}\nparts.x.scale = "other"', r"\[parts.x\]: Unknown scale 'other'"),
        (f'combine = "weighted_sum"\n{ONE}\nparts.x.scale = {{ mean = 1 }}', "deviation = None"),
        (f'combine = "weighted_sum"\n{ONE}\nparts.x.scale = {{ mean = 1, std = 2 }}', "unknown key 'std'"),
        (f'combine = "mean_minus_deviation"\npenalty = true\n{ONE}', "penalty = True"),
        (f'combine = "mean_minus_deviation"\npenalty = -1\n{ONE}', "0 or more"),
        (f'combine = "gate"\n{ONE}', r"\[checks\]: at least one table"),
        (f'combine = "gate"\nchecks.x.reward = "kind"\n{ONE}\nparts.y.reward = "kind"', "here are 2"),
        (f'combine = "gate"\nchecks.x.reward = "kind"\nchecks.x.weight = 1\n{ONE}', "unknown key 'weight'"),
        (f'combine = "minimum"\n{ONE}\nparts.x.combine = "minimum"', "not both"),
        (f'combine = "watched"\n{ONE}', r"\[watch\]: at least one table"),
        (f'combine = "watched"\n{WATCH}\nwatch.y.reward = "kind"\n{ONE}', "one reward watches; here are 2"),
        (f'combine = "watched"\n{WATCH}\nparts.x.reward = "kind"\nparts.x.weight = 2', "unknown key 'weight'"),
        (f'combine = "minimum"\n[parts.x]\ncombine = "watched"\nparts.y.reward = "kind"\n{WATCH}', "can't be watched"),
        ('combine = "minimum"\nparts.x.combine = "minimum"', r"recipe.toml \[parts.x.parts\]"),
        ('combine = "minimum"\nparts.x.reward = "recipe.toml"', "contains itself: recipe.toml -> recipe.toml"),
        ('combine = "minimum"\nparts.x = { reward = "a.toml", options = { a = 1 } }', "takes no options"),
        ('combine = "minimum"\nparts.x.reward = "no.toml"', "can't be read"),
        ("combine = ", "not valid TOML"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(recipe, text, message):
    loader = Loader(**LOADS)
    with pytest.raises(ConfigurationError, match=message):
        load_recipe(recipe(text), load=loader)
    assert loader.requests == []


async def test_a_reward_that_is_watched(recipe):
    loader = Loader(**LOADS)
    watched = load_recipe(recipe(f'combine = "watched"\n{ONE}\n{WATCH}'), load=loader)
    assert isinstance(watched, WatchedReward)
    assert await watched.score(QUERY, ["a", "b"]) == [4.0, 2.0]
    assert await watched.second.score(QUERY, ["a", "b"]) == [0.0, 1.0]


def test_a_part_that_can_not_be_loaded_is_placed_once(recipe):
    text = 'combine = "minimum"\n[parts.x]\ncombine = "minimum"\nparts.y.reward = "no"'
    with pytest.raises(ConfigurationError) as caught:
        load_recipe(recipe(text), load=Loader())
    assert caught.value.message == "recipe.toml [parts.x.parts.y]: Unknown reward model 'no'."
    assert caught.value.hint == "Name another."


def test_a_reward_error_keeps_its_kind(recipe):
    def load(name):
        raise RewardError("The weights are missing.")

    with pytest.raises(RewardError, match=r"recipe.toml \[parts.x\]: The weights are missing"):
        load_recipe(recipe(f'combine = "minimum"\n{ONE}'), load=load)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigurationError, match="can't be read"):
        load_recipe(tmp_path / "no.toml", load=load_reward)
