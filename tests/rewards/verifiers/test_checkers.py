import asyncio
import os
import threading
import time

import pytest

from tpo_graph import RewardError
from tpo_graph.rewards.verifiers.checkers import Checkers
from tpo_graph.rewards.verifiers.child_process import CheckKilledError


@pytest.fixture
def checkers():
    made = Checkers(processes=1)
    yield made
    made.close()


JSON = "tpo_graph.rewards.verifiers.rules:count_matches"
CALM = {"pattern": "a", "where": "anywhere", "text": "banana"}
ENDLESS = {"pattern": "(a+)+$", "where": "anywhere", "text": "a" * 60 + "b"}


async def test_a_child_is_used_again(checkers):
    first = await checkers.check("os:getpid", {}, seconds=5)
    assert await checkers.check("os:getpid", {}, seconds=5) == first != os.getpid()


async def test_a_check_that_hangs_is_killed_and_the_next_one_works(checkers):
    before = await checkers.check("os:getpid", {}, seconds=5)
    began = time.perf_counter()
    with pytest.raises(CheckKilledError) as caught:
        await checkers.check(JSON, ENDLESS, seconds=0.3)
    assert caught.value.reason == "time"
    assert time.perf_counter() - began < 3
    assert await checkers.check(JSON, CALM, seconds=5) == 3
    assert await checkers.check("os:getpid", {}, seconds=5) != before


async def test_a_child_that_dies_is_told_apart_and_replaced(checkers):
    with pytest.raises(CheckKilledError) as caught:
        await checkers.check("os:abort", {}, seconds=5)
    assert caught.value.reason == "crash"
    assert await checkers.check(JSON, CALM, seconds=5) == 3


async def test_a_child_that_died_while_idle_is_not_blamed_on_the_next_check(checkers):
    pid = await checkers.check("os:getpid", {}, seconds=5)
    os.kill(pid, 9)
    await asyncio.sleep(0.1)
    assert await checkers.check(JSON, CALM, seconds=5) == 3


@pytest.mark.parametrize(
    ("function", "arguments", "told"),
    [
        ("no_such_module:f", {}, "ModuleNotFoundError"),
        ("json:no_such", {}, "AttributeError"),
        ("os:getpid", {"x": 1}, "TypeError"),
    ],
)
async def test_what_a_check_raises_is_an_error_and_leaves_the_child_alive(checkers, function, arguments, told):
    with pytest.raises(RewardError, match=told):
        await checkers.check(function, arguments, seconds=5)
    assert await checkers.check(JSON, CALM, seconds=5) == 3


async def test_start_that_takes_too_long_is_an_error():
    with pytest.raises(RewardError, match="did not start within"):
        await Checkers(processes=1, start_seconds=0.001).check(JSON, CALM, seconds=5)


async def test_a_library_that_prints_does_not_disturb(checkers):
    assert await checkers.check("builtins:print", {"sep": ""}, seconds=5) is None
    assert await checkers.check(JSON, CALM, seconds=5) == 3


def test_one_set_of_children_serves_several_event_loops(checkers):
    results = []

    def use():
        results.append(asyncio.run(checkers.check(JSON, CALM, seconds=5)))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [3, 3, 3]


async def test_cancelled_checks_do_not_run(checkers):
    await checkers.check(JSON, CALM, seconds=5)
    hanging = asyncio.create_task(checkers.check(JSON, ENDLESS, seconds=0.5))
    queued = [asyncio.create_task(checkers.check(JSON, ENDLESS, seconds=5)) for _ in range(5)]
    await asyncio.sleep(0.1)
    for task in queued:
        task.cancel()
    with pytest.raises(CheckKilledError):
        await hanging
    began = time.perf_counter()
    assert await checkers.check(JSON, CALM, seconds=5) == 3
    assert time.perf_counter() - began < 3


def test_children_end_with_their_owner():
    made = Checkers(processes=1)
    pid = asyncio.run(made.check("os:getpid", {}, seconds=5))
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


HEAVY = ("langchain_core", "pydantic", "torch", "transformers", "math_verify", "jsonschema")


async def test_a_child_starts_with_nothing_heavy(checkers):
    names = await checkers.check("tests.rewards.verifiers.child_modules:loaded", {}, seconds=5)
    assert set(HEAVY).isdisjoint(names)
