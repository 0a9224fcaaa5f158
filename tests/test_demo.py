"""The demo: what its rules say of a text, and what it prints."""

import runpy
import sys
from pathlib import Path

import pytest

DEMO = str(Path(__file__).parent.parent / "examples" / "demo.py")
FOLLOWS = "Dust and air spread blue light. For example, a torch in milky water looks blue. Have you seen that?"
rules_met = runpy.run_path(DEMO)["rules_met"]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        (FOLLOWS, [1, 1, 1, 1]),
        ("The sky is blue.", [1 / 3, 1, 0, 0]),
        ("One. Two. For example, three. For example, four?", [1 / 2, 1, 0, 1]),
        ("Electromagnetic interactions, wavelengths.", [1 / 3, 1 / 2, 0, 0]),
        ("Why? For example, e.g. this is cut. And this", [1 / 2, 1, 1, 0]),
        ("", [1 / 4, 0, 0, 0]),
    ],
)
def test_each_rule_says_how_far_a_text_follows_it(text, shares):
    assert list(rules_met(text).values()) == pytest.approx(shares)


@pytest.mark.torch
def test_first_draft_and_answer_stand_side_by_side(chat_server, monkeypatch, capsys):
    def answer(request, number):
        wants_changes = "Changes to make:" in request.text or "<instructions>" in request.text
        return f"<revised_response>{FOLLOWS}</revised_response>" if wants_changes else "The sky is blue."

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", [DEMO, "Why is the sky blue?", f"server:{chat_server(answer=answer).url}#m"])
    runpy.run_path(DEMO, run_name="__main__")
    printed = capsys.readouterr().out
    first, last = (line for line in printed.splitlines() if line.startswith("step "))
    assert (first.split()[:2], last.split()[:2]) == (["step", "0:"], ["step", "1:"])
    assert "The sky is blue." in printed
    assert "Have you seen that?" in " ".join(printed.replace("│", " ").split())
    assert printed.splitlines()[-1].endswith("stopped by target")
