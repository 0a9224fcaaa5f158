"""Combinations: scales of a run, weights, gates, and parts that fail or do not apply."""

import asyncio
import math
import statistics
import threading

import pytest
from langchain_core.messages import HumanMessage

from tpo_graph import ConfigurationError, RewardError, TPOSettings, create_tpo_graph
from tpo_graph.rewards import WatchedReward
from tpo_graph.rewards.base import DetailedReward, RunContext, Scoring, highest_reward, score_responses
from tpo_graph.rewards.combinations import Gate, MeanMinusDeviation, Minimum, Part, Scale, WeightedSum
from tpo_graph.rewards.functions import FunctionReward
from tpo_graph.rewards.verifiers.rules import LengthVerifier, RegexVerifier
from tpo_graph.testing import ScriptedChatModel, TableReward

QUERY = [HumanMessage("Why?", id="1")]
NAN = math.nan


def table(**rewards):
    return TableReward(rewards)


def function(**rewards):
    """A reward that does not apply where its table has None."""
    return FunctionReward(lambda response: rewards[response], style="response")


async def scores(reward, texts, messages=QUERY):
    return (await score_responses(reward, messages, list(texts), RunContext())).scores


async def in_run(reward, texts, anchors):
    return (await score_responses(reward, QUERY, list(texts), RunContext(anchors=tuple(anchors)))).scores


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (WeightedSum, [2.0, 0.0, -2.0]),
        (Minimum, [1.0, -0.5, -1.5]),
        (MeanMinusDeviation, [1.0, -0.5, -1.5]),
        (lambda parts: MeanMinusDeviation(parts, penalty=0), [1.0, 0.0, -1.0]),
        (lambda parts: MeanMinusDeviation(parts, penalty=2), [1.0, -1.0, -2.0]),
    ],
)
async def test_standard_scores_are_combined(make, expected):
    # standard scores by these scales: kind 1, 0.5, -0.5 and brief 1, -0.5, -1.5
    kind = Part(table(a=12.0, b=11.0, c=9.0), scale=Scale(10.0, 2.0))
    brief = Part(table(a=0.3, b=0.15, c=0.05), scale=Scale(0.2, 0.1))
    assert await scores(make({"kind": kind, "brief": brief}), "abc") == pytest.approx(expected)


async def test_parts_of_any_scale_count_the_same():
    small, large = {"a": 0.001, "b": 0.002, "c": 0.004}, {"a": -300.0, "b": 500.0, "c": 100.0}
    rewards = await scores(WeightedSum({"small": TableReward(small), "large": TableReward(large)}), "abc")
    expected = [
        sum(
            (part[text] - statistics.fmean(part.values())) / statistics.pstdev(part.values()) for part in (small, large)
        )
        for text in "abc"
    ]
    assert rewards == pytest.approx(expected)


async def test_weights_and_raw_scores():
    reward = WeightedSum({"a": Part(table(x=2.0), 3.0, "raw"), "b": Part(table(x=5.0), -1.0, "raw")})
    assert await scores(reward, "x") == [1.0]


async def test_a_text_keeps_its_reward_in_every_step():
    reward = WeightedSum({"part": table(a=1.0, b=3.0, c=100.0)})
    first = await scores(reward, "ab")
    assert first == [-1.0, 1.0]
    assert await scores(reward, "c") == [98.0]
    assert await scores(reward, "abc") == [*first, 98.0]


async def test_runs_of_the_same_query_have_scales_of_their_own():
    reward = WeightedSum({"part": table(a=1.0, b=3.0, c=5.0)})
    assert await scores(reward, "ab") == [-1.0, 1.0]
    assert await scores(reward, "bc", [HumanMessage("Why?", id="2")]) == [-1.0, 1.0]
    assert await scores(reward, "bc") == [1.0, 3.0]


async def test_forgotten_runs_begin_again():
    reward = WeightedSum({"part": table(a=1.0, b=3.0, c=5.0)}, remembered_runs=1)
    assert await scores(reward, "ab") == [-1.0, 1.0]
    for number in range(3):
        await scores(reward, "ab", [HumanMessage("Why?", id=f"other {number}")])
    assert await scores(reward, "bc") == [-1.0, 1.0]


async def test_with_anchors_the_scale_is_that_of_the_first_step_whoever_asks():
    rewards = {"a": 1.0, "b": 3.0, "c": 5.0, "bad": NAN}
    reward = WeightedSum({"part": TableReward(rewards)})
    first = await in_run(reward, ["a", "b", "bad"], ["a", "b", "bad"])
    assert first[:2] == [-1.0, 1.0]
    assert math.isnan(first[2])
    calls = reward.parts["part"].model.calls
    assert await in_run(reward, ["c"], ["bad", "a", "b"]) == [3.0]
    assert calls[-1] == ["c"]
    # resumed by another process: the first candidates are scored once more
    resumed = WeightedSum({"part": TableReward(rewards)})
    assert await in_run(resumed, ["c"], ["a", "b"]) == [3.0]
    assert await in_run(resumed, ["c", "a"], ["b", "a"]) == [3.0, -1.0]
    assert resumed.parts["part"].model.calls == [["a", "b", "c"], ["c", "a"]]


async def test_anchors_reach_a_combination_inside_a_gate():
    def gate():
        quality = WeightedSum({"part": table(a=1.0, b=3.0, c=5.0)})
        return Gate({"check": table(a=1.0, b=1.0, c=1.0)}, quality)

    whole = gate()
    _, b, c = await in_run(whole, ["a", "b", "c"], ["a", "b"])
    assert await in_run(gate(), ["c"], ["a", "b"]) == [c]
    assert b == 1.75
    assert c == pytest.approx(1.875)


class Judge(DetailedReward):
    """A part that asks a language model."""

    async def score_in_detail(self, messages, responses, run):
        usage = {"requests": len(responses), "input_tokens": 10, "output_tokens": 1, "seconds": 0.0}
        return Scoring([float(len(run.preference) + len(response)) for response in responses], usage)


@pytest.mark.parametrize(
    "make", [lambda judge: Minimum({"one": judge, "two": judge}), lambda judge: Gate({"one": judge}, judge)]
)
async def test_preference_and_cost_pass_through(make):
    run = RunContext(preference="short")
    combination = WeightedSum({"inner": Part(make(Judge()), scale="raw")})
    scoring = await score_responses(combination, QUERY, ["a", "b"], run)
    assert scoring.usage == {"requests": 4, "input_tokens": 20, "output_tokens": 2, "seconds": 0.0}
    scoring = await score_responses(WeightedSum({"judge": Part(Judge(), scale="raw")}), QUERY, ["a"], run)
    assert scoring.scores == [6.0]
    assert scoring.usage == {"requests": 1, "input_tokens": 10, "output_tokens": 1, "seconds": 0.0}


async def test_first_calls_that_race_agree_on_one_scale():
    async def slow(messages, responses):
        await asyncio.sleep(0.01 * len(responses))
        return [{"a": 1.0, "b": 3.0, "c": 9.0}[response] for response in responses]

    reward = WeightedSum({"slow": FunctionReward(slow)})
    two, three = await asyncio.gather(scores(reward, "ab"), scores(reward, "abc"))
    assert two == three[:2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": 5.0, "b": 5.0}, [0.0, 0.0]),
        ({"a": 0.1 + 0.2, "b": 0.3}, [0.0, 0.0]),
        ({"a": 0.0}, [0.0]),
    ],
)
async def test_equal_scores_have_no_deviation(values, expected):
    reward = WeightedSum({"part": TableReward({**values, "later": values["a"] + 1.0})})
    assert await scores(reward, values) == pytest.approx(expected)
    assert await scores(reward, ["later"]) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (WeightedSum, [3.0, 2.0, NAN, None]),
        (Minimum, [1.0, 2.0, NAN, None]),
        (MeanMinusDeviation, [1.0, 2.0, NAN, None]),
    ],
)
async def test_not_applicable_and_not_scored(make, expected):
    one = Part(function(a=1.0, b=2.0, c=NAN, d=None), scale="raw")
    two = Part(function(a=2.0, b=None, c=1.0, d=None), scale="raw")
    rewards = await scores(make({"one": one, "two": two}), "abcd")
    assert [repr(reward) for reward in rewards] == [repr(reward) for reward in expected]


async def test_what_can_not_be_scored_has_no_say_in_the_scale():
    reward = WeightedSum({"one": function(a=1.0, b=3.0, c=50.0), "two": function(a=0.0, b=0.0, c=math.inf)})
    rewards = await scores(reward, "abc")
    assert rewards[:2] == [-1.0, 1.0]
    assert math.isnan(rewards[2])


async def test_a_first_step_without_any_score_fixes_nothing():
    reward = WeightedSum({"part": TableReward({"a": NAN, "b": 1.0, "c": 3.0})})
    assert math.isnan((await scores(reward, "a"))[0])
    assert await scores(reward, "bc") == [-1.0, 1.0]


@pytest.mark.parametrize("make", [WeightedSum, Minimum, MeanMinusDeviation, lambda parts: Gate(parts, table(a=1.0))])
async def test_a_part_that_fails_is_named_and_its_siblings_end(make):
    ended = asyncio.Event()

    async def sleeps(response: str):
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    async def fails(response: str):
        await asyncio.sleep(0.01)
        raise OSError("no route")

    parts = {"sleepy": FunctionReward(sleeps), "broken": FunctionReward(fails)}
    with pytest.raises(RewardError, match=r"Part 'broken': .*OSError: no route"):
        await scores(make(parts), "a")
    assert ended.is_set()


async def test_parts_run_at_the_same_time():
    meeting = asyncio.Barrier(2)

    async def meets(response: str):
        await asyncio.wait_for(meeting.wait(), 5)
        return 1.0

    reward = WeightedSum({"one": FunctionReward(meets), "two": FunctionReward(meets)})
    assert await scores(reward, "a") == [0.0]


async def test_a_part_that_returns_too_few_is_named():
    class Short:
        async def score(self, messages, responses):
            return [1.0]

    with pytest.raises(RewardError, match=r"Part 'short': .*1 rewards for 2 responses"):
        await scores(WeightedSum({"short": Short()}), "ab")


@pytest.mark.parametrize(
    ("checks", "score", "order"),
    [
        ({"one": {"a": 0.0, "b": 1.0, "c": 1.0}}, {"a": 1e9, "b": -1e9, "c": 0.0}, "cba"),
        (
            {"one": {"a": 0.0, "b": 1.0, "c": 1.0}, "two": {"a": 0.0, "b": 0.0, "c": 1.0}},
            {"a": 3.0, "b": 2.0, "c": 1.0},
            "cba",
        ),
        ({"one": {"a": 1.0, "b": 1.0, "c": 1.0}}, {"a": 1e-9, "b": 2e-9, "c": 1e300}, "cba"),
        ({"one": {"a": 0.0, "b": 0.0, "c": None}}, {"a": 1.0, "b": 2.0, "c": 0.0}, "cba"),
        ({"one": {"a": 0.4, "b": 0.5, "c": 0.6}}, {"a": 9.0, "b": 1.0, "c": 2.0}, "cba"),
    ],
)
async def test_gate_orders_by_passes_then_by_score(checks, score, order):
    gate = Gate({name: function(**rewards) for name, rewards in checks.items()}, TableReward(score))
    rewards = dict(zip("abc", await scores(gate, "abc"), strict=True))
    assert "".join(sorted("abc", key=rewards.__getitem__, reverse=True)) == order
    assert len(set(rewards.values())) == 3


async def test_gate_rewards_count_passes():
    gate = Gate(
        {"one": function(a=1.0, b=1.0, c=0.0), "two": function(a=1.0, b=0.0, c=0.0)}, table(a=-1e30, b=0, c=1e30)
    )
    assert [math.floor(reward) for reward in await scores(gate, "abc")] == [2, 1, 0]


async def test_gate_not_applicable_and_not_scored():
    gate = Gate({"check": function(a=NAN, b=None, c=1.0, d=1.0)}, function(a=1.0, b=0.0, c=NAN, d=None))
    rewards = await scores(gate, "abcd")
    assert [repr(reward) for reward in rewards] == ["nan", "1.5", "nan", "None"]


async def test_nothing_to_score():
    for reward in (WeightedSum({"a": table()}), Gate({"a": table()}, table())):
        assert await reward.score(QUERY, []) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum({}), "needs parts"),
        (lambda: Gate({}, table()), "needs checks"),
        (lambda: WeightedSum({"a": 3}), "'int' is neither"),
        (lambda: Part(WatchedReward(table(), table())), "can't be watched"),
        (lambda: Part(table(), weight=NAN), "finite"),
        (lambda: Part(table(), scale="sigmoid"), "allowed: 'standard'"),
        (lambda: Part(table(), scale=Scale(0.0, 0.0)), "above 0"),
        (lambda: Minimum({"a": Part(table(), 2.0)}), "no weights, but a has"),
        (lambda: MeanMinusDeviation({"a": Part(table(), 2.0)}), "no weights, but a has"),
        (lambda: MeanMinusDeviation({"a": table()}, penalty=-1), "0 or more"),
        (lambda: WeightedSum({"a": table()}, remembered_runs=0), "at least 1"),
        (lambda: Gate({"score": table()}, table()), "can't be named 'score'"),
        (lambda: Gate({"a": Part(table())}, table()), "no weights and no scales"),
        (lambda: Gate({"a": table()}, table(), pass_at=NAN), "finite"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_one_combination_serves_several_event_loops():
    reward = WeightedSum({"one": table(a=1.0, b=3.0), "two": FunctionReward(len, style="response")})
    results = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(scores(reward, "ab")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[-1.0, 1.0]] * 4


def test_closing_reaches_the_parts():
    class Closable(TableReward):
        closed = False

        def close(self):
            self.closed = True

    inner = Closable({})
    Gate({"plain": table()}, WeightedSum({"closable": inner})).close()
    assert inner.closed


def test_a_run_of_the_graph_compares_all_steps_on_one_scale():
    """Step 1 finds something far better; scaled by itself it would look average."""
    replies = ["one", "three", "loss", "gradient", "<improved>five words, each of them longer</improved>", "none"]
    raw = {"one": 1.0, "three": 3.0}
    reward = WeightedSum({"part": TableReward(lambda text: raw.get(text, 9.0))})
    settings = TPOSettings(n=2, depth=1, open_tag="<improved>", close_tag="</improved>")
    for _ in range(2):
        graph = create_tpo_graph(ScriptedChatModel(replies), reward, settings=settings)
        result = graph.invoke({"query": "Why?"})
        rewards = {candidate["text"]: candidate["reward"] for candidate in result["cache"]}
        assert rewards["one"] == -1.0
        assert rewards["three"] == 1.0
        assert rewards["five words, each of them longer"] == 7.0
        assert result["answer"] == "five words, each of them longer"


def check(highest=1.0):
    return TableReward({}, highest_reward=highest)


class Foreign:
    async def score(self, messages, responses):
        return [0.0] * len(responses)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (RegexVerifier("a"), 1.0),
        (LengthVerifier(1, 5), 1.0),
        (FunctionReward(len, style="response"), None),
        (FunctionReward(len, style="response", highest_reward=4), 4.0),
        (Foreign(), None),
        (check(math.inf), None),
        (WatchedReward(check(), table()), 1.0),
        (WeightedSum({"a": Part(check(), weight=0.5, scale="raw"), "b": Part(check(3.0), scale=Scale(1.0, 2.0))}), 1.5),
        # a scale that the run's first candidates define; an unknown one; one that is wanted low; one that does best by
        # not applying
        (WeightedSum({"a": check()}), None),
        (WeightedSum({"a": Part(check(), scale="raw"), "b": Part(table(), scale="raw")}), None),
        (WeightedSum({"a": Part(check(), weight=-1.0, scale="raw")}), None),
        (WeightedSum({"a": Part(check(), scale="raw"), "b": Part(check(-1.0), scale="raw")}), None),
        (Minimum({"a": Part(check(), scale="raw"), "b": Part(check(), scale="raw")}), 1.0),
        (Minimum({"a": Part(check(), scale="raw"), "b": Part(check(2.0), scale="raw")}), None),
        (MeanMinusDeviation({"a": Part(check(), scale="raw"), "b": Part(check(), scale="raw")}), 1.0),
        (Gate({"a": table(), "b": table()}, check()), 2.75),
        (Gate({"a": check()}, table()), None),
    ],
)
def test_a_reward_that_knows_its_highest_value_says_so(reward, expected):
    assert highest_reward(reward) == expected


async def test_the_highest_reward_is_what_the_best_response_gets():
    right = TableReward({"a": 0.3}, highest_reward=0.3)
    parts = {name: Part(right, scale="raw") for name in "xyz"}
    for reward in (WeightedSum(parts), Minimum(parts), MeanMinusDeviation(parts), Gate({"c": right}, right, pass_at=0)):
        assert await scores(reward, "a") == [highest_reward(reward)]
