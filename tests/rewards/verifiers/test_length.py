import pytest

from tpo_graph import ConfigurationError
from tpo_graph.rewards.verifiers import LengthVerifier
from tpo_graph.rewards.verifiers.load import load_json_schema, load_length, load_math, load_regex
from tpo_graph.rewards.verifiers.rules import parse_length


@pytest.mark.parametrize(
    ("arguments", "text", "reward"),
    [
        ({"shortest": 2, "longest": 3}, "a b", 1.0),
        ({"shortest": 2, "longest": 3}, "a b c", 1.0),
        ({"shortest": 2, "longest": 3, "falloff": 1}, "a b c d", 0.5),
        ({"shortest": 2, "longest": 3, "falloff": 1}, "a", 0.5),
        ({"shortest": 2, "longest": 3, "falloff": 1}, "", 0.2),
        ({"shortest": 100, "longest": 100}, "a " * 125, 0.5),
        ({"shortest": 2}, "a " * 1000, 1.0),
        ({"longest": 4, "unit": "characters"}, "日本語だ", 1.0),
        ({"longest": 2, "unit": "tokens", "falloff": 1}, "abcdefghijkl", 0.5),
        ({"longest": 3, "unit": "tokens", "tokenize": list}, "abc", 1.0),
    ],
)
async def test_rewards(arguments, text, reward):
    assert await LengthVerifier(**arguments).score([], [text]) == [reward]


async def test_the_reward_falls_all_the_way_and_never_to_zero():
    rewards = await LengthVerifier(1, 10).score([], ["a " * length for length in (10, 11, 20, 1000, 100_000)])
    assert rewards == sorted(rewards, reverse=True)
    assert len(set(rewards)) == 5
    assert rewards[-1] > 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("150", (150, 150, "words")),
        ("100-200", (100, 200, "words")),
        ("-200 characters", (0, 200, "characters")),
        ("100- tokens", (100, None, "tokens")),
        ("100words", (100, 100, "words")),
    ],
)
def test_names(text, told):
    assert parse_length(text) == told


@pytest.mark.parametrize(
    "make",
    [
        lambda: parse_length(""),
        lambda: parse_length("-"),
        lambda: parse_length("many"),
        lambda: parse_length("10 lines"),
        lambda: load_length("200-100"),
        lambda: LengthVerifier(5, 4),
        lambda: LengthVerifier(-1),
        lambda: LengthVerifier(1, falloff=0),
        lambda: LengthVerifier(1, unit="lines"),
        lambda: LengthVerifier(1, tokenize=list),
        lambda: load_regex(""),
        lambda: load_json_schema(""),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ConfigurationError):
        make()


async def test_loaders():
    assert await load_regex("a.c").score([], ["abc"]) == [1.0]
    assert await load_length("2", falloff=1).score([], ["a b c"]) == [0.5]
    pytest.importorskip("math_verify")
    assert await load_math("42").score([], ["42"]) == [1.0]
