"""`examples/vllm_with_skywork.py` against servers on loopback that speak as vLLM does."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.tpo_script import phase_of

pytestmark = pytest.mark.torch

EXAMPLE = Path(__file__).parents[3] / "examples" / "vllm_with_skywork.py"
MODEL = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port


@pytest.fixture
def run_example(monkeypatch, capsys):
    def run(**variables):
        monkeypatch.setattr(sys, "argv", ["vllm_with_skywork.py", "Why is the sky blue?"])
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_it_answers(run_example, chat_server, serve, llama):
    policy, reward = chat_server(), serve(llama, model=MODEL)
    lines = run_example(POLICY_URL=policy.url, REWARD_URL=reward.url, REWARD_TOKENIZER=llama.folder)
    assert [line.partition(":")[0] for line in lines[:3]] == ["step 0", "step 1", "step 2"]
    assert lines[-1].startswith(("rev ", "cand "))
    phases = ["sample", *["loss", "gradient", "update"] * 2]
    assert [phase_of(request.body["messages"][-1]["content"]) for request in policy.requests] == phases
    assert set(reward.paths) == {"/classify"} and {body["model"] for body in reward.bodies} == {MODEL}


def test_it_says_which_server_is_not_there(run_example, chat_server, llama):
    with pytest.raises(
        SystemExit, match=f"error: The server at {NOWHERE}/v1 does not list its models: .* Is it running"
    ):
        run_example(POLICY_URL=f"{NOWHERE}/v1", REWARD_URL=NOWHERE, REWARD_TOKENIZER=llama.folder)
    policy = chat_server()
    with pytest.raises(SystemExit, match=f"error: No vLLM server answers at {NOWHERE}"):
        run_example(POLICY_URL=policy.url, REWARD_URL=NOWHERE, REWARD_TOKENIZER=llama.folder)
    assert policy.requests == []
