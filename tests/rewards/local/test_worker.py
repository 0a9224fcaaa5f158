"""The thread behind a model: it blocks no event loop, is fair, can be cancelled, and serves several loops."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.messages import HumanMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.local.encoding import EncodedText
from tpo_graph.rewards.local.forward import Batch
from tpo_graph.rewards.local.worker import ScoringWorker

QUESTION = [HumanMessage("Why?")]


class Letters:
    """Encodes a response as its letters; "!" can't be encoded."""

    def encode(self, messages, responses):
        if "!" in responses:
            raise ValueError("no letter: !")
        return [EncodedText(tuple(map(ord, response)), 0, (0,)) for response in responses]


class Slow:
    """Scores a text with its first letter, a pass each; waits for `gate` in each pass."""

    def __init__(self, seconds=0.0):
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = seconds
        self.passes = []

    def plan(self, conversations):
        return [Batch((), (text,)) for texts in conversations for text in texts]

    def run(self, batch, counts):
        self.gate.wait(10)
        time.sleep(self.seconds)
        self.passes.append("".join(map(chr, batch.texts[0].ids)))
        counts["batches"] += 1
        if self.passes[-1].startswith("?"):
            raise RewardError("no score for ?")
        return [float(text.ids[0]) for text in batch.texts]


@pytest.fixture
def worker():
    """Starts workers, and stops them with the test."""
    started = []

    def start(scorer, quantum=32):
        started.append(ScoringWorker(Letters(), scorer, gather_seconds=0.002, quantum=quantum))
        return started[-1]

    yield start
    for one in started:
        one.stop()
        one.join(5)


def ask(worker, *responses):
    return asyncio.wrap_future(worker.submit(QUESTION, responses))


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def test_the_event_loop_keeps_beating(reward):
    """While a model scores, a beat every 5 ms comes on time but for the scheduler's jitter."""
    model = reward("llama")
    late = []

    async def beat():
        while True:
            due = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - due)

    heart = asyncio.create_task(beat())
    await model.score([HumanMessage("air light " * 300)], [f"Since {at} waves." * 20 for at in range(20)])
    heart.cancel()
    assert len(late) > 10
    # one late beat may be the machine's; a loop that waits for the model would beat a few times in all
    assert sorted(late)[len(late) // 2] < 0.05


async def test_no_call_blocks_the_event_loop(reward):
    """As `langgraph dev` checks it."""
    blockbuster = pytest.importorskip("blockbuster")
    model = reward("bert")
    with blockbuster.blockbuster_ctx():
        assert len(await model.score(QUESTION, ["air", "light"])) == 2
        model.close()


async def test_a_short_request_does_not_wait_for_a_long_one(worker):
    scorer = Slow()
    serving = worker(scorer)
    scorer.gate.clear()
    long = ask(serving, *(f"a{at}" for at in range(200)))
    await asyncio.sleep(0.05)
    short = ask(serving, "b1", "b2")
    scorer.gate.set()
    scoring, _ = await short
    await long

    assert scoring.scores == [98.0, 98.0]
    # a window of eight turns was planned before the short request came; then they alternate
    assert scorer.passes.index("b2") < 25


async def test_requests_take_turns(worker):
    scorer = Slow()
    scorer.gate.clear()
    serving = worker(scorer)
    requests = [ask(serving, *(f"{name}{at}" for at in range(4))) for name in "abc"]
    await asyncio.sleep(0.05)
    scorer.gate.set()
    await asyncio.gather(*requests)
    first_half = scorer.passes[:8]
    assert {name[0] for name in first_half} == {"a", "b", "c"}


async def test_a_cancelled_request_leaves_its_place(worker):
    scorer = Slow()
    scorer.gate.clear()
    serving = worker(scorer)
    gone = ask(serving, *(f"a{at}" for at in range(100)))
    stays = ask(serving, "b")
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.sleep(0)
    scorer.gate.set()

    assert (await stays)[0].scores == [98.0]
    assert len(scorer.passes) < 5
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_timeout_cancels(reward):
    model = reward("llama")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await model.score([HumanMessage("air light " * 300)], [f"Since {at}." for at in range(20)])
    assert len(await model.score(QUESTION, ["Since air."])) == 1


async def test_a_request_that_fails_fails_alone(worker):
    serving = worker(Slow())
    good, unreadable, unscored, again = await asyncio.gather(
        ask(serving, "a"), ask(serving, "!"), ask(serving, "c", "?"), ask(serving, "d"), return_exceptions=True
    )
    assert (good[0].scores, again[0].scores) == ([97.0], [100.0])
    assert isinstance(unreadable, RewardError)
    assert "no letter" in str(unreadable)
    assert isinstance(unscored, RewardError)


async def test_equal_texts_of_several_requests_are_scored_once(worker):
    scorer = Slow()
    scorer.gate.clear()
    serving = worker(scorer)
    busy = ask(serving, "z")
    await asyncio.sleep(0.02)
    requests = [ask(serving, "a", "b", "a") for _ in range(5)]
    await asyncio.sleep(0.02)
    scorer.gate.set()
    results = await asyncio.gather(*requests)
    await busy

    assert [scoring.scores for scoring, _ in results] == [[97.0, 98.0, 97.0]] * 5
    assert sorted(scorer.passes) == ["a", "b", "z"]
    assert results[0][1]["duplicates"] == 1


def test_event_loops_of_several_threads_share_a_model(reward):
    model = reward("bert")

    def run(index):
        async def both():
            return await asyncio.gather(*(model.score(QUESTION, [f"air {index}", "light"]) for _ in range(3)))

        return asyncio.run(both())

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(8)))
    assert len({scores[1] for each in results for scores in each}) <= 8
    assert model.counts["requests"] == 24
    # one loop after another, in one thread
    assert asyncio.run(model.score(QUESTION, ["light"])) == pytest.approx([results[0][0][1]], abs=1e-4)


async def test_closing_ends_what_waits_and_refuses_what_comes(worker):
    scorer = Slow()
    scorer.gate.clear()
    serving = worker(scorer)
    waiting = ask(serving, "a", "b")
    await asyncio.sleep(0.02)
    late = ask(serving, "c")
    serving.stop()
    scorer.gate.set()
    for request in (waiting, late):
        with pytest.raises(RewardError, match="was closed"):
            await request
    with pytest.raises(RewardError, match="was closed"):
        serving.submit(QUESTION, ["d"])


async def test_what_was_cancelled_is_not_remembered(worker):
    scorer = Slow()
    scorer.gate.clear()
    serving = worker(scorer)
    gone = [ask(serving, *(f"{name}{at}" for at in range(20))) for name in "abc"]
    await asyncio.sleep(0.05)
    for request in gone:
        request.cancel()
    await asyncio.sleep(0)
    scorer.gate.set()
    assert (await ask(serving, "z"))[0].scores == [122.0]
    await until(lambda: not serving._wanted)


async def test_a_model_that_is_forgotten_ends_its_thread(checkpoint):
    from tpo_graph.rewards.local import ClassifierReward

    model = ClassifierReward.from_pretrained(str(checkpoint("bert")), device="cpu")
    thread = model._worker._thread
    gone = weakref.ref(model)
    await model.score(QUESTION, ["air"])
    del model
    gc.collect()
    assert gone() is None
    await until(lambda: not thread.is_alive())


async def test_a_closed_model_can_be_closed_again_and_scores_no_more(reward):
    model = reward("bert")
    model.close()
    model.close()
    with pytest.raises(RewardError, match="was closed"):
        await model.score(QUESTION, ["air"])
