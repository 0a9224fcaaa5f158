"""What a run is made of, by object or by name: loaded once, refused when it is of the wrong kind."""

import threading

import pytest

from tests.tpo_script import number_reward, phases_asked, scripted_policy
from tpo_graph import ConfigurationError, PolicyError, TPOSettings
from tpo_graph.rewards.load import SCHEMES
from tpo_graph.run_parts import ModelStore, RunParts

SETTINGS = TPOSettings(n=2, depth=1)


@pytest.fixture
def named_reward(monkeypatch):
    """The scheme `numbers:`, whose loads are counted; the first of them fails where that is asked for."""
    loads = []

    def load(name):
        loads.append(name)
        if name == "broken" and len(loads) == 1:
            raise ConfigurationError("not yet")
        return number_reward()

    monkeypatch.setitem(SCHEMES, "numbers", load)
    return loads


def test_parts_by_object_make_a_graph():
    policy, critic = scripted_policy(), scripted_policy()
    parts = RunParts(policy=policy, reward=number_reward(), critic=critic, settings=SETTINGS).load()
    assert parts.create_graph(name="mine").invoke({"query": "q"})["stop_reason"] == "depth"
    assert (phases_asked(policy), phases_asked(critic)) == (["sample"] * 2 + ["update"] * 2, ["loss", "gradient"])


async def test_what_is_named_is_loaded_when_it_is_needed_and_once(named_reward):
    parts = RunParts(policy=scripted_policy(), reward="numbers:", settings=SETTINGS)
    assert named_reward == []
    assert await parts.aload() is await parts.aload() is parts.load()
    assert named_reward == [""]


def test_parts_that_share_a_store_share_its_models(named_reward):
    models = ModelStore()
    parts = [RunParts(policy=scripted_policy(), reward="numbers: ", settings=SETTINGS, models=models) for _ in "ab"]
    assert parts[0].load().reward is parts[1].load().reward
    assert len(named_reward) == 1


def test_a_load_that_failed_is_tried_again(named_reward):
    parts = RunParts(policy=scripted_policy(), reward="numbers:broken", settings=SETTINGS)
    with pytest.raises(ConfigurationError, match="not yet"):
        parts.load()
    assert parts.load().reward is not None


def test_a_critic_with_the_policys_name_is_the_policy(chat_server):
    name = f"server:{chat_server().url}#scripted"
    assert RunParts(policy=name, critic=name, reward=number_reward(), settings=SETTINGS).load().critic is None


def test_models_are_loaded_at_the_same_time(monkeypatch, chat_server):
    both = threading.Barrier(2, timeout=10)

    def load(name):
        both.wait()
        return number_reward()

    monkeypatch.setitem(SCHEMES, "waits", load)
    models = ModelStore()
    rewards = [RunParts(policy=scripted_policy(), reward=f"waits:{name}", models=models) for name in "ab"]
    threads = [threading.Thread(target=parts.load) for parts in rewards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not both.broken


def test_the_loading_can_be_followed(named_reward, chat_server):
    policy = f"server:{chat_server().url}#scripted"
    events = []
    parts = RunParts(policy=policy, reward="numbers:", settings=SETTINGS)
    parts.load(lambda role, name, seconds: events.append((role, name, seconds is None)))
    assert events[:2] == [("policy", policy, True), ("reward model", "numbers:", True)]
    assert sorted(events[2:]) == [("policy", policy, False), ("reward model", "numbers:", False)]


def test_the_first_error_of_any_part_is_raised(named_reward):
    with pytest.raises(PolicyError):
        RunParts(policy="server:http://127.0.0.1:9/v1", reward="numbers:", settings=SETTINGS).load()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"policy": 7}, "policy must be a LangChain chat model or the name of one, not 'int'"),
        ({"policy": None}, "policy must be a LangChain chat model or the name of one, not 'NoneType'"),
        ({"critic": 7}, "critic must be a LangChain chat model or the name of one, not 'int'"),
        ({"reward": object()}, r"'object' is neither"),
        ({"nodes": "fused"}, "Unknown variant 'fused'; allowed: fused-critique"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_at_once(parts, message):
    with pytest.raises(ConfigurationError, match=message):
        RunParts(**{"policy": scripted_policy(), "reward": number_reward(), **parts})


def test_a_variant_by_name_replaces_nodes():
    policy = scripted_policy()
    parts = RunParts(policy=policy, reward=number_reward(), nodes="fused-critique", settings=SETTINGS).load()
    parts.create_graph().invoke({"query": "q"})
    assert phases_asked(policy) == ["sample"] * 2 + ["critique"] + ["update"] * 2
