"""The thread behind a model: it is fair, drops what is cancelled, and fails no request for another's fault."""

import asyncio
import threading

import pytest
from langchain_core.messages import HumanMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.local.batches import Batch
from tpo_graph.rewards.local.encoding import EncodedText
from tpo_graph.rewards.local.worker import ScoringWorker

QUESTION = [HumanMessage("Why?")]


class Letters:
    """Encodes a response as its letters; "!" can't be encoded."""

    def encode(self, messages, responses):
        if "!" in responses:
            raise ValueError("no letter: !")
        return [EncodedText(tuple(map(ord, response)), 0, (0,)) for response in responses]


class GatedScorer:
    """Scores a text with its first letter, a pass each; every pass waits for `gate`."""

    def __init__(self):
        self.gate = threading.Event()
        self.busy = threading.Event()
        self.passes = []

    def plan(self, conversations):
        return [Batch((), (text,)) for texts in conversations for text in texts]

    def run(self, batch):
        self.busy.set()
        self.gate.wait(10)
        self.passes.append("".join(map(chr, batch.texts[0].ids)))
        if self.passes[-1].startswith("?"):
            raise RewardError("no score for ?")
        return [float(text.ids[0]) for text in batch.texts]


@pytest.fixture
def scorer():
    return GatedScorer()


@pytest.fixture
def worker(scorer):
    serving = ScoringWorker(Letters(), scorer, gather_seconds=0.002, quantum=32)
    yield serving
    scorer.gate.set()
    serving.stop()
    serving.join(5)


@pytest.fixture
async def first(worker, scorer):
    """A request of which the worker is scoring the first text, until the gate opens."""
    request = ask(worker, *(f"a{at}" for at in range(200)))
    assert await asyncio.to_thread(scorer.busy.wait, 5)
    return request


def ask(worker, *responses):
    return asyncio.wrap_future(worker.submit(QUESTION, responses))


async def test_a_short_request_does_not_wait_for_a_long_one(worker, scorer, first):
    short = ask(worker, "b1", "b2")
    scorer.gate.set()
    assert (await short).scores == [98.0, 98.0]
    await first
    # a window of eight turns was planned before the short request came; then they alternate
    assert scorer.passes.index("b2") < 25


async def test_requests_take_turns(worker, scorer, first):
    requests = [ask(worker, *(f"{name}{at}" for at in range(4))) for name in "xyz"]
    scorer.gate.set()
    await asyncio.gather(*requests)
    others = [name[0] for name in scorer.passes if not name.startswith("a")]
    assert set(others[:6]) == {"x", "y", "z"}  # two of each


async def test_a_cancelled_request_leaves_its_place_and_is_forgotten(worker, scorer, first):
    more = ask(worker, *(f"c{at}" for at in range(20)))
    stays = ask(worker, "b")
    for request in (first, more):
        request.cancel()
    await asyncio.sleep(0)
    scorer.gate.set()

    assert (await stays).scores == [98.0]
    assert scorer.passes == ["a0", "b"]
    assert not worker._wanted
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_request_that_fails_fails_alone(worker, scorer):
    scorer.gate.set()
    good, unreadable, unscored, again = await asyncio.gather(
        ask(worker, "a"), ask(worker, "!"), ask(worker, "c", "?"), ask(worker, "d"), return_exceptions=True
    )
    assert (good.scores, again.scores) == ([97.0], [100.0])
    assert isinstance(unreadable, RewardError)
    assert "no letter" in str(unreadable)
    assert isinstance(unscored, RewardError)


async def test_equal_texts_of_several_requests_are_scored_once(worker, scorer, first):
    requests = [ask(worker, "b", "c", "b") for _ in range(5)]
    scorer.gate.set()
    results = await asyncio.gather(*requests)
    assert [scoring.scores for scoring in results] == [[98.0, 99.0, 98.0]] * 5
    assert sorted(name for name in scorer.passes if not name.startswith("a")) == ["b", "c"]


async def test_closing_ends_what_waits_and_refuses_what_comes(worker, scorer, first):
    late = ask(worker, "c")
    worker.stop()
    scorer.gate.set()
    for request in (first, late):
        with pytest.raises(RewardError, match="was closed"):
            await request
    with pytest.raises(RewardError, match="was closed"):
        worker.submit(QUESTION, ["d"])
