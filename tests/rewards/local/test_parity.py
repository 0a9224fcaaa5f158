"""The score in a batch is the score alone: against the plain pipeline, one text at a time."""

import asyncio

import pytest
from langchain_core.messages import HumanMessage

from tests.rewards.local.checkpoints import DECODERS, ENCODERS, ONE_BY_ONE, record_passes
from tpo_graph.rewards.local import SingleScore
from tpo_graph.rewards.local.batches import Batch, prefix_of
from tpo_graph.rewards.local.encoding import ConversationEncoder
from tpo_graph.rewards.local.scoring import Scorer

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
ONE_ATTENTION = ["deberta", "deberta-v2", "mpnet", "gemma2"]


def scorer_and_encoder(weights):
    """What the worker would run, without the worker."""
    scorer = Scorer(weights, SingleScore(), batch_tokens=None, prefix_bytes=2**20)
    encoder = ConversationEncoder(
        weights.tokenizer,
        truncation="error",
        max_length=weights.max_length,
        sanitize=True,
        ignored_at_end=scorer.ignored_at_end,
    )
    return scorer, encoder


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS, *ONE_BY_ONE])
async def test_scores_equal_the_pipeline_one_at_a_time(
    kind, checkpoint, loaded, reward, conversation, responses, pipeline_scores
):
    alone = pipeline_scores(checkpoint(kind), conversation, responses)
    weights = loaded(kind)
    passes = record_passes(weights)
    model = reward(weights)
    first = await model.score(conversation, responses)
    passes.clear()
    again = await model.score(conversation, responses[::-1])

    assert max(alone) - min(alone) > 0.01, "the scores are too alike for the comparison to mean anything"
    assert first == pytest.approx(alone, abs=TOLERANCE)
    assert again[::-1] == pytest.approx(alone, abs=TOLERANCE)
    # a decoder has run the conversation before, an encoder can't reuse it, and the others run each text alone
    assert all(bool(one.reused) == (kind in DECODERS) for one in passes)
    if kind in ONE_BY_ONE:
        assert len(passes) == len(set(responses))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_one_batch_of_all_lengths_equals_the_pipeline(
    kind, attention, checkpoint, loaded, conversation, responses, pipeline_scores
):
    """However much is padded: the limits that keep padding small are for speed alone."""
    if attention == "eager" and kind in ONE_ATTENTION:
        pytest.skip("has one attention of its own")
    scorer, encoder = scorer_and_encoder(loaded(kind, attention=None if kind in ONE_ATTENTION else attention))
    texts = list(dict.fromkeys(responses))
    encoded = tuple(encoder.encode(conversation, texts))
    alone = pipeline_scores(checkpoint(kind), conversation, texts)

    assert scorer.run(Batch((), encoded)) == pytest.approx(alone, abs=TOLERANCE)
    if kind in DECODERS:
        prefix = prefix_of(encoded)
        assert len(prefix) > 50
        for length in (len(prefix), 17, 16, 15, 1):
            # the sliding windows are 16 tokens: a prefix around and beyond them
            scores = scorer.run(Batch(prefix[:length], encoded))
            assert scores == pytest.approx(alone, abs=TOLERANCE), f"prefix of {length}"


async def test_a_kept_prefix_is_cut_where_a_response_merges_with_it(
    loaded, reward, checkpoint, conversation, pipeline_scores
):
    """A response that begins with a line break may change the conversation's last token."""
    weights = loaded("mistral")
    passes = record_passes(weights)
    model = reward(weights)
    await model.score(conversation, ["The body rests. " * 3, "Less heat. " * 3])
    kept = next(one.length for one in passes if one.builds)
    passes.clear()
    merged = ["\n\nThe body rests." * 2, "\nLess heat." * 3]
    scores = await model.score(conversation, merged)

    assert all(one.reused and one.reused <= kept for one in passes)
    assert scores == pytest.approx(pipeline_scores(checkpoint("mistral"), conversation, merged), abs=TOLERANCE)


async def test_one_response_a_step_reuses_the_conversation_from_the_third_step(loaded, reward, conversation):
    weights = loaded("llama")
    passes = record_passes(weights)
    model = reward(weights)
    steps = []
    for step in range(4):
        passes.clear()
        await model.score(conversation, [f"Step {step}: the body rests."])
        steps.append(["builds" if one.builds else "reuses" if one.reused else "plain" for one in passes])
    assert steps == [["plain"], ["builds", "reuses"], ["reuses"], ["reuses"]]


@pytest.mark.parametrize("kind", ["llama", "bert"])
async def test_many_queries_at_once_equal_each_alone(kind, loaded, reward, checkpoint, pipeline_scores):
    queries = [
        (
            [HumanMessage("Why? " * (1 + index % 5))],
            [f"Since {word}." for word in ["air", "heat", "light"][: 1 + index % 3]],
        )
        for index in range(20)
    ]
    weights = loaded(kind)
    passes = record_passes(weights)
    model = reward(weights)
    together = await asyncio.gather(*(model.score(messages, texts) for messages, texts in queries))

    for scores, (messages, texts) in zip(together, queries, strict=True):
        assert scores == pytest.approx(pipeline_scores(checkpoint(kind), messages, texts), abs=TOLERANCE)
    assert len(passes) < sum(len(texts) for _, texts in queries)


@pytest.mark.parametrize(
    ("kind", "pad_token_id"),
    [("llama", None), ("llama", 4), ("llama", 2), ("gpt2", None), ("gpt2", 4)],
    ids=["none", "end-of-turn", "own", "gpt2-none", "gpt2-end-of-turn"],
)
async def test_the_config_pad_id_decides_where_a_text_is_read(
    kind, pad_token_id, loaded, reward, checkpoint, conversation, responses, pipeline_scores
):
    """With the end of a turn (id 4) as pad id the pipeline reads the token before it, and so do we, padded or not."""
    folder = checkpoint(kind, pad_token_id=pad_token_id)
    alone = pipeline_scores(folder, conversation, responses)
    weights = loaded(folder)
    assert await reward(weights).score(conversation, responses) == pytest.approx(alone, abs=TOLERANCE)

    scorer, encoder = scorer_and_encoder(weights)
    encoded = tuple(encoder.encode(conversation, responses))
    assert scorer.run(Batch((), encoded)) == pytest.approx(alone, abs=TOLERANCE)


async def test_rotary_scaling_that_looks_at_the_longest_text_runs_one_by_one(
    loaded, reward, checkpoint, conversation, responses, pipeline_scores
):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = checkpoint("llama", rope_parameters=scaling, max_position_embeddings=64, model_max_length=None)
    texts = [text for text in responses if text]
    weights = loaded(folder, max_length=1000)
    passes = record_passes(weights)
    scores = await reward(weights).score(conversation, texts)

    assert [(one.rows, one.reused) for one in passes] == [(1, None)] * len(set(texts))
    # the library's own scaling remembers the longest text so far, so that only the first is the same by itself
    longest = max(texts, key=len)
    expected = pipeline_scores(folder, conversation, [longest])
    assert [scores[texts.index(longest)]] == pytest.approx(expected, abs=TOLERANCE)
