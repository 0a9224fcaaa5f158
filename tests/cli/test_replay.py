"""`tpo-graph replay`: a saved run is shown as it was, and nothing is asked or loaded."""

import json
import re
import time

import pytest

from tests.cli.conftest import Terminal, at
from tests.cli.test_display import QUESTION, long_gradients_and_revisions_without_tags, without_times

LOADED = re.compile(r"^  [✓✗] (policy|reward model) .*\n", re.MULTILINE)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.json"


def shown(err: str) -> str:
    """What a run or its replay shows, without times, models that were loaded, and the note where it is saved."""
    return without_times(LOADED.sub("", re.sub(r"\nsaved; .*", "", err)))


@pytest.mark.parametrize(
    ("server", "flags", "code"),
    [
        ({"answer": long_gradients_and_revisions_without_tags}, ["--seed", "7"], 0),
        ({}, ["--mode", "bon"], 0),
        ({}, ["--variant", "fused-critique"], 0),
        ({"answer": lambda request, number: str(min(number, 4))}, ["-n", "2", "--depth", "3"], 0),  # no usable revision
        ({"faults": [None, None, "401"]}, ["--on-failure", "raise"], 3),
        ({}, ["--reward", "patchy", "--on-failure", "raise"], 4),
        ({}, ["--reward", "broken"], 4),
    ],
)
def test_it_shows_what_the_run_showed(chat_server, tpo, file, server, flags, code):
    served = chat_server(**server)
    ran = tpo("run", QUESTION, *at(served), *flags, "--save", str(file))
    asked = len(served.requests)
    again = tpo("replay", str(file))
    assert (ran.code, again.code, again.out) == (code, 0, ran.out)
    assert shown(again.err) == shown(ran.err)
    assert len(served.requests) == asked


@pytest.mark.subprocess
def test_it_plays_on_a_terminal(chat_server, tpo, file):
    tpo("run", QUESTION, *at(chat_server()), "--save", str(file))
    saved = json.loads(file.read_text())
    for phase in saved["phases"]:
        phase["seconds"] = 20.0
    file.write_text(json.dumps(saved))
    began = time.monotonic()
    terminal = Terminal("replay", str(file), "--speed", "100")
    assert terminal.wait() == 0
    assert time.monotonic() - began > 13 * 0.2
    assert "sample: drawing 5 candidates" in terminal.text and re.search(r"✓ sample .* 20\.0 s", terminal.text)
    assert terminal.text.rstrip().endswith("rev 18")


def test_hostile_texts_and_words_that_nobody_knows(chat_server, tpo, file):
    tpo("run", QUESTION, *at(chat_server()), "--depth", "1", "--save", str(file))
    saved = json.loads(file.read_text())
    saved["best"]["text"] = saved["cache"][-1]["text"] = "\x1b]0;title\x07[red]x[/red]"
    saved["failures"] = [{"phase": "update", "step": 1, "reason": "new\x1b[2J", "detail": "", "text": ""}]
    saved |= {"stop_reason": "later\x1b[2J", "settings": {"later": 1}, "answer": None}
    file.write_text(json.dumps(saved))
    ended = tpo("replay", str(file))
    assert ended.code == 0 and "\x1b" not in ended.err
    assert "best  +11.000  ␛]0;title␇[red]x[/red]" in ended.err and "later␛[2J" in ended.err


def test_what_is_no_run_is_refused(tpo, file):
    file.write_text('{"answer": "a", "cache": [], "trajectory": [], "phases": [{"phase": "other", "step": 0}]}')
    assert tpo("replay", str(file)).error.code == 2
    assert "phases.0.phase" in tpo("replay", str(file)).error.message
    assert "can't be read" in tpo("replay", str(file.with_name("gone.json"))).error.message
