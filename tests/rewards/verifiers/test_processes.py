"""The processes that checks run in: used again, killed at the time limit, quick to start, and gone at the end."""

import asyncio
import os
import threading
import time

import pytest

from tests.fresh_process import run_script
from tpo_graph import RewardError
from tpo_graph.rewards.verifiers.processes import Checkers, CheckKilledError

pytestmark = pytest.mark.subprocess

MATCHES = "__main__:count_of_matches_is_right"
QUICK = {"pattern": "a", "whole": False, "at_least": 3, "at_most": 3, "text": "banana"}
ENDLESS = {**QUICK, "pattern": "(a+)+$", "text": "a" * 60 + "b"}


@pytest.fixture
def checkers():
    checkers = Checkers(processes=1)
    yield checkers
    checkers.close()


async def test_a_check_that_hangs_is_killed_and_the_next_one_works(checkers):
    first = await checkers.check("os:getpid", {}, seconds=5)
    assert await checkers.check("os:getpid", {}, seconds=5) == first != os.getpid()
    start = time.perf_counter()
    with pytest.raises(CheckKilledError) as caught:
        await checkers.check(MATCHES, ENDLESS, seconds=0.3)
    assert caught.value.reason == "time"
    assert time.perf_counter() - start < 3
    assert await checkers.check(MATCHES, QUICK, seconds=5) is True
    assert await checkers.check("os:getpid", {}, seconds=5) != first


async def test_a_child_that_dies_in_a_check_is_reported_and_replaced(checkers):
    with pytest.raises(CheckKilledError) as caught:
        await checkers.check("os:abort", {}, seconds=5)
    assert caught.value.reason == "crash"
    assert await checkers.check(MATCHES, QUICK, seconds=5) is True


async def test_a_child_that_died_while_idle_is_not_blamed_on_the_next_check(checkers):
    pid = await checkers.check("os:getpid", {}, seconds=5)
    os.kill(pid, 9)
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert await checkers.check(MATCHES, QUICK, seconds=5) is True


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("no_such_module:f", {}, "can't run it: ModuleNotFoundError"),
        ("json:no_such", {}, "can't run it: AttributeError"),
        ("os:getpid", {"x": 1}, "failed: TypeError"),
    ],
)
async def test_what_a_check_raises_is_an_error_and_the_next_one_works(checkers, function, arguments, message):
    with pytest.raises(RewardError, match=message):
        await checkers.check(function, arguments, seconds=5)
    assert await checkers.check(MATCHES, QUICK, seconds=5) is True


async def test_a_warm_up_has_its_own_time_limit(checkers):
    assert await checkers.check(MATCHES, QUICK, seconds=0.2, warm_up={**ENDLESS, "text": "a" * 20 + "b"}) is True
    with pytest.raises(RewardError, match=r"did not start within 0\.001 s \(time\)"):
        await Checkers(processes=1, start_seconds=0.001).check(MATCHES, QUICK, seconds=5)


async def test_a_library_that_prints_does_not_disturb(checkers):
    assert await checkers.check("builtins:print", {"sep": ""}, seconds=5) is None
    assert await checkers.check(MATCHES, QUICK, seconds=5) is True


def test_one_set_of_children_serves_several_event_loops(checkers):
    results = []

    def use():
        results.append(asyncio.run(checkers.check(MATCHES, QUICK, seconds=5)))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, True, True]


async def test_cancelled_checks_do_not_run(checkers):
    await checkers.check(MATCHES, QUICK, seconds=5)
    hanging = asyncio.create_task(checkers.check(MATCHES, ENDLESS, seconds=0.5))
    queued = [asyncio.create_task(checkers.check(MATCHES, ENDLESS, seconds=5)) for _ in range(5)]
    await asyncio.sleep(0)  # all of them are handed over; one runs
    for task in queued:
        task.cancel()
    with pytest.raises(CheckKilledError):
        await hanging
    start = time.perf_counter()
    assert await checkers.check(MATCHES, QUICK, seconds=5) is True
    assert time.perf_counter() - start < 3


def test_children_end_with_their_owner():
    checkers = Checkers(processes=1)
    pid = asyncio.run(checkers.check("os:getpid", {}, seconds=5))
    checkers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_child_starts_with_the_standard_library_alone(checkers):
    await checkers.check(MATCHES, QUICK, seconds=5)
    names = await checkers.check("tests.rewards.verifiers.child_modules:imported", {}, seconds=5)
    assert {"tpo_graph", "asyncio", "typing_extensions"}.isdisjoint(names)


def test_a_script_without_a_main_guard_ends_clean():
    """Children are started again and again by scripts that people write without `if __name__ == "__main__"`."""
    result = run_script(
        """
        import asyncio
        from tpo_graph.rewards.verifiers import RegexVerifier
        # watch
        print(asyncio.run(RegexVerifier("a+").score([], ["a", "b"])))
        """,
        stuck_after=20,
        flags=("-X", "dev", "-W", "error"),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "[1.0, 0.0]\n", "")


def test_a_forked_process_starts_children_of_its_own():
    result = run_script(
        """
        import asyncio, os
        from tpo_graph.rewards.verifiers import RegexVerifier
        verifier = RegexVerifier("a+")
        # watch
        assert asyncio.run(verifier.score([], ["a"])) == [1.0]
        child = os.fork()
        assert asyncio.run(verifier.score([], ["b", "a"])) == [0.0, 1.0]
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print("both")
        """,
        stuck_after=20,
    )
    assert (result.returncode, result.stdout) == (0, "both\n"), result.stderr
