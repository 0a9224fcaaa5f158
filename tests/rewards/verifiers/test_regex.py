import math
import time

import pytest

from tpo_graph import ConfigurationError
from tpo_graph.rewards.verifiers import RegexVerifier


@pytest.mark.parametrize(
    ("pattern", "arguments", "response", "reward"),
    [
        ("cat", {}, "a cat", 1.0),
        ("cat", {}, "a dog", 0.0),
        ("(?i)CAT", {}, "a cat", 1.0),
        ("cat", {"where": "whole"}, "  cat\n", 1.0),
        ("cat", {"where": "whole"}, "a cat", 0.0),
        ("cat", {"at_least": 0, "at_most": 0}, "a dog", 1.0),
        ("cat", {"at_least": 0, "at_most": 0}, "a cat", 0.0),
        ("(?m)^- ", {"at_least": 2, "at_most": 3}, "- a\n- b", 1.0),
        ("(?m)^- ", {"at_least": 2, "at_most": 3}, "- a\n- b\n- c\n- d", 0.0),
    ],
)
async def test_responses(pattern, arguments, response, reward):
    assert await RegexVerifier(pattern, **arguments).score([], [response]) == [reward]


async def test_a_pattern_without_end_leaves_the_response_without_a_score():
    verifier = RegexVerifier("(a+)+$", seconds=0.4)
    began = time.perf_counter()
    none, good = await verifier.score([], ["a" * 60 + "b", "aa"])
    assert time.perf_counter() - began < 5
    assert math.isnan(none)
    assert good == 1.0


@pytest.mark.parametrize(
    ("pattern", "arguments", "told"),
    [
        ("(", {}, "no regular expression"),
        ("a", {"where": "start"}, "allowed: 'anywhere'"),
        ("a", {"at_least": -1}, "No number"),
        ("a", {"at_most": 0}, "No number"),
        ("a", {"seconds": 0}, "above 0"),
    ],
)
def test_bad_arguments(pattern, arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        RegexVerifier(pattern, **arguments)
