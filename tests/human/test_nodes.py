"""A person in the loop: what they are asked, what they may answer, and what comes of it."""

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tests.tpo_script import GRADIENT, LOSS, number_reward, phases_asked, scripted_policy
from tpo_graph import TPOSettings, create_tpo_graph
from tpo_graph.graph.nodes import gradient_node
from tpo_graph.human import PersonReward, human_critique_node, human_nodes, human_score_node, human_select_node
from tpo_graph.testing import TableReward
from tpo_graph.variants import fused_critique

THREAD = {"configurable": {"thread_id": "1"}}
SETTINGS = TPOSettings(n=3, depth=1)


class Run:
    """A run with a person, who answers by resuming it."""

    def __init__(self, *, policy=None, reward=None, nodes=None, settings=SETTINGS):
        self.policy = policy or scripted_policy()
        nodes = human_nodes(self.policy, settings=settings) if nodes is None else nodes
        options = {"settings": settings, "checkpointer": InMemorySaver()}
        self.graph = create_tpo_graph(self.policy, reward or number_reward(), nodes=nodes, **options)
        self.state = self.graph.invoke({"query": "q"}, THREAD)

    @property
    def asked(self):
        (question,) = self.state["__interrupt__"]
        return question.value

    def answer(self, resume):
        self.state = self.graph.invoke(Command(resume=resume), THREAD)
        return self.state


def test_the_person_sees_the_candidates_with_their_rewards_the_best_first():
    asked = Run().asked
    assert asked["candidates"] == [
        {"id": f"0-{reward}", "step": 0, "reward": float(reward), "text": f"cand {reward}"} for reward in (2, 1, 0)
    ]
    assert (asked["best"], asked["worst"], asked["step"], asked["ends"], asked["problem"]) == (
        "0-2",
        "0-0",
        0,
        None,
        "",
    )
    assert asked["answer"].keys() == {"best", "worst", "critique", "stop"}


def test_who_accepts_everything_gets_the_run_without_a_person():
    run, alone = Run(), create_tpo_graph(scripted_policy(), number_reward(), settings=SETTINGS).invoke({"query": "q"})
    run.answer("ok")
    assert run.asked["ends"] == "depth"
    state = run.answer(True)
    for name in ("answer", "best", "worst", "stop_reason", "cache"):
        assert state[name] == alone[name]
    for mine, theirs in zip(state["trajectory"], alone["trajectory"], strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    assert state["messages"][-1].response_metadata == alone["messages"][-1].response_metadata
    assert phases_asked(run.policy) == ["sample"] * 3 + ["loss", "gradient"] + ["update"] * 3


def test_a_pick_is_what_the_critic_and_the_policy_are_shown():
    run = Run()
    run.answer({"best": "0-0", "worst": "0-1"})
    loss = run.policy.requests[3][-1].text
    assert "<best_response>\ncand 0" in loss and "<worst_response>\ncand 1" in loss
    assert run.state["trajectory"][0]["best_id"] == "0-0"
    assert run.state["trajectory"][0]["best_reward"] == 0.0


def test_a_pick_stands_until_a_new_candidate_has_a_higher_reward():
    policy = scripted_policy(update="<revised_response>rev 1</revised_response>")
    run = Run(policy=policy, settings=TPOSettings(n=3, depth=2))
    run.answer({"best": "0-1"})
    assert run.asked["best"] == "0-1"  # not 0-2, which the person has seen and not picked; ties go to the earlier
    run.answer("0-0")
    assert run.asked["best"] == "2-0"  # nor 1-0, which was not picked either


def test_the_last_pick_is_the_answer():
    run = Run()
    run.answer("ok")
    assert "the best becomes the answer" in run.asked["question"]
    state = run.answer({"best": "0-1"})
    assert (state["answer"], state["stop_reason"]) == ("cand 1", "depth")
    assert state["messages"][-1].text == "cand 1"


@pytest.mark.parametrize("answer", ["stop", {"stop": True}, '{"stop": true}'])
def test_the_person_can_stop(answer):
    run = Run()
    state = run.answer(answer)
    assert (state["answer"], state["stop_reason"], len(state["trajectory"])) == ("cand 2", "person", 1)
    assert phases_asked(run.policy) == ["sample"] * 3


def test_a_critique_takes_the_place_of_the_critics():
    run = Run(settings=TPOSettings(n=3, depth=2))
    run.answer({"critique": " It names the cause, and is too long. "})
    assert phases_asked(run.policy) == ["sample"] * 3 + ["gradient"] + ["update"] * 3
    assert "It names the cause, and is too long." in run.policy.requests[3][-1].text
    run.answer("ok")
    losses = [record["loss"] for record in run.answer("ok")["trajectory"]]
    assert losses == ["", "It names the cause, and is too long.", LOSS]  # for one step


def test_a_graph_that_would_lose_a_critique_does_not_take_one():
    run = Run(nodes={"select": human_select_node(SETTINGS)})
    assert "critique" not in run.asked["answer"]
    run.answer({"critique": "mine"})
    assert run.asked["problem"] == "Unknown: critique; allowed: best, worst, stop."
    run.answer("ok")
    assert run.answer("ok")["trajectory"][1]["loss"] == "the loss"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"best": "9-9"}, "best='9-9' is not a candidate to choose; these are: 0-0, 0-1, 0-2."),
        ({"worst": 3}, "worst=3 is not a candidate to choose; these are: 0-0, 0-1, 0-2."),
        ({"best": "0-1", "worst": "0-1"}, "'0-1' can't be both best and worst."),
        ({"chosen": "0-1"}, "Unknown: chosen; allowed: best, worst, critique, stop."),
        ({"critique": ["too long"]}, "critique=['too long'] is not a text."),
        ({"stop": "now"}, "stop='now' is neither true nor false."),
        ("{best: 1}", "This is not valid JSON: Expecting property name enclosed in double quotes"),
        (7, "The answer is 7; an object with best, worst, critique, stop was expected."),
        (["0-1"], "The answer is ['0-1']; an object with best, worst, critique, stop was expected."),
        ({"best": ["0-1"]}, "best=['0-1'] is not a candidate to choose"),
    ],
)
def test_an_answer_that_can_not_be_used_is_asked_for_again(answer, problem):
    run = Run()
    first = run.asked
    run.answer(answer)
    assert run.asked["problem"].startswith(problem)
    assert {**run.asked, "problem": ""} == first
    run.answer({"best": "0-1"})
    assert run.state["best"]["id"] == "0-1"
    assert phases_asked(run.policy) == ["sample"] * 3 + ["loss", "gradient"] + ["update"] * 3


def test_equal_rewards_are_a_preference_once_a_person_tells_candidates_apart():
    for answer, shown in (({"best": "0-1", "worst": "0-2"}, True), ("ok", False)):
        run = Run(reward=TableReward(lambda text: 1.0))
        assert "tell two apart" in run.asked["question"]
        run.answer(answer)
        assert ("<worst_response>\ncand 2\n" in run.policy.requests[3][-1].text) is shown
        assert ("worst_response" in run.policy.requests[3][-1].text) is shown
        assert run.answer("ok")["stop_reason"] == "depth"


@pytest.mark.parametrize("mode", ["revision", "bon"])
def test_other_modes(mode):
    run = Run(settings=TPOSettings(n=2, depth=1, mode=mode))
    state = run.answer({"best": "0-0"})
    if mode == "revision":
        state = run.answer("ok")
    assert state["stop_reason"] == {"revision": "depth", "bon": "bon"}[mode]


def test_nobody_is_asked_about_a_step_that_brought_nothing():
    run = Run(policy=scripted_policy(loss=RuntimeError("down")))
    state = run.answer({"best": "0-1"})
    assert (state["answer"], state["stop_reason"]) == ("cand 1", "policy_failed")


def test_a_thread_that_is_used_again_knows_no_earlier_choice():
    run = Run()
    run.answer("stop")
    run.state = run.graph.invoke({"query": "and then?"}, THREAD)
    assert (run.asked["best"], run.asked["worst"]) == ("0-2", "0-0")
    assert run.answer("stop")["answer"] == "cand 5"


async def test_the_context_counts_for_the_person_too():
    graph = create_tpo_graph(
        scripted_policy(), number_reward(), nodes={"select": human_select_node()}, checkpointer=InMemorySaver()
    )
    context = {"n": 2, "depth": 0}
    asked = (await graph.ainvoke({"query": "q"}, THREAD, context=context))["__interrupt__"][0].value
    assert (len(asked["candidates"]), asked["ends"]) == (2, "depth")
    assert (await graph.ainvoke(Command(resume="0-0"), THREAD, context=context))["answer"] == "cand 0"


def test_what_the_person_decided_is_in_the_state_and_what_they_accepted_is_not():
    run = Run(settings=TPOSettings(n=3, depth=2))
    run.answer({"best": "0-0"})
    run.answer({"critique": "too long"})
    state = run.answer("ok")
    assert state["choices"] == [
        {"step": 0, "best": "cand 0", "worst": "cand 1", "critique": ""},
        {"step": 1, "best": "rev 7", "worst": "", "critique": "too long"},
    ]
    run.state = run.graph.invoke({"query": "and then?"}, THREAD)
    assert run.state["choices"] == []


# the critic's text, edited


def edits(settings=SETTINGS, **replies):
    policy = scripted_policy(**replies)
    run = Run(policy=policy, settings=settings, nodes=human_nodes(policy, settings=settings, edit_critique=True))
    run.answer("ok")
    return run


def after_the_drafts(run):
    return phases_asked(run.policy)[run.graph.get_state(THREAD).values["usage"]["sample"]["requests"] :]


def test_the_person_sees_what_the_critic_wrote():
    asked = edits().asked
    assert (asked["kind"], asked["critique"], asked["gradient"], asked["problem"]) == (
        "tpo_critique",
        "the loss",
        "",
        "",
    )
    assert (asked["best"]["id"], asked["step"]) == ("0-2", 0)


@pytest.mark.parametrize("answer", ["ok", True, {"critique": "the loss"}, {"critique": None}])
def test_a_critique_that_is_kept_changes_nothing(answer):
    run = edits()
    run.answer(answer)
    state = run.answer("ok")
    assert (state["trajectory"][1]["loss"], state["choices"]) == ("the loss", [])
    assert after_the_drafts(run) == ["loss", "gradient", *["update"] * 3]


@pytest.mark.parametrize("answer", ["It is stiff.", {"critique": " It is stiff. "}, '{"critique": "It is stiff."}'])
def test_an_edited_critique_is_what_the_rest_of_the_step_follows(answer):
    run = edits()
    run.answer(answer)
    state = run.answer("ok")
    assert (state["trajectory"][1]["loss"], state["trajectory"][1]["gradient"]) == ("It is stiff.", GRADIENT)
    assert all("It is stiff." in messages[-1].text for messages in run.policy.requests[4:])
    assert state["choices"] == [{"step": 0, "best": "cand 2", "worst": "", "critique": "It is stiff."}]
    assert after_the_drafts(run) == ["loss", "gradient", *["update"] * 3]


@pytest.mark.parametrize(
    ("answer", "texts", "asked"),
    [
        ("ok", (LOSS, GRADIENT), []),
        ("It is stiff.", ("It is stiff.", GRADIENT), ["gradient"]),  # advice on the critic's own text is none on it
        ({"gradient": "Loosen it."}, (LOSS, "Loosen it."), []),
        ({"critique": "It is stiff.", "gradient": "Loosen it."}, ("It is stiff.", "Loosen it."), []),
        ({"critique": "It is stiff.", "gradient": GRADIENT}, ("It is stiff.", GRADIENT), []),
    ],
)
def test_a_fused_critique_is_edited_in_both_parts(answer, texts, asked):
    policy = scripted_policy()
    nodes = {**fused_critique(policy), "gradient": human_critique_node(gradient_node(policy))}
    run = Run(policy=policy, nodes=nodes)
    assert (run.asked["critique"], run.asked["gradient"]) == (LOSS, GRADIENT)
    run.answer(answer)
    record = run.state["trajectory"][1]
    assert (record["loss"], record["gradient"]) == texts
    assert phases_asked(policy)[3:] == ["critique", *asked, *["update"] * 3]


def test_a_critique_of_their_own_is_not_shown_again():
    policy = scripted_policy()
    run = Run(policy=policy, nodes=human_nodes(policy, settings=SETTINGS, edit_critique=True))
    run.answer({"critique": "mine"})
    assert run.asked["kind"] == "tpo_choice"


def test_a_critic_that_fails_has_nothing_to_edit():
    run = edits(loss=RuntimeError("down"))
    assert run.state["stop_reason"] == "policy_failed"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("stop", "The run can be stopped at the next choice"),
        (7, "The answer is 7; an object with critique, gradient was expected."),
        ({"loss": "x"}, "Unknown: loss; allowed: critique, gradient."),
        ({"critique": 7}, "critique=7 is not a text."),
        ("{", "This is not valid JSON"),
    ],
)
def test_an_edit_that_can_not_be_used_is_asked_for_again(answer, problem):
    run = edits()
    run.answer(answer)
    assert run.asked["problem"].startswith(problem)
    run.answer("mine")
    assert run.state["loss"] == "mine" and after_the_drafts(run) == ["loss", "gradient", *["update"] * 3]


# a person as the reward


def person_scores(**options):
    return Run(reward=PersonReward(), nodes={"score": human_score_node()}, **options)


def test_a_person_rates_every_candidate():
    run = person_scores()
    assert run.asked["candidates"] == [{"id": f"0-{n}", "step": 0, "text": f"cand {n}"} for n in range(3)]
    run.answer({"ratings": {"0-0": 7, "0-1": 3.5, "0-2": -1}})
    assert [candidate["reward"] for candidate in run.state["cache"]] == [7.0, 3.5, -1.0]
    assert run.asked["best_so_far"]["id"] == "0-0"
    state = run.answer({"ratings": {"1-0": 8, "1-1": 1, "1-2": 2}})
    assert (state["answer"], state["stop_reason"], phases_asked(run.policy).count("update")) == ("rev 5", "depth", 3)


def test_a_person_picks_step_by_step():
    run = person_scores(settings=TPOSettings(n=3, depth=2))
    run.answer({"best": "0-1", "worst": "0-2"})
    assert [candidate["reward"] for candidate in run.state["cache"]] == [0.0, 1.0, -1.0]
    run.answer({"best": "0-1"})  # what was best still is
    assert [candidate["reward"] for candidate in run.state["cache"][3:]] == [0.0, 0.0, 0.0]
    state = run.answer('{"best": "2-0", "worst": "2-1"}')
    assert [candidate["reward"] for candidate in state["cache"][6:]] == [2.0, -2.0, 0.0]
    assert state["answer"] == state["best"]["text"] and state["best"]["id"] == "2-0"


def test_equal_texts_are_rated_once():
    run = person_scores(policy=scripted_policy(sample="same"), settings=TPOSettings(n=2, depth=1))
    assert [candidate["id"] for candidate in run.asked["candidates"]] == ["0-0"]
    state = run.answer("0-0")
    assert ([candidate["reward"] for candidate in state["cache"]], state["step"]) == ([1.0, 1.0], 1)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"ratings": {"0-0": 1}}, "ratings={'0-0': 1}: a number is needed for each of 0-0, 0-1."),
        ({"ratings": 5}, "ratings=5: a number is needed for each of 0-0, 0-1."),
        ({"ratings": {"0-0": 1, "0-1": float("nan")}}, "The rating of '0-1' is nan, which is not a finite number."),
        ({"ratings": {"0-0": 1, "0-1": True}}, "The rating of '0-1' is True, which is not a finite number."),
        ({"ratings": {"0-0": 1, "0-1": 2}, "best": "0-0"}, "Give either ratings or a pick, not both."),
        ({"best": "1-0"}, "best='1-0' is not a candidate to choose; these are: 0-0, 0-1."),
        ({"best": ["0-0"]}, "best=['0-0'] is not a candidate to choose; these are: 0-0, 0-1."),
        ({"best": "0-0", "worst": "0-0"}, "'0-0' can't be both best and worst."),
        ({"best": "0-0", "worst": "0-7"}, "worst='0-7' is not a candidate to choose; these are: 0-0, 0-1."),
        ({"rating": 1}, "Unknown: rating; allowed: ratings, best, worst."),
        ("{", "This is not valid JSON"),
    ],
)
def test_a_rating_that_can_not_be_used_is_asked_for_again(answer, problem):
    run = person_scores(settings=TPOSettings(n=2, depth=0))
    run.answer(answer)
    assert run.asked["problem"].startswith(problem)
    assert run.answer("0-0")["answer"] == "cand 0"


def test_a_person_who_was_not_asked_is_an_error_that_says_how():
    graph = create_tpo_graph(scripted_policy(), PersonReward(), settings=SETTINGS)
    with pytest.raises(Exception, match="human_score_node"):
        graph.invoke({"query": "q"})
