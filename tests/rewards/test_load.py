"""Reward models by name."""

import pytest

from tests.fresh_process import run_script
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards import load
from tpo_graph.rewards.load import load_reward


@pytest.mark.subprocess
def test_importing_the_package_imports_no_torch():
    script = """
        import sys
        import tpo_graph.rewards.load
        from tpo_graph.rewards.local import ClassifierReward
        assert not {"torch", "transformers"} & sys.modules.keys()
    """
    assert run_script(script).returncode == 0


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "Did you mean 'hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B'"),
        ("locl", "Did you mean 'local'"),
        ("nonsense", "hf:OWNER/NAME"),
        ("", "hf:OWNER/NAME"),
        ("hf:", "names no reward model"),
        ("local:big", "'local' takes no name"),
    ],
)
def test_a_name_that_is_unknown_says_what_is_allowed(name, suggestion):
    with pytest.raises(ConfigurationError, match=suggestion):
        load_reward(name)


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("vllm:http://127.0.0.1:1#m", {"timeout": "5"}, "timeout='5'"),
        ("hf:./nowhere", {"batch_tokens": "x"}, "batch_tokens='x'"),
        ("length:5", {"falloff": "x"}, "falloff='x'"),
        ("judge:openai:gpt-4o-mini", {"samples": "2", "api_key": "secret"}, "samples='2'"),
        ("tei:http://127.0.0.1:1#m", {"max_concurrency": "3"}, "max_concurrency='3'"),
        ("judge:openai:gpt-4o-mini", {"preference": 3, "api_key": "secret"}, "preference=3"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(name, options, shown):
    with pytest.raises(ConfigurationError, match="wrong type") as caught:
        load_reward(name, **options)
    assert shown in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.torch
def test_a_missing_folder_is_a_reward_error():
    with pytest.raises(RewardError, match="no such folder"):
        load_reward("hf:./nowhere")


def test_another_kind_can_be_registered(monkeypatch):
    made = object()
    monkeypatch.setitem(load.SCHEMES, "table", lambda rest, **options: (made, rest, options))
    assert load_reward("table:one:two", size=3) == (made, "one:two", {"size": 3})
