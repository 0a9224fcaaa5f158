"""LangChain's cache: equal calls of the same model hit, everything else misses."""

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_openai import ChatOpenAI

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import PromptPack, TPOSettings
from tpo_graph.langchain.chat_model import ChatTPO


def chat(policy=None, **options):
    return ChatTPO(**{"policy": policy or scripted_policy(), "reward": number_reward(), "mode": "bon", **options})


def openai(**options):
    return ChatOpenAI(**{"model": "m", "api_key": "k", **options})


def test_a_second_equal_call_costs_nothing():
    set_llm_cache(InMemoryCache())
    policy = scripted_policy()
    model = chat(policy)
    first, second = model.invoke("q"), model.invoke("q")
    assert (first.text, second.text, len(policy.requests)) == ("cand 4", "cand 4", 5)
    assert second.response_metadata["tpo"] == first.response_metadata["tpo"]


@pytest.mark.parametrize("arguments", [{"n": 2}, {"stop": ["x"]}, {"temperature": 0.1}, {"user": "me"}])
def test_another_call_is_another_entry(arguments):
    set_llm_cache(InMemoryCache())
    policy = scripted_policy()
    model = chat(policy)
    model.invoke("q")
    model.invoke("q", **arguments)
    assert len(policy.requests) > 5


def test_candidates_are_never_taken_from_the_cache():
    set_llm_cache(InMemoryCache())
    policy = scripted_policy()
    trajectory = chat(policy).invoke("q").response_metadata["tpo"]["trajectory"]
    assert (trajectory[0]["candidates"], trajectory[0]["best_reward"], trajectory[0]["worst_reward"]) == (5, 4.0, 0.0)


def test_the_cache_can_be_its_own_or_off():
    own, policy = InMemoryCache(), scripted_policy()
    model = chat(policy, cache=own)
    model.invoke("q")
    model.invoke("q")
    assert len(policy.requests) == 5
    set_llm_cache(InMemoryCache())
    off = chat(scripted_policy(), cache=False)
    assert off.invoke("q").text != off.invoke("q").text


def key(model, **arguments):
    return model._get_llm_string(**arguments)


def test_equal_models_by_name_share_a_key():
    assert key(chat("openai:m", reward="local")) == key(chat("openai:m", reward="local"))
    assert key(chat(openai(), reward="local")) == key(chat(openai(), reward="local"))


@pytest.mark.parametrize(
    "other",
    [
        {"policy": "openai:other"},
        {"policy": openai()},
        {"policy": openai(model="other")},
        {"policy": openai().bind(seed=1)},
        {"reward": "hf:other"},
        {"reward": number_reward()},
        {"critic": "openai:m"},
        {"prompts": "base"},
        {"prompts": PromptPack.load("tpo")},
        {"nodes": {"loss": lambda state: {}}},
        {"settings": TPOSettings(n=9)},
        {"update_temperature": 0.1},
        {"stop": ["x"]},
    ],
    ids=lambda other: " ".join(f"{name}={str(value)[:20]}" for name, value in other.items()),
)
def test_any_other_part_is_another_key(other):
    base = {"policy": "openai:m", "reward": "local"}
    assert key(chat(**base)) != key(chat(**{**base, **other}))


def test_a_key_is_stable_and_holds_no_secret():
    model = chat(openai(api_key="sk-very-secret"), reward="local")
    assert key(model) == key(model)
    assert "very-secret" not in key(model)
    assert "very-secret" not in repr(model)


def test_objects_without_a_description_are_never_mixed_up():
    assert key(chat(scripted_policy())) != key(chat(scripted_policy()))
    first, second = number_reward(), number_reward()
    assert key(chat("openai:m", reward=first)) != key(chat("openai:m", reward=second))
