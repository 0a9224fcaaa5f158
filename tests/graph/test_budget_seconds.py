"""`budget_seconds` interrupts whatever a run waits for, and the run ends with what it has."""

import asyncio
import time

import pytest
from langchain_openai import ChatOpenAI

from tests.tpo_script import number_reward, server_reply
from tpo_graph import BudgetError, create_tpo_graph
from tpo_graph.rewards.judge.pointwise import JudgeReward
from tpo_graph.testing import FaultServer

NEVER = 60.0
BUDGET = 1.0


@pytest.fixture
def serve():
    """Starts servers that answer so many requests and then hang, with a chat model of each."""
    servers = []

    def start(answered: int, answer=server_reply):
        script = [None] * answered + ["hang"] * 20
        servers.append(FaultServer(answer, script=script).__enter__())
        return servers[-1], ChatOpenAI(model="any", base_url=servers[-1].url, api_key="any")

    yield start
    for server in servers:
        server.stop()


def timed(policy, reward=None, **settings):
    began = time.monotonic()
    graph = create_tpo_graph(policy, reward or number_reward())
    result = graph.invoke({"query": "q"}, context={"budget_seconds": BUDGET, "on_failure": "raise", **settings})
    assert BUDGET <= time.monotonic() - began < BUDGET + 2
    return result


@pytest.mark.parametrize(("answered", "phase"), [(1, "loss"), (2, "gradient"), (3, "update")])
def test_a_hang_of_the_policy_ends_with_the_best_so_far(serve, answered, phase):
    server, policy = serve(answered)
    result = timed(policy)
    assert (result["stop_reason"], result["answer"]) == ("budget", "cand 4")
    assert next((record["phase"], record["reason"]) for record in result["failures"]) == (phase, "out_of_time")
    assert sum(used["requests"] for used in result["usage"].values()) == len(server.requests)


class SlowReward:
    """Hangs from its second call on."""

    calls = 0

    async def score(self, messages, responses):
        self.calls += 1
        if self.calls > 1:
            await asyncio.sleep(NEVER)
        return [float(text.split()[-1]) for text in responses]


class BlockedReward(SlowReward):
    """The same in a plain function."""

    def score(self, messages, responses):
        self.calls += 1
        if self.calls > 1:
            time.sleep(BUDGET + 1)
        return [float(text.split()[-1]) for text in responses]


@pytest.mark.parametrize("reward", [SlowReward, BlockedReward])
def test_a_hang_of_the_reward_ends_with_the_best_so_far_and_keeps_the_texts(serve, reward):
    result = timed(serve(100)[1], reward())
    assert (result["stop_reason"], result["answer"]) == ("budget", "cand 4")
    kept = [record["text"] for record in result["failures"] if record["reason"] == "out_of_time"]
    assert len(kept) == 5


def test_grades_that_a_judge_has_given_are_kept(serve):
    _, model = serve(10, lambda request, number: "8" if "rev" in request.text else "3")
    result = timed(serve(100)[1], JudgeReward(model))  # whose first request finds out that there are no logprobs
    assert result["stop_reason"] == "budget"
    assert [candidate["reward"] for candidate in result["cache"]] == [3.0] * 5 + [8.0] * 4


@pytest.mark.parametrize("answered", [3, 5 + 2 + 2])
def test_completions_that_arrived_are_scored(serve, answered):
    _, policy = serve(answered)
    result = timed(policy.with_fallbacks([]))  # one request for each
    assert (result["stop_reason"], len(result["cache"])) == ("budget", 3 if answered == 3 else 7)


def test_without_a_first_completion_it_is_an_error_that_says_what_was_spent(serve):
    _, policy = serve(0)
    with pytest.raises(BudgetError, match=r"budget_seconds=1\b") as caught:
        timed(policy)
    assert caught.value.usage["requests"] == 1


def test_a_draft_is_something_to_end_with(serve):
    _, policy = serve(0)
    graph = create_tpo_graph(policy, number_reward())
    result = graph.invoke({"query": "q", "drafts": ["draft 3"]}, context={"budget_seconds": 0.3})
    assert (result["stop_reason"], result["answer"]) == ("budget", "draft 3")
