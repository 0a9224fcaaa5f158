"""The score node: what it keeps of the reward model's work, and the second reward model that watches."""

import math

import pytest
from langchain_core.messages import AIMessage

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import create_tpo_graph
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards import WatchedReward
from tpo_graph.rewards.base import DetailedReward, Scoring
from tpo_graph.rewards.judge import JudgeReward
from tpo_graph.testing import ScriptedChatModel, TableReward


def run(reward, policy=None, **context):
    graph = create_tpo_graph(policy or scripted_policy(), reward)
    return graph.invoke({"query": "q"}, context={"n": 3, "depth": 1, **context})


def judge(grade):
    """A judge that counts 100 and 1 tokens; `grade` makes an answer of the response's last line."""
    counted = {"input_tokens": 100, "output_tokens": 1, "total_tokens": 101}

    def answer(messages, number):
        response = messages[-1].text.partition("begins]\n")[2].partition("\n[response")[0]
        return AIMessage(grade(response), usage_metadata=counted)

    return JudgeReward(ScriptedChatModel(answer), max_concurrency=1)


def kinds(result):
    return [warning["kind"] for warning in result["warnings"]]


def test_what_a_failed_scoring_cost_is_counted():
    result = run(judge(lambda text: text[-1] if text.startswith("cand") else "no idea"))
    assert result["stop_reason"] == "reward_failed"
    used = result["usage"]["score"]
    assert (used["requests"], used["input_tokens"], used["output_tokens"]) == (6, 600, 6)
    assert sum(record["requests"] for record in result["trajectory"]) >= 6


def test_an_error_in_the_first_step_tells_what_it_cost():
    with pytest.raises(RewardError, match="answered 'no idea'") as caught:
        run(judge(lambda text: "no idea"))
    assert caught.value.usage["input_tokens"] == 100 * caught.value.usage["requests"] > 0


def test_the_record_of_a_response_without_a_reward_says_why():
    result = run(judge(lambda text: "hm" if text == "cand 1" else "5"), depth=0)
    (failure,) = result["failures"]
    assert (failure["reason"], failure["text"]) == ("not_finite", "cand 1")
    assert "answered 'hm', which holds no verdict" in failure["detail"]


def test_a_text_without_a_reward_is_not_scored_again():
    reward = TableReward(lambda text: math.nan if text == "same" else float(text.split()[-1]))
    policy = scripted_policy(
        sample=lambda number: "same" if number == 0 else f"cand {number}",
        update=lambda number: "<revised_response>same</revised_response>",
    )
    result = run(reward, policy, depth=1)
    assert sum(texts.count("same") for texts in reward.calls) == 1
    assert {failure["detail"] for failure in result["failures"]} == {"nan"}
    assert len(result["failures"]) == 4


class Cutting(DetailedReward):
    """Can't read the candidates of some numbers whole."""

    def __init__(self, numbers):
        self.numbers = numbers

    async def score_in_detail(self, messages, responses, run):
        truncated = frozenset(text for text in responses if int(text.split()[-1]) in self.numbers)
        return Scoring([float(text.split()[-1]) for text in responses], truncated=truncated)


def test_what_the_reward_model_could_not_read_is_a_warning():
    assert kinds(run(Cutting(()))) == []
    (one,) = run(Cutting((0,)))["warnings"]
    assert one["message"].startswith("1 candidate was too long for the reward model")
    (warning,) = run(Cutting(range(100)))["warnings"]
    assert (warning["kind"], warning["value"], warning["threshold"]) == ("truncated_input", 6.0, 1.0)
    assert warning["message"].startswith("6 candidates were too long")


def test_a_thread_that_is_used_again_has_no_old_warnings():
    from langgraph.checkpoint.memory import InMemorySaver

    reward = WatchedReward(Cutting((0,)), number_reward())
    graph = create_tpo_graph(scripted_policy(), reward, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    first = graph.invoke({"query": "q"}, config, context={"n": 3, "depth": 1})
    second = graph.invoke({"query": "q"}, config, context={"n": 3, "depth": 0})
    assert kinds(first) == ["truncated_input"]
    assert kinds(second) == []
    assert set(second["second_rewards"]) == {candidate["id"] for candidate in second["cache"]}


def test_best_of_n_is_watched_too():
    policy = ScriptedChatModel([f"{'and so on ' * (number + 1)}{number}" for number in range(12)])
    result = run(number_reward(), policy, mode="bon", n=12)
    assert "length_correlation" in kinds(result)


def test_a_second_reward_that_falls_is_a_warning():
    second = TableReward(lambda text: -float(text.split()[-1]))
    result = run(WatchedReward(number_reward(), second), depth=2)
    assert result["answer"] == result["best"]["text"]
    (warning,) = result["warnings"]
    assert warning["kind"] == "second_scorer_falls"
    # all of step 0, for the spread, and then each step's best
    best = [record["best_id"] for record in result["trajectory"]]
    first = [candidate["id"] for candidate in result["cache"] if candidate["step"] == 0]
    assert set(result["second_rewards"]) == {*first, *best}
    assert len(second.calls) == 3
    assert kinds(run(WatchedReward(number_reward(), number_reward()), depth=2)) == []


@pytest.mark.parametrize("outcome", [RewardError("it is gone"), math.nan])
def test_a_second_reward_that_fails_ends_no_run(outcome):
    class Failing:
        async def score(self, messages, responses):
            if isinstance(outcome, Exception):
                raise outcome
            return [outcome] * len(responses)

    result = run(WatchedReward(number_reward(), Failing()), on_failure="raise")
    assert result["stop_reason"] == "depth"
    assert result["second_rewards"] == {}
    (warning,) = result["warnings"]
    assert warning["kind"] == "second_scorer_failed"
    assert warning["message"].startswith("The second reward model gave no reward in 2 steps; the last time: it ")


def test_what_a_second_judge_costs_is_counted():
    result = run(WatchedReward(number_reward(), judge(lambda text: "5")))
    assert result["usage"]["score"]["requests"] == 4


def test_what_the_second_reward_model_could_not_read_is_a_warning_of_its_own():
    result = run(WatchedReward(number_reward(), Cutting(range(100))))
    (warning,) = result["warnings"]
    assert (warning["kind"], warning["value"]) == ("truncated_second_input", 4.0)
    assert warning["message"].startswith("4 candidates were too long for the second reward model")


def test_a_second_reward_must_be_a_reward_model():
    with pytest.raises(ConfigurationError, match="'str' is neither"):
        WatchedReward(number_reward(), "local")
    with pytest.raises(ConfigurationError, match="can't be watched once more"):
        WatchedReward(WatchedReward(number_reward(), number_reward()), number_reward())
