"""Too little memory, NaN, equal texts, truncation and kept prefixes."""

import asyncio
import math

import pytest
import torch
from langchain_core.messages import HumanMessage

from tests.rewards.local.checkpoints import record_passes
from tpo_graph.errors import RewardError
from tpo_graph.rewards.base import RunContext, score_responses
from tpo_graph.rewards.local.scoring import KeptPrefixes, Prefix

pytestmark = pytest.mark.torch

QUESTION = [HumanMessage("Why?")]


def fail_above(weights, error, *, rows=math.inf, length=math.inf):
    """Let the model raise in passes above a number of rows or tokens; returns the passes, the failed ones too."""
    passes = record_passes(weights)

    def check(_module, args, kwargs):
        if passes[-1].rows > rows or passes[-1].length > length:
            raise error

    weights.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    return passes


def prefix(ids, tokens):
    """A prefix whose keys and values take 96 bytes for each of `tokens`."""
    states = torch.zeros(1, 1, tokens, 12)
    return Prefix(tuple(ids), ((states, states.clone()),))


def test_kept_prefixes_stay_within_their_memory():
    kept = KeptPrefixes(max_bytes=3000)
    for first in range(0, 50, 10):
        kept.keep(prefix(range(first, first + 10), tokens=10))
    found = [kept.find(tuple(range(first, first + 10))) for first in range(0, 50, 10)]
    assert [one and one[1] for one in found] == [None, None, 10, 10, 10]
    kept.keep(prefix(range(1000), tokens=1000))
    assert kept.find(tuple(range(1000))), "the newest is kept whatever its size"
    assert kept.find(tuple(range(40, 50))) is None


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("llama", torch.OutOfMemoryError("CUDA out of memory")),
        ("bert", RuntimeError("can't allocate memory")),
        ("bert", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")),
    ],
)
async def test_too_little_memory_halves_the_batch(kind, error, loaded, reward, conversation):
    responses = [f"{word} {word} air" for word in ["warm", "rooms", "make", "people", "sleepy", "since", "the", "body"]]
    expected = await reward(kind).score(conversation, responses)
    weights = loaded(kind)
    passes = fail_above(weights, error, rows=2)
    scores = await reward(weights, batch_tokens=4096).score(conversation, responses)

    assert scores == pytest.approx(expected, abs=1e-4)
    assert sorted(one.rows for one in passes if not one.builds) == [2, 2, 2, 2, 4, 4, 8]


async def test_a_text_that_does_not_fit_alone_fails_its_request_and_no_other(loaded, reward):
    weights = loaded("bert")
    fail_above(weights, torch.OutOfMemoryError("CUDA out of memory"), length=100)
    model = reward(weights, batch_tokens=4096)
    long, short = await asyncio.gather(
        model.score(QUESTION, ["air " * 300]), model.score(QUESTION, ["air"]), return_exceptions=True
    )
    assert isinstance(long, RewardError)
    assert "does not fit into memory" in str(long)
    assert short == pytest.approx(await reward("bert").score(QUESTION, ["air"]), abs=1e-4)


async def test_another_failure_of_the_model_is_a_reward_error(loaded, reward, conversation):
    weights = loaded("llama")
    fail_above(weights, RuntimeError("a kernel is missing"), rows=0)
    with pytest.raises(RewardError, match="a kernel is missing"):
        await reward(weights).score(conversation, ["Warm."])


async def test_texts_that_are_truncated_or_too_long_are_reported(reward):
    long, short = "air " * 300, "Warm."
    scoring = await score_responses(reward("bert", max_length=100), QUESTION, [long, short], RunContext())
    assert all(map(math.isfinite, scoring.scores))
    assert (scoring.truncated, scoring.reasons) == ({long}, {})

    refusing = reward("bert", max_length=100, truncation="error")
    scoring = await score_responses(refusing, QUESTION, [long, short], RunContext())
    assert math.isnan(scoring.scores[0])
    assert scoring.scores[1:] == pytest.approx(await reward("bert").score(QUESTION, [short]), abs=1e-4)
    assert list(scoring.reasons) == [long]
    assert "longer than the 100 tokens" in scoring.reasons[long]
    with pytest.raises(RewardError, match="longer than the 100 tokens"):
        await refusing.score(QUESTION, [long])


async def test_nan_passes_as_nan(loaded, reward, conversation):
    weights = loaded("llama")
    torch.nn.init.constant_(weights.model.score.weight, math.nan)
    assert all(map(math.isnan, await reward(weights).score(conversation, ["Warm.", "Cold."])))


async def test_equal_texts_are_scored_once(loaded, reward, conversation):
    weights = loaded("bert")
    passes = record_passes(weights)
    scores = await reward(weights).score(conversation, ["Warm.", "Cold.", "Warm.", "Warm."])
    assert sum(one.rows for one in passes) == 2
    assert scores[0] == scores[2] == scores[3] != scores[1]


async def test_no_responses_give_no_scores(reward, conversation):
    assert await reward("bert").score(conversation, []) == []


async def test_a_long_conversation_is_run_once(loaded, reward):
    """Twenty short answers cost one pass over the conversation, and a later step none."""
    weights = loaded("llama")
    passes = record_passes(weights)
    model = reward(weights)
    long = [HumanMessage("light air " * 400)]
    tokens = []
    for waves in ("light", "short"):
        passes.clear()
        scores = await model.score(long, [f"Since {at} {waves} waves." for at in range(20)])
        assert len(set(scores)) == 20
        tokens.append(sum(one.rows * one.length for one in passes))
    assert tokens[0] < 400 * 2 + 20 * 40
    assert tokens[1] < 20 * 40
