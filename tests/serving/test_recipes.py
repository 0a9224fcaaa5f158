"""Model names, and what policies are called."""

import pytest

from tpo_graph import ConfigurationError
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.recipes import ModelName, policy_ids


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


def test_what_policies_are_called():
    names = [
        "local",
        "openai:gpt-4o-mini",
        "vllm:http://127.0.0.1:8000/v1#Qwen/Qwen3-8B",
        "mine=server:http://h/v1?a=b",
    ]
    assert policy_ids(names) == {
        "local": "local",
        "gpt-4o-mini": "openai:gpt-4o-mini",
        "Qwen/Qwen3-8B": "vllm:http://127.0.0.1:8000/v1#Qwen/Qwen3-8B",
        "mine": "server:http://h/v1?a=b",
    }
    assert policy_ids(["server:http://h/v1?a=b", "local:a=b.gguf"]) == {
        "server": "server:http://h/v1?a=b",
        "a=b.gguf": "local:a=b.gguf",
    }


def test_two_policies_of_one_name():
    with pytest.raises(ConfigurationError, match="Two policies are called 'm'"):
        policy_ids(["vllm:http://a/v1#m", "vllm:http://b/v1#m"])
