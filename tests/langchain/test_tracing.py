"""What tracers and counters of tokens see of a run: each request once, under the run that sent it, and its end."""

import asyncio
import re

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.langchain import _get_usage_metadata_from_generations

from tests.langchain.test_streaming import WAYS, call
from tests.langchain.test_tools import look_up
from tests.langchain.tool_policy import calling, tool_policy
from tests.servers import ChatServer
from tests.tpo_script import number_reward, server_reply
from tpo_graph import BudgetError, PolicyError, RewardError, create_tpo_graph
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.langchain.middleware import TPOMiddleware
from tpo_graph.rewards.judge.pointwise import JudgeReward


class CountingServer(ChatServer):
    """Adds up the tokens of everything that it has answered."""

    def __init__(self, **options):
        super().__init__(server_reply, **options)
        self.tokens = 0

    def _completion(self, request, fault):
        completion = super()._completion(request, fault)
        self.tokens += completion["usage"]["total_tokens"]
        return completion


@pytest.fixture
def server():
    with CountingServer() as server:
        yield server


class Trace(BaseTracer):
    """Keeps every run, as a tracer that sends them somewhere would see it, and those that have not ended."""

    def __init__(self):
        super().__init__()
        self.roots, self.pending = [], {}

    def _persist_run(self, run):
        self.roots.append(run)

    def _start_trace(self, run):
        super()._start_trace(run)
        self.pending[run.id] = run

    def _end_trace(self, run):
        self.pending.pop(run.id)
        super()._end_trace(run)

    def models(self):
        """The runs of chat models, the outermost first."""
        waiting, found = list(self.roots), []
        while waiting:
            run = waiting.pop(0)
            found += [run] if run.run_type in ("llm", "chat_model") else []
            waiting += run.child_runs
        return found

    def tokens(self):
        """The sum of what LangSmith's own tracer reads off each run of a model."""
        counts = [
            _get_usage_metadata_from_generations((run.outputs or {}).get("generations", [])) for run in self.models()
        ]
        return sum(count["total_tokens"] for count in counts if count)

    def path(self, run):
        """Names from the outermost run down to this one."""
        names = {found.id: found for root in self.roots for found in self._inside(root)}
        path = []
        while run is not None:
            path.append(run.name)
            run = names.get(run.parent_run_id)
        return path[::-1]

    def _inside(self, run):
        return [run, *(found for child in run.child_runs for found in self._inside(child))]


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("way", WAYS)
def test_the_tokens_of_a_chat_model_count_once(server, chat_openai, way, n):
    trace, model = Trace(), ChatTPO(policy=chat_openai(server), reward=number_reward(), n=n, depth=1)
    with get_usage_metadata_callback() as counted:
        call(way, model, {"callbacks": [trace]})
    assert server.tokens > 0
    assert {name: used["total_tokens"] for name, used in counted.usage_metadata.items()} == {"scripted": server.tokens}
    assert trace.tokens() == server.tokens
    assert trace.pending == {}


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
def test_the_tokens_of_a_graph_count_once(server, chat_openai, way, n):
    trace, graph = Trace(), create_tpo_graph(chat_openai(server), number_reward())
    bound = (lambda text: {"query": text}) | graph.with_config(configurable={"n": n, "depth": 1}).bind()
    with get_usage_metadata_callback() as counted:
        call(way, bound, {"callbacks": [trace], "recursion_limit": 100})
    assert counted.usage_metadata["scripted"]["total_tokens"] == trace.tokens() == server.tokens > 0
    assert len(server.requests) == 4


def test_the_answer_still_tells_the_tokens_of_the_whole_run(server, chat_openai):
    model = ChatTPO(policy=chat_openai(server), reward=number_reward(), depth=1)
    answer = model.invoke("q")
    assert answer.usage_metadata["total_tokens"] == server.tokens
    chunks = list(model.stream("q"))
    assert (
        sum(chunks[1:], chunks[0]).usage_metadata["total_tokens"]
        == server.tokens - answer.usage_metadata["total_tokens"]
    )


def test_a_try_that_failed_is_a_run_that_failed_and_costs_no_tokens(server, chat_openai):
    server.script[:] = ["502"]
    trace, model = Trace(), ChatTPO(policy=chat_openai(server), reward=number_reward(), mode="bon", max_retries=1)
    with get_usage_metadata_callback() as counted:
        model.invoke("q", {"callbacks": [trace]})
    assert [bool(run.error) for run in trace.models()] == [False, True, False]
    assert counted.usage_metadata["scripted"]["total_tokens"] == trace.tokens() == server.tokens


def test_a_call_of_a_tool_counts_once():
    trace = Trace()
    model = ChatTPO(policy=tool_policy(calling()), reward=number_reward()).bind_tools([look_up])
    with get_usage_metadata_callback() as counted:
        answer = model.invoke("q", {"callbacks": [trace]})
    assert {name: used["total_tokens"] for name, used in counted.usage_metadata.items()} == {"inner": 10}
    assert trace.tokens() == answer.usage_metadata["total_tokens"] == 10


def test_every_request_is_below_its_node(server, chat_openai):
    trace = Trace()
    ChatTPO(policy=chat_openai(server), reward=number_reward(), depth=1).invoke("q", {"callbacks": [trace]})
    outer, *inner = trace.models()
    assert trace.path(outer) == ["ChatTPO"]
    assert [trace.path(run) for run in inner] == [
        ["ChatTPO", "tpo", node, "ChatOpenAI"] for node in ("sample", "loss", "gradient", "update")
    ]
    assert all(run.end_time for run in (outer, *inner))


ENDED = re.compile(r"CancelledError.*no answer within 0\.[23]")

WRAPS = {
    "alone": lambda policy: policy,
    "with fallbacks": lambda policy: policy.with_fallbacks([policy]),
    "with retry": lambda policy: policy.with_retry(stop_after_attempt=1),
}


@pytest.mark.parametrize("limit", [{"timeout": 0.3}, {"budget_seconds": 0.3}], ids=["timeout", "budget"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_request_that_a_limit_ends_ends_in_the_trace(server, chat_openai, wrap, limit):
    server.faults = {"hang": 1.0}
    trace, graph = Trace(), create_tpo_graph(WRAPS[wrap](chat_openai(server)), number_reward())
    with pytest.raises((PolicyError, BudgetError)):
        graph.invoke({"query": "q"}, {"callbacks": [trace]}, context={"max_retries": 0, "n": 1, **limit})
    models = trace.models()
    assert models and all(ENDED.search(run.error) for run in models)
    assert trace.pending == {}


def test_and_so_does_a_request_to_a_judge(server, chat_openai):
    server.faults = {"hang": 1.0}
    trace, judge = Trace(), JudgeReward(chat_openai(server))
    graph = create_tpo_graph(tool_policy("a", "b"), judge)
    with pytest.raises(RewardError):
        graph.invoke({"query": "q"}, {"callbacks": [trace]}, context={"max_retries": 0, "n": 2, "timeout": 0.3})
    assert [bool(ENDED.search(run.error or "")) for run in trace.models()] == [False] * 2 + [True] * 2
    assert trace.pending == {}


async def test_and_one_whose_caller_leaves(server, chat_openai):
    server.faults = {"hang": 1.0}
    trace, model = Trace(), ChatTPO(policy=chat_openai(server), reward=number_reward())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.ainvoke("q", {"callbacks": [trace]}), 0.3)
    assert [run.name for run in trace.models()] == ["ChatTPO", "ChatOpenAI"]
    assert trace.pending == {}


def test_the_tokens_of_an_agent_with_the_middleware_count_once(server, chat_openai):
    trace = Trace()
    agent = create_agent(chat_openai(server), middleware=[TPOMiddleware(reward=number_reward(), depth=1)])
    with get_usage_metadata_callback() as counted:
        state = agent.invoke({"messages": [("user", "q")]}, {"callbacks": [trace]})
    assert counted.usage_metadata["scripted"]["total_tokens"] == trace.tokens() == server.tokens
    assert state["messages"][-1].usage_metadata["total_tokens"] == server.tokens
