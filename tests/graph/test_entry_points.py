"""A run from sync and async code, from threads, loops and other graphs, many times in one process."""

import asyncio
import contextvars
import gc
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import ConfigurationError, TPOSettings, create_tpo_graph

QUERY = {"query": "q"}


def graph(**options):
    return create_tpo_graph(scripted_policy(), number_reward(), **options)


def test_all_four_ways_give_the_same_run():
    async def by_astream():
        return [state async for state in graph().astream(QUERY, stream_mode="values")][-1]

    results = [
        graph().invoke(QUERY),
        list(graph().stream(QUERY, stream_mode="values"))[-1],
        asyncio.run(graph().ainvoke(QUERY)),
        asyncio.run(by_astream()),
    ]
    assert len({result["answer"] for result in results}) == 1
    caches = [result["cache"] for result in results]
    assert caches == [caches[0]] * 4


async def test_sync_calls_inside_a_running_event_loop():
    assert graph().invoke(QUERY)["stop_reason"] == "depth"
    assert len(list(graph().stream(QUERY, stream_mode="updates"))) == 13


async def test_ainvoke_leaves_the_loop_free():
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.005)

    class Blocks:
        def score(self, messages, responses):
            time.sleep(0.1)
            return [float(len(text)) for text in responses]

    ticking = asyncio.create_task(tick())
    await create_tpo_graph(scripted_policy(), Blocks()).ainvoke(QUERY, context={"mode": "bon"})
    ticking.cancel()
    assert ticks >= 5


def test_many_event_loops_one_after_another_with_one_server(chat_server, chat_openai):
    server = chat_server()
    tpo = create_tpo_graph(chat_openai(server), number_reward())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            assert asyncio.run(tpo.ainvoke(QUERY))["stop_reason"] == "depth"
            assert tpo.invoke(QUERY)["stop_reason"] == "depth"
        gc.collect()
    assert len(server.requests) == 8 * 7


def test_two_models_of_two_servers_share_a_process(chat_server, chat_openai):
    graphs = [create_tpo_graph(chat_openai(chat_server()), number_reward()) for _ in range(2)]
    for tpo in graphs * 2:
        assert asyncio.run(tpo.ainvoke(QUERY, context={"mode": "bon"}))["stop_reason"] == "bon"


def test_sync_and_async_runs_in_several_threads_at_once(chat_server, chat_openai):
    tpo = create_tpo_graph(chat_openai(chat_server(seconds=0.01)), number_reward())

    def one(place):
        result = tpo.invoke(QUERY) if place % 2 else asyncio.run(tpo.ainvoke(QUERY))
        return result["stop_reason"], len(result["cache"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(16))) == [("depth", 15)] * 16
    gc.collect()


@pytest.mark.parametrize("wrap", [lambda model: model.with_config(tags=["mine"]), lambda model: model.bind(user="me")])
def test_bound_policies_work_in_one_event_loop_after_another(chat_server, chat_openai, wrap):
    tpo = create_tpo_graph(wrap(chat_openai(chat_server())), number_reward())
    for _ in range(2):
        assert asyncio.run(tpo.ainvoke(QUERY))["stop_reason"] == "depth"
    assert tpo.invoke(QUERY)["stop_reason"] == "depth"


async def test_fifty_runs_at_once(chat_server, chat_openai):
    server = chat_server(seconds=0.02)
    tpo = create_tpo_graph(chat_openai(server), number_reward())
    results = await asyncio.gather(*(tpo.ainvoke({"query": f"q{place}"}) for place in range(50)))
    assert [result["stop_reason"] for result in results] == ["depth"] * 50
    assert [result["messages"][0].content for result in results] == [f"q{place}" for place in range(50)]
    assert len(server.requests) == 50 * 7
    assert server.most_in_flight > 10
    for result in results:
        assert len(result["cache"]) == 15
        assert sum(used["requests"] for used in result["usage"].values()) == 7


class Outer(TypedDict):
    answer: str


def outer_graph(body):
    builder = StateGraph(Outer)
    builder.add_node("ask", body)
    builder.add_edge(START, "ask")
    return builder.compile()


async def test_a_sync_call_inside_an_async_node_of_another_graph():
    inner = graph()

    async def ask(state):
        return {"answer": inner.invoke(QUERY)["answer"]}

    assert (await outer_graph(ask).ainvoke({"answer": ""}))["answer"] == "rev 18"


def test_a_sync_call_inside_a_node_of_a_sync_run():
    inner = graph()

    async def loss(state):
        return {"loss": inner.invoke(QUERY, context={"mode": "bon"})["answer"], "gradient": ""}

    result = graph(nodes={"loss": loss}).invoke(QUERY, context={"depth": 1})
    assert result["trajectory"][-1]["loss"] == "cand 4"


async def test_cancelling_a_run_ends_its_request(chat_server, chat_openai):
    server = chat_server(always="hang")
    tpo = create_tpo_graph(chat_openai(server), number_reward())
    running = asyncio.create_task(tpo.ainvoke(QUERY))
    await asyncio.to_thread(server.asked.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for _ in range(200):
        if server.disconnected:
            break
        await asyncio.sleep(0.01)
    assert server.disconnected == len(server.requests) == 1


async def test_a_run_after_a_cancelled_one_works(chat_server, chat_openai):
    server = chat_server(faults=["hang"])
    tpo = create_tpo_graph(chat_openai(server), number_reward())
    cancelled = asyncio.create_task(tpo.ainvoke(QUERY))
    assert await asyncio.to_thread(server.asked.wait, 60)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (await tpo.ainvoke(QUERY))["stop_reason"] == "depth"


def test_context_variables_of_the_caller_reach_a_sync_run():
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen = []

    class Reward:
        async def score(self, messages, responses):
            seen.append(tenant.get())
            return [float(len(text)) for text in responses]

    tenant.set("somebody")
    create_tpo_graph(scripted_policy(), Reward()).invoke(QUERY, context={"mode": "bon"})
    assert seen == ["somebody"]


def test_no_thread_is_left_for_each_run():
    tpo = graph()
    tpo.invoke(QUERY)
    before = threading.active_count()
    for _ in range(5):
        tpo.invoke(QUERY)
    assert threading.active_count() <= before


def test_a_large_depth_needs_no_recursion_limit():
    result = graph().invoke(QUERY, context={"depth": 20, "n": 2})
    assert (result["step"], len(result["cache"])) == (20, 42)


@pytest.mark.parametrize(("settings", "needed"), [({"depth": 5}, 29), ({"depth": 9}, 49)])
def test_inside_a_chain_a_run_that_is_too_deep_is_refused_before_anything_is_paid_for(settings, needed):
    policy = scripted_policy()
    tpo = create_tpo_graph(policy, number_reward(), settings=TPOSettings(**settings))
    chain = RunnableLambda(lambda query: {"query": query}) | tpo
    message = f"takes a recursion limit of {needed}, and the one given is 25"
    with pytest.raises(ConfigurationError, match=message) as caught:
        chain.invoke("q")
    assert f'config={{"recursion_limit": {needed}}}' in caught.value.hint
    assert policy.requests == []
    assert chain.invoke("q", {"recursion_limit": needed})["step"] == settings["depth"]


@pytest.mark.parametrize("settings", [{"depth": 4}, {"depth": 99, "mode": "bon"}])
def test_inside_a_chain_a_run_that_fits_needs_no_recursion_limit(settings):
    tpo = create_tpo_graph(scripted_policy(), number_reward(), settings=TPOSettings(**settings))
    assert (RunnableLambda(lambda query: {"query": query}) | tpo).invoke("q")["answer"]


def test_sync_calls_run_on_uvloop_where_it_is_installed():
    uvloop = pytest.importorskip("uvloop")

    loops = []

    async def gradient(state):
        loops.append(asyncio.get_running_loop())
        return {"gradient": "Be short."}

    graph(nodes={"gradient": gradient}).invoke(QUERY)
    assert all(isinstance(loop, uvloop.Loop) for loop in loops)
    assert loops
