"""The score in a batch is the score alone: against the plain pipeline, one text at a time."""

import pytest
from langchain_core.messages import HumanMessage

from tpo_graph.rewards.local.checkpoint import load_checkpoint
from tpo_graph.rewards.local.encoding import ConversationEncoder
from tpo_graph.rewards.local.extractions import SingleScore
from tpo_graph.rewards.local.forward import Batch, prefix_of
from tpo_graph.rewards.local.scoring import Scorer
from tpo_graph.rewards.local.worker import no_counts

TOLERANCE = 1e-4

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
ENCODERS = [
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "deberta",
    "deberta-v2",
    "modernbert",
]
ONE_BY_ONE = ["fnet", "xlnet"]
ONE_ATTENTION = ["deberta", "deberta-v2", "mpnet", "gemma2"]


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS, *ONE_BY_ONE])
async def test_scores_equal_the_pipeline_one_at_a_time(
    kind, checkpoint, reward, conversation, responses, pipeline_scores
):
    alone = pipeline_scores(checkpoint(kind), conversation, responses)
    model = reward(kind)
    first = await model.score(conversation, responses)
    again, counts = await model.score_with_counts(conversation, responses[::-1])

    assert max(alone) - min(alone) > 0.01, "the scores are too alike for the comparison to mean anything"
    assert first == pytest.approx(alone, abs=TOLERANCE)
    assert again[::-1] == pytest.approx(alone, abs=TOLERANCE)
    # a decoder has run the conversation before, an encoder can't reuse it, and the others run each text alone
    assert (counts["prefix_hits"] > 0) == (kind in DECODERS)
    assert counts["prefix_builds"] == 0
    if kind in ONE_BY_ONE:
        assert counts["batches"] == len(set(responses))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_one_batch_of_all_lengths_equals_the_pipeline(
    kind, attention, checkpoint, conversation, responses, pipeline_scores
):
    """However much is padded: the limits that keep padding small are for speed alone."""
    if attention == "eager" and kind in ONE_ATTENTION:
        pytest.skip("has one attention of its own")
    folder = checkpoint(kind)
    texts = list(dict.fromkeys(responses))
    scorer, encoder = parts(folder, attention=attention if kind not in ONE_ATTENTION else None)
    encoded = encoder.encode(conversation, texts)
    alone = pipeline_scores(folder, conversation, texts)

    assert scorer.run(Batch((), tuple(encoded)), no_counts()) == pytest.approx(alone, abs=TOLERANCE)
    if kind in DECODERS:
        prefix = prefix_of(encoded)
        assert len(prefix) > 50
        for length in (len(prefix), 17, 16, 15, 1):
            # the sliding windows are 16 tokens: a prefix around and beyond them
            cut = Batch(prefix[:length], tuple(encoded))
            assert scorer.run(cut, no_counts()) == pytest.approx(alone, abs=TOLERANCE), f"prefix of {length}"


async def test_a_kept_prefix_is_cut_where_a_response_merges_with_it(reward, checkpoint, conversation, pipeline_scores):
    """A response that begins with a line break may change the conversation's last token."""
    model = reward("mistral")
    plain, merged = ["The body rests. " * 3, "Less heat. " * 3], ["\n\nThe body rests." * 2, "\nLess heat." * 3]
    await model.score(conversation, plain)
    scores, counts = await model.score_with_counts(conversation, merged)

    assert counts["prefix_hits"] == counts["batches"]
    assert scores == pytest.approx(pipeline_scores(checkpoint("mistral"), conversation, merged), abs=TOLERANCE)


async def test_one_response_a_step_reuses_the_conversation_from_the_third_step(reward, conversation):
    model = reward("llama")
    builds, hits = [], []
    for step in range(4):
        _, counts = await model.score_with_counts(conversation, [f"Step {step}: the body rests."])
        builds.append(counts["prefix_builds"])
        hits.append(counts["prefix_hits"])

    assert builds == [0, 1, 0, 0]
    assert hits == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["llama", "bert"])
async def test_many_queries_at_once_equal_each_alone(kind, reward, checkpoint, pipeline_scores):
    import asyncio

    queries = [
        (
            [HumanMessage("Why? " * (1 + index % 5))],
            [f"Since {word}." for word in ["air", "heat", "light"][: 1 + index % 3]],
        )
        for index in range(20)
    ]
    model = reward(kind)
    together = await asyncio.gather(*(model.score(messages, texts) for messages, texts in queries))

    alone = [pipeline_scores(checkpoint(kind), messages, texts) for messages, texts in queries[:5]]
    assert [len(scores) for scores in together] == [len(texts) for _, texts in queries]
    for ours, theirs in zip(together, alone, strict=False):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
    assert model.counts["batches"] < sum(len(texts) for _, texts in queries)


@pytest.mark.parametrize(
    ("kind", "pad_token_id"),
    [("llama", None), ("llama", 4), ("llama", 2), ("gpt2", None), ("gpt2", 4)],
    ids=["none", "end-of-turn", "own", "gpt2-none", "gpt2-end-of-turn"],
)
async def test_the_config_pad_id_decides_where_a_text_is_read(
    kind, pad_token_id, reward, checkpoint, conversation, responses, pipeline_scores
):
    """With the end of a turn (id 4) as pad id the pipeline reads the token before it, and so do we, padded or not."""
    folder = checkpoint(kind, pad_token_id=pad_token_id)
    alone = pipeline_scores(folder, conversation, responses)
    assert await reward(folder).score(conversation, responses) == pytest.approx(alone, abs=TOLERANCE)

    scorer, encoder = parts(folder)
    encoded = tuple(encoder.encode(conversation, responses))
    assert scorer.run(Batch((), encoded), no_counts()) == pytest.approx(alone, abs=TOLERANCE)


async def test_rotary_scaling_that_looks_at_the_longest_text_runs_one_by_one(
    reward, checkpoint, conversation, responses, pipeline_scores
):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    make = {"rope_parameters": scaling, "max_position_embeddings": 64, "model_max_length": None}
    folder = checkpoint("llama", **make)
    texts = [text for text in responses if text]
    scores, counts = await reward(folder, max_length=1000).score_with_counts(conversation, texts)

    assert counts["batches"] == len(set(texts))
    assert counts["prefix_builds"] == 0
    # the library's own scaling remembers the longest text so far, so that only the first is the same by itself
    assert len(scores) == len(texts)
    assert pipeline_scores(folder, conversation, [max(texts, key=len)])[0] == pytest.approx(
        scores[texts.index(max(texts, key=len))], abs=TOLERANCE
    )


def parts(folder, *, attention=None):
    """A scorer and an encoder without the worker between them."""
    checkpoint = load_checkpoint(
        str(folder),
        device="cpu",
        dtype="float32",
        attention=attention,
        revision=None,
        trust_remote_code=False,
        max_length=None,
        chat_template=None,
        extraction=SingleScore(),
    )
    scorer = Scorer(checkpoint, SingleScore(), batch_tokens=None, prefix_bytes=2**20)
    encoder = ConversationEncoder(
        checkpoint.tokenizer,
        truncation="error",
        max_length=checkpoint.max_length,
        sanitize=True,
        ignored_at_end=scorer.ignored_at_end,
    )
    return scorer, encoder
