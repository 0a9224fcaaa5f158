"""What goes wrong on the wire: passing faults are tried again, lasting ones become errors that say what to do."""

import asyncio
import math
import socket
import threading
import time

import pytest

from tests.rewards.served.conftest import CONVERSATION
from tpo_graph.errors import RewardError
from tpo_graph.rewards.served import load_openrlhf, load_sglang, load_tei, load_vllm, load_vllm_pooling

LOADS = [load_vllm, load_vllm_pooling, load_sglang, load_tei, load_openrlhf]
ONE = ["a text"]
TWO = ["a text", "another"]


@pytest.fixture
def make(llama, serve):
    """A server with faults and a client that waits next to nothing between attempts."""

    def make(load, *, options=None, **server_options):
        server = serve(llama, **{"score_ids": lambda ids: -float(len(ids)), **server_options})
        prefix = "/sglang" if load is load_sglang else ""
        given = {"tokenizer": str(llama.folder), "retry_wait": 0.005, **(options or {})}
        return server, load(f"{server.url}{prefix}#rm", **given)

    return make


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("fault", ["500", "429", "drop"])
async def test_passing_faults_are_tried_again(load, fault, make):
    server, reward = make(load, faults=[fault, fault])
    scores = await reward.score(CONVERSATION, TWO)
    assert scores[0] > scores[1]
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        ("500", "failed with status 500: fault 500", 2),
        ("429", "max_concurrency", 2),
        ("drop", "No .* server answers", 2),
        ("401", "API key", 1),
        ("404", "no such path", 1),
        ("malformed", "not JSON", 1),
        ("html", "<html>hello", 1),
        ("fewer", "1 (scores|predictions)? ?for 2 texts", 1),
        ("more", "3 scores for 2 texts", 1),
        ("text", "'high' where a score should be", 1),
    ],
)
@pytest.mark.parametrize("load", LOADS)
async def test_lasting_faults_are_errors(load, fault, message, requests, make):
    server, reward = make(load, always=fault, options={"attempts": 2})
    with pytest.raises(RewardError, match=message):
        await reward.score(CONVERSATION, TWO)
    assert len(server.bodies) == requests


@pytest.mark.parametrize("load", [load_vllm, load_vllm_pooling, load_sglang, load_tei])
async def test_two_outputs_are_no_reward(load, make):
    _, reward = make(load, always="two outputs")
    with pytest.raises(RewardError, match="a reward is one number"):
        await reward.score(CONVERSATION, TWO)


@pytest.mark.parametrize("load", LOADS)
async def test_null_is_nan(load, make):
    _, reward = make(load, faults=["null"])
    first, second = await reward.score(CONVERSATION, TWO)
    assert math.isnan(first)
    assert second < 0


async def test_nan_of_tei_costs_no_other_its_score(make):
    """TEI refuses a whole batch in which one score is NaN."""
    server, reward = make(load_tei, score_ids=lambda ids: math.nan if ids[-2:-1] == ids[-3:-2] else 1.0)
    server.encode = lambda text, special: [*text.removesuffix("<|end|>").encode(), 0]
    scores = await reward.score(CONVERSATION, ["ab", "aa", "ba"])
    assert (scores[0], math.isnan(scores[1]), scores[2]) == (1.0, True, 1.0)
    assert len(server.bodies) == 4


async def test_a_hanging_server_is_a_timeout(make):
    server, reward = make(load_vllm, always="hang", options={"timeout": 0.2})
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"did not answer within 0\.2 s"):
        await reward.score(CONVERSATION, ONE)
    assert time.monotonic() - began < 3
    assert len(server.bodies) == 1


async def test_no_server(make, llama):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    make(load_sglang)
    reward = load_sglang(f"http://127.0.0.1:{port}#rm", tokenizer=str(llama.folder), attempts=2, retry_wait=0)
    with pytest.raises(RewardError, match="No SGLang server answers at http") as caught:
        await reward.score(CONVERSATION, ONE)
    assert "Is it running" in caught.value.hint


async def test_wrong_model(make, llama):
    server, _ = make(load_vllm)
    reward = load_vllm(f"{server.url}#other", tokenizer=str(llama.folder))
    with pytest.raises(RewardError, match="does not know the model: The model `other` does not exist"):
        await reward.score(CONVERSATION, ONE)


async def test_wrong_path(make, llama):
    server, _ = make(load_vllm)
    reward = load_sglang(f"{server.url}/nothing#rm", tokenizer=str(llama.folder))
    with pytest.raises(RewardError, match="no such path"):
        await reward.score(CONVERSATION, ONE)


async def test_api_key(make):
    _, without = make(load_tei, api_key="secret")
    with pytest.raises(RewardError, match="does not accept the API key"):
        await without.score(CONVERSATION, ONE)
    _, reward = make(load_tei, api_key="secret", options={"api_key": "secret"})
    assert (await reward.score(CONVERSATION, ONE))[0] < 0


async def test_the_wait_that_a_server_asks_for(make):
    _, reward = make(load_vllm, faults=["429"], retry_after="0.3")
    began = time.monotonic()
    await reward.score(CONVERSATION, ONE)
    assert time.monotonic() - began >= 0.3


async def test_requests_in_flight_are_bounded(make):
    server, reward = make(load_sglang, seconds=0.02, options={"batch_size": 1, "max_concurrency": 3})
    texts = [f"text {number}" for number in range(9)]
    await asyncio.gather(*(reward.score(CONVERSATION, texts) for _ in range(3)))
    assert server.most_in_flight == 3


async def test_one_failure_cancels_the_rest(make):
    server, reward = make(load_sglang, seconds=0.05, faults=["404"], options={"batch_size": 1, "max_concurrency": 2})
    with pytest.raises(RewardError, match="no such path"):
        await reward.score(CONVERSATION, [f"text {number}" for number in range(50)])
    await asyncio.sleep(0.1)
    assert len(server.bodies) < 10


def test_one_event_loop_after_another(make):
    server, reward = make(load_vllm)
    scores = [asyncio.run(reward.score(CONVERSATION, TWO)) for _ in range(3)]
    assert scores[0] == scores[1] == scores[2]
    assert len(server.bodies) == 3


def test_several_event_loops_at_once(make):
    _, reward = make(load_tei, seconds=0.01, options={"batch_size": 1, "max_concurrency": 1})
    results: dict[int, list[float]] = {}

    def run(number: int) -> None:
        results[number] = asyncio.run(reward.score(CONVERSATION, TWO))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 4
    assert len({tuple(scores) for scores in results.values()}) == 1
