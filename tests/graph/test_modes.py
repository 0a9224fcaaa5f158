"""The loop in its three modes: who is asked what, in which order, and what comes out."""

import random

import pytest

from tests.tpo_script import GRADIENT, LOSS, number_reward, phase_of, phases_asked, scripted_policy
from tpo_graph import TPOSettings, create_tpo_graph
from tpo_graph.testing import ScriptedChatModel, TableReward
from tpo_graph.variants import fused_critique

STEP = ["loss", "gradient"]


def test_d2_n5_asks_in_the_order_of_the_paper_and_scores_15_candidates():
    policy, reward = scripted_policy(), number_reward()
    result = create_tpo_graph(policy, reward).invoke({"query": "q"})
    assert phases_asked(policy) == ["sample"] * 5 + (STEP + ["update"] * 5) * 2
    assert [len(batch) for batch in reward.calls] == [5, 5, 5]
    assert [candidate["step"] for candidate in result["cache"]] == [0] * 5 + [1] * 5 + [2] * 5
    assert (result["stop_reason"], result["step"]) == ("depth", 2)
    assert [(message.type, message.text) for message in result["messages"]] == [("human", "q"), ("ai", "rev 18")]
    assert "query" not in result


def test_the_answer_is_the_best_candidate_of_the_whole_cache():
    rewards = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.0}
    policy = ScriptedChatModel(
        ["a", "b", "loss", "advice", "<revised_response>c</revised_response>", "<revised_response>d</revised_response>"]
    )
    result = create_tpo_graph(policy, TableReward(rewards), settings=TPOSettings(n=2, depth=1)).invoke({"query": "q"})
    assert result["answer"] == "b"
    assert result["best"]["text"] == "b"
    assert result["worst"]["text"] == "d"
    assert result["messages"][-1].text == "b"
    assert result["messages"][-1].type == "ai"


def test_revision_shows_no_worst_response_in_any_phase():
    policy = scripted_policy(sample=lambda number: f"WORST {number}" if number == 0 else f"cand {number}")
    settings = TPOSettings(mode="revision", n=3)
    result = create_tpo_graph(policy, number_reward(), settings=settings).invoke({"query": "q"})
    assert phases_asked(policy) == ["sample"] * 3 + (STEP + ["update"] * 3) * 2
    later = "\n".join(message.text for request in policy.requests[3:] for message in request)
    assert "WORST" not in later
    assert "worst_response" not in later
    assert result["stop_reason"] == "depth"


def verifier(*right):
    """1 for these texts, 0 for all others."""
    return TableReward(dict.fromkeys(right, 1.0), default=0.0)


def texts(policy):
    return [request[-1].text for request in policy.requests]


def test_a_question_that_all_first_candidates_get_wrong_is_solved_by_a_later_revision():
    policy = scripted_policy()
    result = create_tpo_graph(policy, verifier("rev 16")).invoke({"query": "q"})
    assert (result["answer"], result["best"]["reward"], result["stop_reason"]) == ("rev 16", 1.0, "depth")
    assert [record["best_reward"] for record in result["trajectory"]] == [0.0, 0.0, 1.0]
    assert not any("worst" in text for text in texts(policy))


@pytest.mark.parametrize("variant", [None, fused_critique])
@pytest.mark.parametrize(("n", "reward"), [(2, verifier()), (1, number_reward())])
def test_a_tie_is_asked_for_in_the_words_of_mode_revision(variant, n, reward):
    asked = []
    for mode in ("tpo", "revision"):
        policy = scripted_policy()
        nodes = variant and variant(policy)
        graph = create_tpo_graph(policy, reward, nodes=nodes, settings=TPOSettings(n=n, depth=1, mode=mode))
        assert graph.invoke({"query": "q"})["stop_reason"] == "depth"
        asked.append(texts(policy))
    assert asked[0] == asked[1]


def test_only_the_step_with_the_tie_is_a_revision():
    policy = scripted_policy()
    create_tpo_graph(policy, verifier("rev 5"), settings=TPOSettings(n=2)).invoke({"query": "q"})
    losses = [text for text in texts(policy) if phase_of(text) == "loss"]
    assert ["<worst_response>\ncand 0" in text for text in losses] == [False, True]


def test_a_pack_without_the_prompts_of_mode_revision_shows_the_best_in_both_places(tmp_path):
    (tmp_path / "pack.toml").write_text('open_tag = "<r>"\nclose_tag = "</r>"', encoding="utf-8")
    for phase, text in (
        ("loss", "$query $best $worst"),
        ("gradient", "$loss"),
        ("update", "$gradient <r> </r> $worst"),
    ):
        (tmp_path / f"{phase}.toml").write_text(f"user = '{text}'", encoding="utf-8")
    policy = ScriptedChatModel(["a", "b", "loss", "advice", "<r>c</r>", "<r>d</r>"])
    settings = TPOSettings(n=2, depth=1)
    result = create_tpo_graph(policy, verifier("d"), prompts=tmp_path, settings=settings).invoke({"query": "q"})
    assert (result["answer"], texts(policy)[2], texts(policy)[4]) == ("d", "q a a", "advice <r> </r> a")


def test_bon_stops_after_the_first_score():
    policy = scripted_policy()
    result = create_tpo_graph(policy, number_reward(), settings=TPOSettings(mode="bon", n=4, depth=7)).invoke(
        {"query": "q"}
    )
    assert phases_asked(policy) == ["sample"] * 4
    assert result["stop_reason"] == "bon"
    assert result["answer"] == "cand 3"
    assert len(result["trajectory"]) == 1


def test_each_step_starts_from_the_best_and_worst_of_the_whole_cache():
    # the revisions are all worse than the first candidates, so both of the second step's pair are step 0's and 1's
    policy = scripted_policy(update=lambda number: f"<revised_response>rev {-number}</revised_response>")
    create_tpo_graph(policy, number_reward()).invoke({"query": "q"})
    second_loss = policy.requests[12][-1].text
    assert "<best_response>\ncand 4\n</best_response>" in second_loss
    assert "<worst_response>\nrev -11\n</worst_response>" in second_loss


@pytest.mark.parametrize("seed", range(20))
def test_best_reward_never_falls_and_nothing_is_lost(seed):
    table = random.Random(seed)
    rewards: dict[str, float] = {}

    def reward(text):
        return rewards.setdefault(text, round(table.uniform(-5, 5), 1))

    settings = TPOSettings(n=table.randint(1, 6), depth=table.randint(0, 5), mode=table.choice(["tpo", "revision"]))
    result = create_tpo_graph(scripted_policy(), TableReward(reward), settings=settings).invoke({"query": "q"})
    cache, trajectory = result["cache"], result["trajectory"]
    best = [record["best_reward"] for record in trajectory]
    worst = [record["worst_reward"] for record in trajectory]
    assert best == sorted(best)
    assert worst == sorted(worst, reverse=True)
    assert len(cache) == sum(record["candidates"] for record in trajectory) == settings.n * len(trajectory)
    assert result["best"] == max(cache, key=lambda candidate: candidate["reward"])
    assert result["worst"] == min(cache, key=lambda candidate: candidate["reward"])
    assert result["answer"] == result["best"]["text"]
    assert len({candidate["id"] for candidate in cache}) == len(cache)


def test_ties_go_to_the_earliest_candidate():
    rewards = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}
    replies = [
        "a",
        "b",
        "loss",
        "advice",
        "<revised_response>c</revised_response>",
        "<revised_response>d</revised_response>",
    ]
    graph = create_tpo_graph(ScriptedChatModel(replies), TableReward(rewards), settings=TPOSettings(n=2, depth=1))
    result = graph.invoke({"query": "q"})
    assert (result["best"]["text"], result["worst"]["text"]) == ("a", "b")
    assert (result["best"]["id"], result["worst"]["id"]) == ("0-0", "0-1")
    assert [place["id"] for place in result["trajectory"][1]["ranking"]] == ["1-0", "1-1"]


def test_equal_texts_are_scored_once_and_stay_candidates():
    reward = TableReward({"same": 1.0, "other": 2.0})
    policy = scripted_policy(
        sample=lambda number: "other" if number == 1 else "same",
        update="<revised_response>same</revised_response>",
    )
    result = create_tpo_graph(policy, reward, settings=TPOSettings(n=3, depth=1)).invoke({"query": "q"})
    assert reward.calls == [["same", "other"]]
    assert [candidate["text"] for candidate in result["cache"]] == ["same", "other", "same", "same", "same", "same"]


def test_the_trajectory_has_one_record_a_step():
    result = create_tpo_graph(scripted_policy(), number_reward()).invoke({"query": "q"})
    first, second, third = result["trajectory"]
    assert [record["step"] for record in result["trajectory"]] == [0, 1, 2]
    assert (first["best_reward"], first["worst_reward"], first["mean_reward"]) == (4.0, 0.0, 2.0)
    assert [place["id"] for place in first["ranking"]] == ["0-4", "0-3", "0-2", "0-1", "0-0"]
    assert second["ranking"][0] == {"id": "1-4", "reward": 11.0}
    assert (first["loss"], first["gradient"]) == ("", "")
    assert (second["loss"], second["gradient"]) == (LOSS, GRADIENT)
    assert (second["best_reward"], second["mean_reward"], second["worst_reward"]) == (11.0, 9.0, 0.0)
    assert [record["candidates"] for record in (first, second, third)] == [5, 5, 5]
    assert [record["requests"] for record in (first, second, third)] == [5, 7, 7]
    assert all(record["seconds"] >= 0 for record in (first, second, third))
    for kind in ("requests", "input_tokens", "output_tokens"):
        assert sum(record[kind] for record in result["trajectory"]) == sum(
            used[kind] for used in result["usage"].values()
        )


def test_a_separate_critic_gets_only_loss_and_gradient():
    policy, critic = scripted_policy(), scripted_policy()
    create_tpo_graph(policy, number_reward(), critic=critic).invoke({"query": "q"})
    assert phases_asked(critic) == STEP * 2
    assert phases_asked(policy) == ["sample"] * 5 + ["update"] * 10


def test_a_pack_without_tags_takes_whole_completions():
    policy = ScriptedChatModel(["cand 1", "the loss", "the gradient", "\n  a <b>better</b> answer 2\n\n"])
    graph = create_tpo_graph(policy, number_reward(), prompts="small")
    result = graph.invoke({"query": "q"}, context={"n": 1, "depth": 1})
    assert result["answer"] == "  a <b>better</b> answer 2"
    assert result["failures"] == []
