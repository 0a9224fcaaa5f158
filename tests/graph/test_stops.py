"""Every way in which a run ends, and that none of them loses a candidate."""

import asyncio

import pytest

from tests.tpo_script import number_reward, phase_of, phases_asked, scripted_policy, server_reply
from tpo_graph import RewardError, create_tpo_graph
from tpo_graph.testing import TableReward


def revisions(*rewards: float, n: int = 5):
    """A reply of the update phase: all N revisions of a step carry that step's reward, the last one for ever."""
    seen = []

    def write(number):
        seen.append(number)
        step = (len(seen) - 1) // n
        return f"<revised_response>r{number} {rewards[min(step, len(rewards) - 1)]}</revised_response>"

    return write


def run(policy, reward=None, **settings):
    return create_tpo_graph(policy, reward or number_reward()).invoke(
        {"query": "q"}, context={"max_retries": 0} | settings
    )


def test_depth_of_zero_ends_after_the_first_score():
    policy = scripted_policy()
    result = run(policy, depth=0)
    assert (result["stop_reason"], result["step"], len(result["cache"])) == ("depth", 0, 5)
    assert phases_asked(policy) == ["sample"] * 5


@pytest.mark.parametrize(
    ("rewards", "patience", "steps"),
    [
        # the first candidates reach 4
        ([4.05], 1, 1),
        ([4.05], 2, 2),
        ([5, 5.05], 1, 2),
        ([4.05, 6, 6.05, 6.05], 2, 4),
        ([3], 1, 1),
        ([4.1], 1, 2),  # a gain of the tolerance itself is no convergence; the same again is
    ],
)
def test_converged_when_the_best_gained_less_than_the_tolerance(rewards, patience, steps):
    policy = scripted_policy(update=revisions(*rewards))
    result = run(policy, depth=9, tolerance=0.09999, patience=patience)
    assert (result["stop_reason"], result["step"]) == ("converged", steps)
    assert len(result["cache"]) == 5 * (steps + 1)


def test_convergence_is_off_by_default():
    result = run(scripted_policy(update=revisions(3)), depth=6)
    assert (result["stop_reason"], result["step"]) == ("depth", 6)


@pytest.mark.parametrize(("target", "steps"), [(4.0, 0), (3.5, 0), (4.1, 1), (11.0, 1), (11.1, 2)])
def test_target_reward(target, steps):
    result = run(scripted_policy(), depth=9, target_reward=target)
    assert (result["stop_reason"], result["step"]) == ("target", steps)


@pytest.mark.parametrize(
    ("limit", "steps", "reason"), [(5, 0, "budget"), (11, 0, "budget"), (12, 1, "budget"), (19, 2, "depth")]
)
def test_no_step_begins_that_would_go_over_the_requests(limit, steps, reason):
    policy = scripted_policy()
    result = run(policy, budget_requests=limit)
    assert (result["stop_reason"], result["step"]) == (reason, steps)
    assert len(policy.requests) <= limit
    assert result["answer"] == result["best"]["text"]


def test_no_step_begins_once_the_tokens_are_used():
    usage = run(scripted_policy(), depth=0)["usage"]["sample"]
    tokens = usage["input_tokens"] + usage["output_tokens"]
    assert run(scripted_policy(), budget_tokens=tokens)["step"] == 0
    assert run(scripted_policy(), budget_tokens=tokens)["stop_reason"] == "budget"
    assert run(scripted_policy(), budget_tokens=tokens + 1)["step"] == 1


def test_no_step_begins_once_the_seconds_are_used():
    class Slow:
        async def score(self, messages, responses):
            await asyncio.sleep(0.05)
            return [float(text.split()[-1]) for text in responses]

    result = run(scripted_policy(), Slow(), budget_seconds=0.04)
    assert (result["stop_reason"], result["step"], len(result["cache"])) == ("budget", 0, 5)


def test_a_verifier_with_the_highest_reward_ends_the_run_before_another_request():
    policy = scripted_policy()
    result = run(policy, TableReward({"cand 3": 1.0}, default=0.0, highest_reward=1.0))
    assert (result["stop_reason"], result["answer"], result["step"]) == ("target", "cand 3", 0)
    assert phases_asked(policy) == ["sample"] * 5
    result = run(scripted_policy(), TableReward({"rev 8": 1.0}, default=0.0, highest_reward=1.0))
    assert (result["stop_reason"], result["answer"], result["step"]) == ("target", "rev 8", 1)


def test_updates_failed_after_two_steps_that_asked_twice():
    policy = scripted_policy(update="no tags here")
    result = run(policy, depth=9)
    assert result["stop_reason"] == "updates_failed"
    assert phases_asked(policy) == ["sample"] * 5 + (["loss", "gradient"] + ["update"] * 10) * 2
    assert (result["answer"], len(result["cache"]), result["step"]) == ("cand 4", 5, 2)
    assert [failure["reason"] for failure in result["failures"]] == ["no_tags"] * 20
    assert result["trajectory"][-1]["failures"] == 10
    assert result["trajectory"][-1]["mean_reward"] is None
    assert result["trajectory"][-1]["ranking"] == []


@pytest.mark.parametrize("phase", ["loss", "gradient", "update"])
@pytest.mark.parametrize("lost", ["", ConnectionError("gone")])
def test_the_best_is_found_after_a_step_that_was_lost(phase, lost):
    def write(number):
        seen.append(number)
        # a text that can't be used is asked for twice
        times = (5 if phase == "update" else 1) * (1 if lost else 2)
        return lost if len(seen) <= times else reply_of_phase(number)

    seen = []
    reply_of_phase = {"update": "<revised_response>rev {}</revised_response>".format}.get(phase, lambda _: "words")
    result = run(scripted_policy(**{phase: write}), depth=3)
    assert (result["stop_reason"], result["step"]) == ("depth", 3)
    assert [record["candidates"] for record in result["trajectory"]] == [5, 0, 5, 5]
    assert result["answer"].startswith("rev")


def test_a_second_ask_that_works_goes_on():
    policy = scripted_policy(
        update=lambda number: "garbled" if number < 12 else f"<revised_response>r {number}</revised_response>"
    )
    result = run(policy)
    assert (result["stop_reason"], result["step"]) == ("depth", 2)
    assert [record["candidates"] for record in result["trajectory"]] == [5, 5, 5]
    assert [record["failures"] for record in result["trajectory"]] == [0, 5, 0]


def test_one_usable_revision_is_enough():
    policy = scripted_policy(
        update=lambda number: f"<revised_response>r {number}</revised_response>" if number % 5 == 0 else "x"
    )
    result = run(policy)
    assert (result["stop_reason"], [record["candidates"] for record in result["trajectory"]]) == ("depth", [5, 1, 1])


@pytest.mark.parametrize("phase", ["loss", "gradient", "update"])
def test_policy_failed_keeps_the_best(phase):
    policy = scripted_policy(**{phase: ConnectionError("gone")})
    result = run(policy, depth=9)
    assert (result["stop_reason"], result["answer"], len(result["cache"])) == ("policy_failed", "cand 4", 5)
    assert result["step"] == 2
    failure = result["failures"][0]
    assert (failure["phase"], failure["step"], failure["reason"]) == (phase, 1, "request_failed")
    assert "gone" in failure["detail"]


@pytest.mark.parametrize("phase", ["loss", "gradient"])
def test_an_empty_critique_is_asked_for_once_more_and_twice_in_a_row_ends_the_run(phase):
    policy = scripted_policy(**{phase: "  "})
    result = run(policy)
    assert (result["stop_reason"], result["answer"]) == ("policy_failed", "cand 4")
    assert phases_asked(policy).count(phase) == 4
    assert "update" not in phases_asked(policy)
    assert [failure["reason"] for failure in result["failures"]] == ["empty"] * 4


def test_an_empty_critique_that_comes_at_the_second_ask_goes_on():
    policy = scripted_policy(loss=lambda number: "" if number == 5 else "the loss")
    result = run(policy)
    assert result["stop_reason"] == "depth"
    assert len(result["cache"]) == 15


class FailsAtStep:
    """Scores the first candidates, and fails from then on."""

    def __init__(self, outcome):
        self.outcome, self.calls = outcome, 0

    async def score(self, messages, responses):
        self.calls += 1
        if self.calls == 1:
            return [float(text.split()[-1]) for text in responses]
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize("outcome", [RuntimeError("out of memory"), RewardError("no"), [1.0], [], None, ["x"] * 5])
def test_reward_failed_keeps_the_best_and_the_texts_that_were_paid_for(outcome):
    result = run(scripted_policy(), FailsAtStep(outcome))
    assert (result["stop_reason"], result["answer"], len(result["cache"])) == ("reward_failed", "cand 4", 5)
    paid = [f"rev {number}" for number in (*range(7, 12), *range(14, 19))]
    assert [failure["text"] for failure in result["failures"]] == paid
    assert {failure["phase"] for failure in result["failures"]} == {"score"}


def test_revisions_that_all_lack_a_finite_reward_are_unusable():
    result = run(scripted_policy(), FailsAtStep([float("nan")] * 5))
    assert (result["stop_reason"], result["answer"], len(result["cache"])) == ("updates_failed", "cand 4", 5)
    assert [lost["reason"] for lost in result["failures"]] == ["not_finite"] * 10


def test_reward_failures_raise_where_that_is_asked_for_and_keep_what_was_unscored():
    with pytest.raises(RewardError, match="out of memory") as caught:
        run(scripted_policy(), FailsAtStep(RuntimeError("out of memory")), on_failure="raise")
    assert [candidate["text"] for candidate in caught.value.unscored] == [f"rev {number}" for number in range(7, 12)]
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(("garbled", "requests"), [(0, 5), (5, 10)])
def test_requests_that_failed_count_as_requests(garbled, requests):
    policy = scripted_policy(update=lambda number: "garbled" if number < 7 + garbled else ConnectionError("gone"))
    result = run(policy, depth=1)
    assert result["stop_reason"] == ("updates_failed" if garbled else "policy_failed")
    assert result["usage"]["update"]["requests"] == requests


@pytest.mark.parametrize("limit", range(5, 20))
@pytest.mark.parametrize("phase", ["loss", "gradient", "update"])
def test_the_budget_is_kept_whatever_is_asked_for_once_more(phase, limit):
    seen = []

    def nothing_at_first(number):
        seen.append(number)
        if len(seen) <= (5 if phase == "update" else 1):
            return ""
        return f"<revised_response>rev {number}</revised_response>" if phase == "update" else "words"

    policy = scripted_policy(**{phase: nothing_at_first})
    result = run(policy, budget_requests=limit)
    assert len(policy.requests) == sum(used["requests"] for used in result["usage"].values()) <= limit
    assert result["answer"] == result["best"]["text"]


@pytest.mark.parametrize(("limit", "asked"), [(4, 1), (5, 2)])
def test_an_empty_critique_is_asked_for_again_only_where_an_update_can_follow(chat_server, chat_openai, limit, asked):
    def no_loss(request, number):
        return "" if phase_of(request.text) == "loss" else server_reply(request, number)

    server = chat_server(answer=no_loss)
    graph = create_tpo_graph(chat_openai(server), number_reward())
    result = graph.invoke({"query": "q"}, context={"budget_requests": limit})
    assert (result["stop_reason"], result["answer"]) == ("budget", "cand 4")
    assert [phase_of(request.text) for request in server.requests] == ["sample", *["loss"] * asked]


@pytest.mark.parametrize("limit", range(1, 9))
def test_the_budget_is_kept_where_the_provider_refuses_n(chat_server, chat_openai, limit):
    server = chat_server(most_n=1)
    result = create_tpo_graph(chat_openai(server), number_reward()).invoke(
        {"query": "q"}, context={"budget_requests": limit}
    )
    # the first request is refused, so one more is needed for any answer at all
    assert len(server.requests) <= max(2, limit)
    assert len(result["cache"]) == max(1, min(5, limit - 1))
    assert result["stop_reason"] == "budget"


def test_budget_tokens_says_so_once_where_the_provider_does_not_count(chat_server, chat_openai, caplog):
    graph = create_tpo_graph(chat_openai(chat_server(tells_usage=False)), number_reward())
    assert graph.invoke({"query": "q"})["stop_reason"] == "depth"
    assert caplog.messages == []
    assert graph.invoke({"query": "q"}, context={"budget_tokens": 1})["stop_reason"] == "depth"
    assert caplog.messages == ["budget_tokens=1 will not end the run: the provider does not count tokens."]
