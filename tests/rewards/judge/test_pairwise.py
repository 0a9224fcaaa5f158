"""The judge that compares: both orders, the tournament, and rewards that hold from call to call."""

import asyncio
import itertools
import random

import pytest

from tests.rewards.judge.conftest import CONVERSATION
from tests.tpo_script import scripted_policy
from tpo_graph import create_tpo_graph
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RunContext, RunExtremes, score_responses
from tpo_graph.rewards.judge import JudgePrompt, PairwiseJudgeReward, load_pairwise_judge
from tpo_graph.rewards.judge.pairwise import best_and_worst
from tpo_graph.testing import ScriptedChatModel


async def scores(judge, texts, run):
    return (await score_responses(judge, CONVERSATION, texts, run)).scores


def by_number(responses):
    """Prefers the larger last number, and what stands first a little."""
    first, second = (float(text.split()[-1]) for text in responses)
    share = 0.55 if first == second else 0.85 if first > second else 0.2
    return {"A": share, "B": 1 - share}


def extremes(texts, rewards):
    """The best and the worst by reward, the earliest of equals."""
    return texts[rewards.index(max(rewards))], texts[rewards.index(min(rewards))]


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
async def test_best_and_worst(count, serve):
    server, model = serve(by_number)
    numbers = random.Random(count).sample(range(100), count)
    texts = [f"text {number}" for number in numbers]
    rewards = await PairwiseJudgeReward(model).score(CONVERSATION, texts)
    assert extremes(texts, rewards) == (f"text {max(numbers)}", f"text {min(numbers)}")
    assert rewards.count(max(rewards)) == rewards.count(min(rewards)) == 1
    assert len(server.bodies) <= 3 * count


async def test_both_orders_are_asked_and_averaged(serve):
    server, model = serve(lambda responses: {"A": 0.9, "B": 0.1})  # prefers what stands first, always
    rewards = await PairwiseJudgeReward(model).score(CONVERSATION, ["one", "two"])
    assert rewards == [0.0, 0.0]  # no preference at all
    assert sorted(server.shown) == [["one", "two"], ["two", "one"]]
    body = server.bodies[0]
    assert (body["temperature"], body["logprobs"], body["top_logprobs"]) == (0.0, True, 20)


async def test_rewards_hold_from_call_to_call(serve):
    """As in a run: each step scores new candidates, and best and worst are those of all."""
    _, model = serve(by_number)
    judge = PairwiseJudgeReward(model)
    draw = random.Random(5)
    texts: list[str] = []
    rewards: list[float] = []
    for _ in range(6):
        new = [f"text {draw.uniform(0, 100):.3f}" for _ in range(draw.randint(1, 4))]
        texts += new
        rewards += await judge.score(CONVERSATION, new)
        numbers = [float(text.split()[-1]) for text in texts]
        best, worst = extremes(texts, rewards)
        assert (float(best.split()[-1]), float(worst.split()[-1])) == (max(numbers), min(numbers))


async def test_another_conversation_or_rubric_starts_anew(serve):
    server, model = serve(by_number)
    judge = PairwiseJudgeReward(model)
    await judge.score(CONVERSATION, ["a 1", "b 2"])
    asked = len(server.bodies)
    await judge.score(CONVERSATION[1:], ["a 1", "b 2"])
    await score_responses(judge, CONVERSATION, ["a 1", "b 2"], RunContext(preference="Other."))
    assert len(server.bodies) == 3 * asked
    await judge.score(CONVERSATION, ["c 3", "d 0"])
    assert len(server.bodies) == 4 * asked + 4


async def test_two_calls_for_one_conversation_at_the_same_time(serve):
    _, model = serve(by_number, seconds=0.005)
    judge = PairwiseJudgeReward(model)
    one, two = ["a 1", "b 9", "c 5"], ["d 0", "e 10", "f 6"]
    rewards = await asyncio.gather(judge.score(CONVERSATION, one), judge.score(CONVERSATION, two))
    assert extremes(one + two, rewards[0] + rewards[1]) == ("e 10", "d 0")


async def test_one_response_and_none(serve):
    server, model = serve(by_number)
    judge = PairwiseJudgeReward(model)
    assert await judge.score(CONVERSATION, []) == []
    assert await judge.score(CONVERSATION, ["a 5", "a 5"]) == [0.0, 0.0]
    assert server.bodies == []
    (better,) = await judge.score(CONVERSATION, ["a 7"])
    (worse,) = await judge.score(CONVERSATION, ["a 2"])
    (between,) = await judge.score(CONVERSATION, ["a 6"])
    assert worse < between < better
    assert worse < 0 < better


async def test_usage_and_structured_output(serve):
    server, model = serve(by_number, logprobs="refuse")
    judge = PairwiseJudgeReward(model)
    scoring = await score_responses(judge, CONVERSATION, ["a 1", "b 3", "c 2"], RunContext())
    assert extremes(["a", "b", "c"], scoring.scores) == ("b", "a")
    assert scoring.usage["requests"] == len(server.bodies)
    assert judge.usage == scoring.usage


async def test_a_failure_fails_the_tournament(serve):
    _, model = serve(by_number, failing=("b 3",))
    with pytest.raises(RewardError, match="the server had an error"):
        await PairwiseJudgeReward(model).score(CONVERSATION, ["a 1", "b 3", "c 2"])
    _, model = serve(lambda responses: {"Both": 1.0}, schema="ignore")
    with pytest.raises(RewardError, match=r"answered 'Both'.* from A to B"):
        await PairwiseJudgeReward(model).score(CONVERSATION, ["a 1", "b 3"])


async def test_of_a_pair_one_order_is_enough(serve):
    def verdict(responses):
        return {"Both": 1.0} if responses[0] == "b 3" else by_number(responses)

    _, model = serve(verdict, schema="ignore")
    assert await PairwiseJudgeReward(model).score(CONVERSATION, ["a 1", "b 3"]) == [-1.0, 1.0]


async def test_a_prompt_with_a_reader_and_ties(serve):
    """As in MT-bench: an explanation, then [[A]], [[B]] or [[C]]."""
    prompt = JudgePrompt(
        system="",
        user="[response A $mark begins]\n$first\n[response A $mark ends]\n[response B $mark begins]\n$second\n"
        "[response B $mark ends]",
        pairwise=True,
        labels="ABC",
        reader=r"\[\[([ABC])\]\]",
    )

    def verdict(responses):
        first, second = (int(text.split()[-1]) for text in responses)
        return {"A]]" if first > second else "B]]" if first < second else "C]]": 1.0}

    _, model = serve(verdict, before=("Not [[B]] alone. ", "[["), logprobs="silent")
    judge = PairwiseJudgeReward(model, prompt=prompt)
    assert await judge.score(CONVERSATION, ["a 1", "b 3"]) == [-1.0, 1.0]
    assert await judge.score(CONVERSATION[1:], ["a 2", "b 2"]) == [0.0, 0.0]


def test_names(serve):
    server, _ = serve(by_number)
    judge = load_pairwise_judge(f"server:{server.url}/v1#judge", preference="Larger.")
    assert asyncio.run(judge.score(CONVERSATION, ["a 1", "b 2"])) == [-1.0, 1.0]
    assert "Larger." in server.prompts[0]
    with pytest.raises(ConfigurationError, match="pairwise=True"):
        PairwiseJudgeReward(ScriptedChatModel([]), prompt=JudgePrompt(system="", user="$response"))


@pytest.mark.parametrize("count", range(1, 8))
async def test_tournament_of_every_order(count):
    """Best and worst with at most 1.5 comparisons for each thing: all orders of five things, some of more."""
    orders = list(itertools.permutations(range(count)))
    for order in orders if count < 6 else random.Random(0).sample(orders, 200):
        compared = 0

        async def compare(left: str, right: str) -> float:
            nonlocal compared
            compared += 1
            return 1.0 if int(left) > int(right) else 0.0

        result = await best_and_worst([str(number) for number in order], compare)
        assert (order[result.best], order[result.worst]) == (count - 1, 0)
        assert compared <= max(3 * count // 2, 0)
        assert result.levels[result.best] == max(result.levels)
        assert result.levels[result.worst] == min(result.levels)


async def test_ties_go_to_the_earliest():
    async def compare(left: str, right: str) -> float:
        return 0.5

    result = await best_and_worst(["a", "b", "c", "d", "e"], compare)
    assert (result.best, result.tied) == (0, True)


async def test_a_second_run_of_the_same_question_starts_anew(serve):
    _, model = serve(by_number)
    judge = PairwiseJudgeReward(model)
    for low, high in (("a 50", "b 90"), ("c 60", "d 61"), ("c 60", "d 61")):
        run = RunContext(anchors=(low, high))
        assert await scores(judge, [low, high], run) == [-1.0, 1.0]
        assert await scores(judge, [high + "00"], run) == [2.0]


@pytest.mark.parametrize("known", ["extremes", "anchors"])
async def test_a_run_that_is_resumed_elsewhere_goes_on(known, serve):
    """A judge that has seen nothing of the run ranks the new responses against the run's own."""
    _, model = serve(by_number)
    anchors = ("a 50", "b 90", "c 70")
    extremes = RunExtremes(best="d 95", best_reward=2.0, worst="a 50", worst_reward=-1.0)
    run = RunContext(anchors=anchors, extremes=extremes if known == "extremes" else None)
    above, between, below = await scores(PairwiseJudgeReward(model), ["e 99", "f 80", "g 10"], run)
    assert above == (3.0 if known == "extremes" else 2.0)
    assert below == -2.0
    assert below < between < above


async def test_forgotten_first_candidates_keep_their_rewards(serve):
    """A combination asks for them again when it has forgotten its scale."""
    _, model = serve(by_number)
    run = RunContext(anchors=("a 50", "b 90", "c 70"))
    first = await scores(PairwiseJudgeReward(model), list(run.anchors), run)
    again = await scores(PairwiseJudgeReward(model), [*run.anchors, "d 99"], run)
    assert again == [*first, 2.0]


def test_a_run_tells_the_judge_its_best_and_worst(serve):
    """Two runs of one question in the graph, by one judge: both find what they have drawn."""
    _, model = serve(by_number)
    graph = create_tpo_graph(scripted_policy(), PairwiseJudgeReward(model))
    for _ in range(2):
        result = graph.invoke({"query": "q"}, context={"n": 3, "depth": 1})
        numbers = [int(candidate["text"].split()[-1]) for candidate in result["cache"]]
        assert int(result["answer"].split()[-1]) == max(numbers)
        assert int(result["worst"]["text"].split()[-1]) == min(numbers)
        assert (result["trajectory"][0]["best_reward"], result["trajectory"][0]["worst_reward"]) == (1.0, -1.0)
