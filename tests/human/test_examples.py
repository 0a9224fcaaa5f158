"""The examples with a person in them run offline; the person's answers come from a script."""

import io
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BETTER = "In the warmth your vessels widen and your blood pressure falls"


@pytest.fixture
def run_example(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    # another folder's module of that name must not be found again, nor this one later
    monkeypatch.delitem(sys.modules, "offline_models", raising=False)

    def run(name, answers=""):
        monkeypatch.setattr(sys, "argv", [name])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
        names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines(), names

    yield run
    sys.modules.pop("offline_models", None)


def test_human_in_the_loop(run_example):
    lines, names = run_example("human_in_the_loop.py", "0-9\n0-1\nIt is too short.\nok\n")
    assert lines[0].startswith("0-2  reward +0.54")
    assert any("best='0-9' is not a candidate" in line for line in lines)
    assert "> critique: The best one says why." in lines
    assert names["result"]["trajectory"][1]["loss"] == "It is too short."
    assert lines[-1].startswith(f"> depth: {BETTER}")


def test_the_person_can_stop_the_example(run_example):
    lines, _ = run_example("human_in_the_loop.py", '{"best": "0-1", "stop": true}\n')
    assert lines[-1] == "> person: It is the heat."


def test_preference_memory(run_example):
    lines, names = run_example("preference_memory.py")
    assert "stored: Answer in a few words." in lines
    shown = ["Answer in a few words." in messages[-1].text for messages in names["policy"].requests]
    # 3 drafts and the sentence; then 3 drafts, loss, gradient and 3 revisions
    assert shown == [False] * 4 + [False] * 3 + [True] * 5
