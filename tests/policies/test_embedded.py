"""The embedded engine: its server, its refusals, its end; and the whole loop on real models."""

import asyncio
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import openai
import pytest
from langchain_core.messages import HumanMessage

from tpo_graph import ConfigurationError, MissingDependencyError, PolicyError, load_policy
from tpo_graph.policies.embedded import default_context_tokens, start_embedded_server
from tpo_graph.policies.sampling import Sampler
from tpo_graph.settings import Sampling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(embedded_model):
    return start_embedded_server(embedded_model.removeprefix("local:"))


@pytest.mark.embedded
def test_a_second_start_gives_the_same_server(server):
    assert start_embedded_server("135m") == server
    assert server.base_url.startswith("http://127.0.0.1:")
    assert server.api_key not in repr(server)


@pytest.mark.embedded
def test_a_request_without_the_key_is_refused(server):
    with (
        openai.OpenAI(base_url=server.base_url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": "hi"}], max_tokens=1)


@pytest.mark.embedded
def test_five_completions_of_one_request_differ_and_all_count(server):
    del server
    policy = load_policy("local:135m")
    assert policy.metadata["tpo_prompts"] == "small"
    sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=12)
    draw = asyncio.run(Sampler(policy).draw([HumanMessage("The best thing about summer is")], 5, sampling, seed=1))
    assert len({completion.text for completion in draw.completions}) == 5
    assert draw.usage["requests"] == 1
    assert 12 < draw.usage["output_tokens"] <= 60


@pytest.mark.embedded
def test_more_completions_than_slots_are_drawn_in_pieces(server):
    sampler = Sampler(load_policy("local:135m"))
    sampling = Sampling(temperature=1.0, max_new_tokens=4)
    draw = asyncio.run(sampler.draw([HumanMessage("Once upon a time")], server.slots + 2, sampling))
    assert len(draw.completions) == server.slots + 2
    assert not draw.errors


@pytest.mark.embedded
def test_options_of_the_server_and_of_the_chat_model_can_be_given(server):
    policy = load_policy("local:135m", context_tokens=server.context_tokens, timeout=60, metadata={"mine": 1})
    assert (policy.request_timeout, policy.metadata["mine"], policy.metadata["tpo_prompts"]) == (60, 1, "small")


@pytest.mark.embedded
def test_a_context_that_is_too_small_says_what_to_change(server):
    del server
    policy = load_policy("local:135m", context_tokens=256)
    with pytest.raises(PolicyError) as caught:
        asyncio.run(Sampler(policy).draw([HumanMessage("one two three " * 200)], 1, Sampling(max_new_tokens=8)))
    assert "context_tokens=" in caught.value.hint


def test_a_chat_model_gets_room_for_the_longest_prompt_and_answers():
    assert default_context_tokens(slots=8, has_chat_template=True) >= 4 * 2048 + 8 * 2048
    assert default_context_tokens(slots=8, has_chat_template=False) == 16384


def test_a_file_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("xllamacpp")
    with pytest.raises(ConfigurationError, match=r"nothing\.gguf"):
        start_embedded_server(tmp_path / "nothing.gguf")


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "text.gguf").write_text("not a model, but long enough to hold a header of some kind", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"text\.gguf"):
        start_embedded_server(tmp_path / "text.gguf")


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("key", "context"), [("tokenizer.chat_template", 24_576), ("tokenizer.chat_templates", 16_384)]
)
def test_a_model_that_can_not_be_loaded_is_a_policy_error_that_names_its_context(tmp_path, key, context):
    pytest.importorskip("xllamacpp")
    path = tmp_path / "half.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key.encode() + struct.pack("<IQ", 8, 99))
    with pytest.raises(PolicyError, match=f"could not load .*half.gguf with context_tokens={context}"):
        start_embedded_server(path)


@pytest.mark.parametrize("option", [{"threads": 0}, {"slots": 0}, {"context_tokens": 0}])
def test_a_number_that_is_not_positive_is_named(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        start_embedded_server(**option)


def test_without_the_extra_the_hint_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingDependencyError, match="Install the extra 'local'"):
        start_embedded_server(slots=3)


@pytest.mark.embedded
@pytest.mark.subprocess
def test_the_quickstart_answers_and_its_best_reward_never_falls(server):
    del server
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py"), "Why do cats purr?", "local:135m"],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
        cwd=ROOT,
        env=os.environ | {f"TPO_{phase}_MAX_NEW_TOKENS": "60" for phase in ("SAMPLE", "LOSS", "GRADIENT", "UPDATE")},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    rewards = [float(line.split("best reward ")[1].split()[0]) for line in lines if line.startswith("step ")]
    assert len(rewards) >= 2
    assert all(after >= before for before, after in pairwise(rewards))
    assert lines[0].strip()
    assert lines[-1].startswith("stopped by ")
