"""A local reward model among event loops and threads: it blocks none of them, can be cancelled, and ends."""

import asyncio
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import blockbuster
import pytest
from langchain_core.messages import HumanMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.load import load_reward
from tpo_graph.rewards.local import ClassifierReward

pytestmark = pytest.mark.torch

QUESTION = [HumanMessage("Why?")]


def test_it_is_loaded_by_name(checkpoint):
    model = load_reward(f"hf:{checkpoint('bert')}", max_length=64)
    assert isinstance(model, ClassifierReward)
    assert model.max_length == 64
    model.close()
    with pytest.raises(ConfigurationError, match="unexpected keyword argument 'depth'"):
        load_reward(f"hf:{checkpoint('bert')}", depth=3)


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
    model = reward("bert")
    with blockbuster.blockbuster_ctx():
        assert len(await model.score(QUESTION, ["air", "light"])) == 2
        model.close()


async def test_a_timeout_cancels(reward):
    model = reward("llama")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await model.score([HumanMessage("air light " * 300)], [f"Since {at}." for at in range(20)])
    assert len(await model.score(QUESTION, ["Since air."])) == 1


def test_event_loops_of_several_threads_share_a_model(reward):
    model = reward("bert")

    def run(index):
        async def both():
            return await asyncio.gather(*(model.score(QUESTION, [f"air {index}", "light"]) for _ in range(3)))

        return asyncio.run(both())

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(8)))
    # one loop after another, in one thread
    (light,) = asyncio.run(model.score(QUESTION, ["light"]))
    assert [scores[1] for loop in results for scores in loop] == pytest.approx([light] * 24, abs=1e-4)


async def test_a_model_that_is_no_longer_referenced_ends_its_thread(checkpoint):
    model = ClassifierReward.from_pretrained(str(checkpoint("bert")), device="cpu")
    thread = model._worker._thread
    gone = weakref.ref(model)
    await model.score(QUESTION, ["air"])
    del model
    gc.collect()
    assert gone() is None
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


async def test_a_closed_model_can_be_closed_again_and_scores_no_more(reward):
    model = reward("bert")
    model.close()
    model.close()
    with pytest.raises(RewardError, match="was closed"):
        await model.score(QUESTION, ["air"])
