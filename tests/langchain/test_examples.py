"""The examples run offline, with the scripted models, and do what they say."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BETTER = "In the warmth your vessels widen and your blood pressure falls"


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Runs an example as a script and returns the lines that it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    # another folder's module of that name must not be found again, nor this one later
    monkeypatch.delitem(sys.modules, "offline_models", raising=False)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines(), names

    yield run
    sys.modules.pop("offline_models", None)


def test_chain(run_example):
    lines, _ = run_example("chain.py")
    assert lines[0].startswith(BETTER)
    assert lines[1:3] == [
        "step 0: best reward +0.540 of 3 new candidates",
        "step 1: best reward +1.100 of 3 new candidates",
    ]
    assert lines[3] == lines[0]
    assert lines[4].startswith("best of 3: ")


def test_agent_with_tools(run_example):
    lines, _ = run_example("agent_with_tools.py")
    kinds = [line.partition(":")[0] for line in lines]
    assert kinds == ["human", "ai", "tool", "ai", "step 0", "step 1"]
    assert lines[1] == "ai: weather({'city': 'Lisbon'})"
    assert lines[3].startswith("ai: In Lisbon it is sunny and warm")


def test_subgraph(run_example):
    lines, _ = run_example("subgraph.py")
    inner = ["sample", "score", "select", "loss", "gradient", "update", "score", "select"]
    assert lines[:-2] == ["set_the_tone", *(f"  {node}" for node in inner), "tpo"]
    assert lines[-2].startswith(BETTER)
    assert lines[-1].startswith(f"ticket 17, step 3: {BETTER}")


def test_custom_nodes(run_example):
    lines, _ = run_example("custom_nodes.py")
    assert [line.partition(":")[0] for line in lines] == [
        "retrieval before loss",
        "two critics",
        "a cheaper critic",
        "second best against worst",
    ]
    assert all("reward +1.100" in line for line in lines)
    assert r"'Critic 1: It lacks a cause.\n\nCritic 2: It is too short.'" in lines[1]
    assert "It lacks a cause." in lines[2]


def test_what_is_retrieved_reaches_loss_alone(run_example):
    _, names = run_example("custom_nodes.py")
    policy = names["scripted_policy"]()
    graph = names["with_retrieval"](policy, names["chosen_models"]()[1])
    result = graph.invoke({"query": "Why does warmth make you tired?"}, context={"n": 2, "depth": 2})
    shown = ["What is known:" in messages[-1].text for messages in policy.requests]
    # 2 candidates, then for each step loss, gradient and 2 revisions
    assert shown == [False, False, *[True, False, False, False] * 2]
    assert (len(result["cache"]), len(result["messages"]), result["usage"]["loss"]["requests"]) == (6, 2, 2)


def test_the_usage_of_all_critics_counts(run_example):
    _, names = run_example("custom_nodes.py")
    policy, critics = names["scripted_policy"](), [names["scripted_policy"]("a"), names["scripted_policy"]("b c")]
    graph = names["with_two_critics"](policy, names["chosen_models"]()[1], critics)
    used = graph.invoke({"query": "q"}, context={"n": 2, "depth": 1})["usage"]
    assert (used["loss"]["requests"], used["loss"]["output_tokens"]) == (2, 3)


def test_the_second_best_is_revised_and_the_best_wins(run_example):
    _, names = run_example("custom_nodes.py")
    policy = names["scripted_policy"]()
    graph = names["with_second_best"](policy, names["chosen_models"]()[1])
    graph.invoke({"query": "q"}, context={"n": 3, "depth": 1})
    shown = next(messages[-1].text for messages in policy.requests if "<best_response>" in messages[-1].text)
    assert shown.split("<best_response>\n")[1].startswith("Warm rooms make you sleepy.")
