"""Model names."""

import pytest

from tpo_graph.serving.call import ModelName
from tpo_graph.serving.errors import RequestRefusedError


@pytest.mark.parametrize(
    ("name", "policy", "settings"),
    [
        ("tpo", "one", {"mode": "tpo"}),
        ("tpo-d2-n5", "one", {"mode": "tpo", "depth": 2, "n": 5}),
        ("tpo-n5", "one", {"mode": "tpo", "n": 5}),
        ("tpo-d0", "one", {"mode": "tpo", "depth": 0}),
        ("revision-d3-n4/a/b", "a/b", {"mode": "revision", "depth": 3, "n": 4}),
        ("bon-16", "one", {"mode": "bon", "n": 16}),
        ("bon-n16", "one", {"mode": "bon", "n": 16}),
        ("bon/one", "one", {"mode": "bon"}),
    ],
)
def test_names(name, policy, settings):
    found = ModelName.parse(name, ["one", "a/b"])
    assert (found.policy, dict(found.settings)) == (policy, settings)


@pytest.mark.parametrize("name", ["tpo-", "tpo--n5", "TPO", "tpo-n5-n5", "tpo-5-n5", "tpo-n٣", "bon-16-n16", "tpo-n00"])
def test_names_that_are_none(name):
    with pytest.raises(RequestRefusedError, match="does not exist"):
        ModelName.parse(name, ["one"])
