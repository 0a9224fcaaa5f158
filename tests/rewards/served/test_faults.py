"""What goes wrong on the wire: passing faults are tried again, lasting ones become errors that say what to do."""

import asyncio
import math
import socket
import threading
import time

import pytest

from tests.rewards.served.conftest import CONVERSATION
from tpo_graph import RewardError, TPOSettings, create_tpo_graph, load_reward
from tpo_graph.policies.retries import limited
from tpo_graph.rewards.base import RunContext, score_responses
from tpo_graph.testing import ScriptedChatModel

pytestmark = pytest.mark.torch

SCHEMES = ["vllm", "vllm-pooling", "sglang", "tei", "openrlhf"]
ONE = ["a text"]
TWO = ["a text", "another"]


def minus_length(ids):
    return -float(len(ids))


@pytest.mark.parametrize(
    "fault", ["500", "429", "drop", "malformed", "html", "fewer", "more", "text", "another form", "all null"]
)
async def test_passing_faults_are_tried_again(fault, connect):
    server, reward = connect("vllm", faults=[fault, fault], score_ids=minus_length)
    assert max(await reward.score(CONVERSATION, TWO)) < 0
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize(
    ("fault", "message", "hint", "requests"),
    [
        ("500", "failed: status 500: fault 500", "server's log", 2),
        ("429", "failed: status 429: fault 429", "Lower max_concurrency", 2),
        ("drop", "the server closed the connection", "server's log", 2),
        ("401", "does not accept the API key", "Pass api_key", 1),
        ("404", "has no such path", "Is it a vLLM server", 1),
        ("malformed", "not JSON", "another server", 2),
        ("html", "<html>hello", "another server", 2),
        ("fewer", "1 scores for 2 texts", "server of that kind", 2),
        ("two outputs", "has 2 outputs", "server of that kind", 1),
    ],
)
async def test_lasting_faults_are_errors(fault, message, hint, requests, connect):
    server, reward = connect("vllm", always=fault, options={"attempts": 2})
    with pytest.raises(RewardError, match=message) as caught:
        await reward.score(CONVERSATION, TWO)
    assert hint in caught.value.hint
    assert len(server.bodies) == requests


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fewer", "1 scores for 2 texts"),
        ("more", "3 scores for 2 texts"),
        ("text", "'high' where a score should be"),
        ("two outputs", "has 2 outputs for a text; a reward is one number"),
        ("another form", 'is not (a list|an object) .*: {"object": "other"}'),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_answers_in_another_form_are_errors(scheme, fault, message, connect):
    _, reward = connect(scheme, always=fault, score_ids=minus_length)
    with pytest.raises(RewardError, match=message) as caught:
        await reward.score(CONVERSATION, TWO)
    assert "Is it a server of that kind" in caught.value.hint


async def test_a_chat_completion_without_scores_is_an_error(connect):
    _, reward = connect("nim", attributes=())
    with pytest.raises(RewardError, match="is not a chat completion with pairs of attribute and score"):
        await reward.score(CONVERSATION, ONE)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_null_is_nan(scheme, connect):
    _, reward = connect(scheme, faults=["null"], score_ids=minus_length)
    first, second = await reward.score(CONVERSATION, TWO)
    assert math.isnan(first)
    assert second < 0


async def test_no_number_at_any_attempt_is_nan(connect):
    server, reward = connect("vllm", always="all null", options={"attempts": 2, "activation_field": "use_activation"})
    scoring = await score_responses(reward, CONVERSATION, TWO, RunContext())
    assert all(map(math.isnan, scoring.scores))
    assert set(scoring.reasons.values()) == {"The vLLM server gave no finite number for it."}
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("fault", "reason"), [("500", "failed: status 500"), ("html", "<html>"), ("404", "no such path")]
)
async def test_a_batch_that_fails_costs_the_others_nothing(fault, reason, connect):
    """One request after the other, and the last one fails: what was scored before is kept."""
    options = {"batch_size": 1, "max_concurrency": 1, "attempts": 1}
    server, reward = connect("sglang", faults=[None, None, fault], options=options, score_ids=minus_length)
    scoring = await score_responses(reward, CONVERSATION, ["one", "two", "three"], RunContext())
    assert [math.isnan(score) for score in scoring.scores] == [False, False, True]
    assert reason in scoring.reasons["three"]
    assert len(server.bodies) == 3


async def test_a_run_sets_the_limits_of_requests(connect):
    server, reward = connect("vllm", always="500")
    graph = create_tpo_graph(ScriptedChatModel(["a"]), reward)
    with pytest.raises(RewardError):
        await graph.ainvoke({"messages": CONVERSATION}, context={"n": 1, "mode": "bon", "max_retries": 1})
    assert len(server.bodies) == 2


async def test_nan_of_tei_costs_no_other_its_score(connect):
    """TEI refuses a whole batch in which one score is NaN."""
    server, reward = connect(
        "tei",
        score_ids=lambda ids: math.nan if ids[-2:-1] == ids[-3:-2] else 1.0,
        encode=lambda text, special: [*text.removesuffix("<|end|>").encode(), 0],
    )
    scores = await reward.score(CONVERSATION, ["ab", "aa", "ba"])
    assert (scores[0], math.isnan(scores[1]), scores[2]) == (1.0, True, 1.0)
    assert len(server.bodies) == 4


async def test_a_hanging_server_is_a_timeout(connect):
    server, reward = connect("vllm", always="hang", options={"timeout": 1.0})
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"did not answer in time: .*no answer within 1 s"):
        await reward.score(CONVERSATION, ONE)
    assert time.monotonic() - start < 6
    assert len(server.bodies) == 1


async def test_the_limits_of_a_run_count_here_too(connect):
    server, reward = connect("vllm", always="500")
    with limited(TPOSettings(max_retries=1)), pytest.raises(RewardError, match="status 500"):
        await reward.score(CONVERSATION, ONE)
    assert len(server.bodies) == 2
    _, reward = connect("vllm", always="hang")
    with limited(TPOSettings(timeout=0.2)), pytest.raises(RewardError, match=r"no answer within 0\.2 s"):
        await reward.score(CONVERSATION, ONE)


async def test_an_answer_without_any_number_is_asked_for_again(connect):
    _, reward = connect("vllm", faults=["null"], score_ids=minus_length)
    assert (await reward.score(CONVERSATION, ONE))[0] < 0
    lasting, reward = connect("vllm", always="null", options={"attempts": 2})
    assert math.isnan((await reward.score(CONVERSATION, ONE))[0])
    assert len(lasting.bodies) == 2


async def test_no_server(llama):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    reward = load_reward(f"sglang:http://127.0.0.1:{port}#rm", tokenizer=str(llama.folder), attempts=2, retry_wait=0)
    with pytest.raises(RewardError, match="No SGLang server answers at http") as caught:
        await reward.score(CONVERSATION, ONE)
    assert "Is it running" in caught.value.hint


async def test_wrong_model(connect):
    _, reward = connect("vllm", model="another")
    with pytest.raises(RewardError, match=r"does not know the model: .* The model `rm` does not exist"):
        await reward.score(CONVERSATION, ONE)


async def test_api_key(connect):
    _, without = connect("tei", api_key="secret")
    with pytest.raises(RewardError, match="does not accept the API key"):
        await without.score(CONVERSATION, ONE)
    _, reward = connect("tei", api_key="secret", score_ids=minus_length, options={"api_key": "secret"})
    assert (await reward.score(CONVERSATION, ONE))[0] < 0


async def test_the_wait_that_a_server_asks_for(connect):
    _, reward = connect("vllm", faults=["429"], retry_after="0.3")
    start = time.monotonic()
    await reward.score(CONVERSATION, ONE)
    assert time.monotonic() - start >= 0.3


async def test_requests_in_flight_are_bounded(connect):
    server, reward = connect("sglang", seconds=0.02, options={"batch_size": 1, "max_concurrency": 3})
    texts = [f"text {number}" for number in range(9)]
    await asyncio.gather(*(reward.score(CONVERSATION, texts) for _ in range(3)))
    assert server.most_in_flight == 3


async def test_one_failure_cancels_the_rest(connect):
    server, reward = connect("sglang", seconds=0.05, faults=["404"], options={"batch_size": 1, "max_concurrency": 2})
    with pytest.raises(RewardError, match="no such path"):
        await reward.score(CONVERSATION, [f"text {number}" for number in range(50)])
    await asyncio.sleep(0.1)  # nothing may come any more
    assert len(server.bodies) < 10


def test_several_event_loops_at_once_and_one_after_another(connect):
    server, reward = connect(
        "tei", seconds=0.01, score_ids=minus_length, options={"batch_size": 1, "max_concurrency": 1}
    )
    results: dict[int, list[float]] = {}

    def run(number: int) -> None:
        results[number] = asyncio.run(reward.score(CONVERSATION, TWO))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    run(4)
    assert [tuple(results[number]) for number in range(5)] == [tuple(results[0])] * 5
    assert len(server.bodies) == 10
