"""Several policies in one list: what each is called."""

import pytest

from tpo_graph import ConfigurationError
from tpo_graph.policies.load import policy_ids


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
