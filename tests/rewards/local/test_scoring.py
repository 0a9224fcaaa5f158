"""Batches, too little memory, NaN, equal texts and the memory of kept prefixes."""

import math
import random

import pytest
import torch
from langchain_core.messages import HumanMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.base import RunContext, score_responses
from tpo_graph.rewards.local import ClassifierReward
from tpo_graph.rewards.local.checkpoint import Checkpoint, load_checkpoint
from tpo_graph.rewards.local.encoding import EncodedText
from tpo_graph.rewards.local.extractions import SingleScore
from tpo_graph.rewards.local.forward import BatchLimits, KeptPrefixes, Prefix, prefix_of, split_by_length, worthwhile

LIMITS = BatchLimits(tokens=384, continued_tokens=384, pass_tokens=24, prefix_rows=10_000)


def text(length, *, shared=0, first=0):
    ids = tuple(range(first, first + length))
    return EncodedText(ids, shared, (length - 1,))


@pytest.fixture
def loaded(checkpoint):
    """Loads the checkpoint itself, so that a test can change how its model behaves."""

    def load(kind) -> Checkpoint:
        return load_checkpoint(
            str(checkpoint(kind)),
            device="cpu",
            dtype="float32",
            attention=None,
            revision=None,
            trust_remote_code=False,
            max_length=None,
            chat_template=None,
            extraction=SingleScore(),
        )

    return load


def passed_ids(args, kwargs) -> torch.Tensor:
    """The token ids of a pass, however the model's own forward hands them on."""
    return kwargs["input_ids"] if "input_ids" in kwargs else args[0]


def limit_rows(loaded: Checkpoint, rows: int, error: Exception) -> list[int]:
    """Let the model raise above a number of rows; returns the rows of each pass, the failed ones too."""
    seen: list[int] = []

    def check(_module, args, kwargs):
        count = passed_ids(args, kwargs).shape[0]
        seen.append(count)
        if count > rows:
            raise error

    loaded.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], []),
        ([10], [[10]]),
        ([10, 30, 20], [[30, 20, 10]]),  # 30 tokens of padding, two passes of 24 saved
        ([100, 100, 10, 10], [[100, 100], [10, 10]]),
        ([250, 250], [[250], [250]]),  # two would be over the limit
        ([5000, 10], [[5000], [10]]),
        ([64] * 8, [[64] * 6, [64] * 2]),
    ],
)
def test_texts_of_similar_length_share_a_pass(lengths, batches):
    made = split_by_length([text(length) for length in lengths], LIMITS)
    assert sorted(sorted(len(one.ids) for one in batch) for batch in made) == sorted(sorted(batch) for batch in batches)


def test_the_division_costs_least():
    """Against every division of the sorted lengths."""
    chance = random.Random(3)

    def cost(lengths):
        if not lengths:
            return 0
        ends = [end for end in range(1, len(lengths) + 1) if end == 1 or end * lengths[0] <= LIMITS.tokens]
        return min(LIMITS.pass_tokens + end * lengths[0] + cost(lengths[end:]) for end in ends)

    for _ in range(20):
        lengths = [chance.randint(1, 200) for _ in range(8)]
        batches = split_by_length([text(length) for length in lengths], LIMITS)
        spent = sum(LIMITS.pass_tokens + len(batch) * len(batch[0].ids) for batch in batches)
        assert spent == cost(sorted(lengths, reverse=True))


def test_a_prefix_leaves_each_text_a_token_and_its_positions():
    assert prefix_of([text(10, shared=8), text(12, shared=8)]) == tuple(range(8))
    assert prefix_of([text(8, shared=8), text(12, shared=8)]) == tuple(range(7))
    assert prefix_of([EncodedText(tuple(range(12)), 8, (5, 11)), text(12, shared=8)]) == tuple(range(5))


@pytest.mark.parametrize(
    ("prefix", "texts", "total", "kept", "worth"),
    [
        (1000, 20, 20_800, False, True),
        (1000, 1, 1_040, False, False),
        (1000, 1, 1_040, True, True),
        (20, 5, 200, False, False),  # saves 80 tokens, fewer than four passes cost
        (40, 8, 4_000, False, False),  # saves a fourteenth
    ],
)
def test_when_a_prefix_is_worthwhile(prefix, texts, total, kept, worth):
    assert worthwhile(LIMITS, prefix=prefix, texts=texts, total=total, kept=kept) is worth


def test_kept_prefixes_stay_within_their_memory():
    kept = KeptPrefixes(max_bytes=3000)
    for first in range(0, 50, 10):
        states = torch.zeros(1, 1, 10, 12)  # 480 bytes each
        kept.keep(Prefix(tuple(range(first, first + 10)), ((states, states.clone()),)))
    assert (len(kept), kept.bytes) == (3, 2880)
    assert kept.find(tuple(range(10))) is None
    found = kept.find(tuple(range(40, 50)))
    assert found is not None
    assert found[1] == 10
    large = torch.zeros(1, 1, 1000, 12)
    kept.keep(Prefix(tuple(range(1000)), ((large, large.clone()),)))
    assert len(kept) == 1, "the newest is kept whatever its size"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "bert"])
async def test_too_little_memory_halves_the_batch(kind, error, loaded, reward, conversation):
    responses = [f"{word} {word} air" for word in ["warm", "rooms", "make", "people", "sleepy", "since", "the", "body"]]
    expected = await reward(kind).score(conversation, responses)
    checkpoint = loaded(kind)
    rows = limit_rows(checkpoint, 2, error)
    model = ClassifierReward(checkpoint, batch_tokens=4096)
    scores, counts = await model.score_with_counts(conversation, responses)
    model.close()

    assert scores == pytest.approx(expected, abs=1e-4)
    assert counts["out_of_memory"] == 3  # of 8 rows, and of 4 twice
    assert counts["batches"] == 4
    assert rows.count(2) == 4


async def test_a_text_that_does_not_fit_alone_fails_its_request_and_no_other(loaded, reward):
    import asyncio

    checkpoint = loaded("bert")

    def check(_module, args, kwargs):
        if passed_ids(args, kwargs).shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    checkpoint.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    model = ClassifierReward(checkpoint, batch_tokens=4096)
    long, short = await asyncio.gather(
        model.score([HumanMessage("Why?")], ["air " * 300]),
        model.score([HumanMessage("Why?")], ["air"]),
        return_exceptions=True,
    )
    model.close()
    assert isinstance(long, RewardError)
    assert "does not fit into memory" in str(long)
    assert short == pytest.approx(await reward("bert").score([HumanMessage("Why?")], ["air"]), abs=1e-4)


async def test_another_failure_of_the_model_is_a_reward_error(loaded, conversation):
    checkpoint = loaded("llama")
    limit_rows(checkpoint, 0, RuntimeError("a kernel is missing"))
    model = ClassifierReward(checkpoint)
    with pytest.raises(RewardError, match="a kernel is missing"):
        await model.score(conversation, ["Warm."])
    model.close()


async def test_what_is_cut_or_too_long_is_reported(reward):
    long, short = "air " * 300, "Warm."
    cutting = reward("bert", max_length=100)
    scoring = await score_responses(cutting, [HumanMessage("Why?")], [long, short], RunContext())
    assert all(map(math.isfinite, scoring.scores))
    assert (scoring.truncated, scoring.reasons) == ({long}, {})

    refusing = reward("bert", max_length=100, truncation="error")
    scoring = await score_responses(refusing, [HumanMessage("Why?")], [long, short], RunContext())
    none, score = scoring.scores
    assert math.isnan(none)
    assert score == pytest.approx(*await reward("bert").score([HumanMessage("Why?")], [short]), abs=1e-4)
    assert list(scoring.reasons) == [long]
    assert "longer than the 100 tokens" in scoring.reasons[long]
    with pytest.raises(RewardError, match="longer than the 100 tokens"):
        await refusing.score([HumanMessage("Why?")], [long])


async def test_nan_passes_as_nan(loaded, conversation):
    checkpoint = loaded("llama")
    torch.nn.init.constant_(checkpoint.model.score.weight, math.nan)
    model = ClassifierReward(checkpoint)
    assert all(math.isnan(score) for score in await model.score(conversation, ["Warm.", "Cold."]))
    model.close()


async def test_equal_texts_are_scored_once(loaded, conversation):
    checkpoint = loaded("bert")
    rows = limit_rows(checkpoint, 99, RuntimeError())
    model = ClassifierReward(checkpoint)
    scores, counts = await model.score_with_counts(conversation, ["Warm.", "Cold.", "Warm.", "Warm."])
    model.close()
    assert (counts["texts"], counts["duplicates"], sum(rows)) == (4, 2, 2)
    assert scores[0] == scores[2] == scores[3] != scores[1]


async def test_no_responses_give_no_scores(reward, conversation):
    assert await reward("bert").score(conversation, []) == []


async def test_a_long_conversation_is_run_once(loaded):
    """Twenty short answers cost one pass over the conversation, and a later step none."""
    checkpoint = loaded("llama")
    tokens: list[int] = []
    checkpoint.model.base_model.register_forward_pre_hook(
        lambda _module, args, kwargs: tokens.append(passed_ids(args, kwargs).numel()), with_kwargs=True
    )
    model = ClassifierReward(checkpoint)
    long = [HumanMessage("light air " * 400)]
    first, counts = await model.score_with_counts(long, [f"Since {at} light waves." for at in range(20)])
    once = sum(tokens)
    tokens.clear()
    _, later = await model.score_with_counts(long, [f"Since {at} short waves." for at in range(20)])
    model.close()

    conversation_tokens = 400 * 2
    assert len(set(first)) == 20
    assert (counts["prefix_builds"], later["prefix_builds"]) == (1, 0)
    assert once < conversation_tokens + 20 * 40
    assert sum(tokens) < 20 * 40
