"""What a person sees in the terminal when they are asked, and what their lines become."""

import io

import pytest

from tpo_graph.cli.ask import ask

QUESTION = {
    "question": "Which candidate is best, and which is worst?",
    "problem": "",
    "best": "0-1",
    "worst": "0-0",
    "ends": None,
    "candidates": [
        {"id": "0-1", "step": 0, "reward": 0.5, "text": "two\nlines"},
        {"id": "0-2", "step": 0, "reward": 0.25, "text": "middle"},
        {"id": "0-0", "step": 0, "reward": -1.0, "text": "bad \x1b[31mred"},
    ],
    "answer": {"best": "", "worst": "", "critique": "", "stop": ""},
}


def answered(typed, **other):
    out = io.StringIO()
    return ask({**QUESTION, **other}, read=io.StringIO(typed).readline, out=out), out.getvalue()


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("\n\n\n", "ok"),
        ("2\n\n\n", {"best": "0-2"}),
        ("0-2\n1\n\n", {"best": "0-2", "worst": "0-1"}),
        ("\n\n too long \n", {"critique": "too long"}),
        ("s\n", {"stop": True}),
        ("", {"stop": True}),
        ("9\n\n\n", {"best": "9"}),  # the node says what is wrong with it
    ],
)
def test_lines_become_an_answer(typed, answer):
    assert answered(typed)[0] == answer


def test_the_person_sees_everything_that_they_choose_from():
    _, shown = answered("\n\n\n")
    assert "[1] 0-1  reward +0.500\n    two\n    lines\n" in shown
    assert "bad ␛[31mred" in shown and "\x1b" not in shown
    assert "Best [1], or s to stop: Worst [3]: Critique [the critic writes it]: " in shown


def test_at_the_end_there_is_only_the_best_to_choose():
    answer, shown = answered("2\n", ends="depth")
    assert answer == {"best": "0-2"} and "Worst" not in shown


def test_a_graph_without_a_critique_asks_for_none():
    assert "Critique" not in answered("\n\n", answer={"best": "", "worst": "", "stop": ""})[1]


def test_what_was_wrong_comes_first():
    assert answered("\n\n\n", problem="best='9' is no candidate.")[1].startswith("best='9' is no candidate.\n")
