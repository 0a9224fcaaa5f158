"""What a person sees on a terminal, on a real pseudo-terminal and as a snapshot of its last state."""

import io
import re
import time

import pytest
from rich.console import Console

from tests.cli.conftest import Terminal, at, snapshot
from tests.tpo_script import number_reward, scripted_policy
from tpo_graph.cli.display import TerminalReporter
from tpo_graph.cli.session import RunRequest, answer
from tpo_graph.settings import TPOSettings

QUESTION = "Why is the sky blue?"
LONG = "\n\n".join(f"{number}. Say what the [b]best[/b] response still lacks, and quote it." for number in range(1, 14))


def shown(*, width: int, settings: TPOSettings, encoding: str = "utf-8", **replies) -> str:
    """The screen after a run with scripted models, without times."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
    models = {"policy": scripted_policy(**replies), "reward model": number_reward()}
    request = RunRequest(
        QUESTION, settings, {"policy": "fake", "reward model": "number"}, load=lambda part, _: models[part]
    )
    outcome = answer(request, TerminalReporter(Console(file=file, width=width, force_terminal=False)))
    assert outcome.error is None
    text = file.buffer.getvalue().decode(encoding)
    # the two parts are loaded at the same time
    lines = [re.sub(r" {2,}\d+\.\d s$", "", line).rstrip() for line in text.splitlines()]
    lines[1:3] = sorted(lines[1:3])
    return re.sub(r"\d+\.\d s$", "TIME", "\n".join(lines), flags=re.MULTILINE) + "\n"


def revision_without_tags(number: int) -> str:
    """Every other revision has no tags."""
    return f"<revised_response>rev {number}</revised_response>" if number % 2 else f"Sure: rev {number}"


@pytest.mark.parametrize("width", [80, 120])
def test_the_whole_story(width):
    settings = TPOSettings(depth=2, seed=7)
    text = shown(width=width, settings=settings, gradient=LONG, update=revision_without_tags)
    assert max(len(line) for line in text.splitlines()) <= width
    snapshot(f"terminal_{width}.txt", text)


def test_a_terminal_without_unicode():
    text = shown(width=80, settings=TPOSettings(depth=1), encoding="ascii")
    assert text.isascii()
    snapshot("terminal_ascii.txt", text)


def test_a_real_terminal_gets_phases_chart_loss_gradient_and_answer(chat_server):
    terminal = Terminal("run", QUESTION, *at(chat_server()))
    assert terminal.wait() == 0
    text = terminal.text
    assert "loading policy and reward model" in text
    for step in (0, 1, 2):
        assert f"\nstep {step}\n" in text
    for phase in ("sample", "score", "select", "loss", "gradient", "update"):
        assert re.search(rf"✓ {phase} ", text), phase
    assert "drawing 5 candidates" in text  # what goes on, while it goes on
    assert "│ the loss" in text
    assert "│ 1. the gradient" in text
    assert re.search(r"step 2 .*◆ +\+18\.000 +\+16\.000 +\+14\.000", text)
    assert "depth: all steps are done" in text
    assert re.search(r"best \+18\.000 \(2-4\) · 7 requests · [\d,]+ \+ [\d,]+ tokens · \d+\.\d s", text)
    assert text.rstrip().endswith("rev 18")
    assert b"\x1b[32m" in terminal.raw  # colour


def test_no_color_is_honoured_and_the_policy_can_not_write_control_codes(chat_server):
    hostile = "\x1b]0;title\x07\x1b[31;5mwarm \x9b41m [red]x[/red] 1"
    terminal = Terminal("run", QUESTION, *at(chat_server(answer=lambda *_: hostile)), "--depth", "1", NO_COLOR="1")
    assert terminal.wait() == 0
    assert b"\x1b]" not in terminal.raw
    assert b"\x07" not in terminal.raw
    assert "\x9b" not in terminal.raw.decode()
    colours = {code for codes in re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw) for code in codes.split(b";")}
    assert colours <= {b"0", b"1", b"2", b"3", b"39", b"49"}  # bold, dim, italic
    assert "[red]x[/red]" in terminal.text
    assert terminal.text.rstrip().endswith("␛]0;title␇␛[31;5mwarm \ufffd41m [red]x[/red] 1")


def test_a_dumb_terminal_gets_plain_lines():
    terminal = Terminal("run", QUESTION, "--policy", "server:nowhere", "--reward", "none", TERM="dumb")
    assert terminal.wait() == 2
    assert b"\x1b" not in terminal.raw
    assert re.search(r"\[ +0\.\ds\] policy server:nowhere: loading", terminal.text)


def test_ctrl_c_keeps_the_best_answer_so_far(chat_server):
    server = chat_server(faults=[None, "hang"])
    terminal = Terminal("run", QUESTION, *at(server))
    terminal.read(until="loss: comparing the best with the worst")
    began = time.monotonic()
    terminal.interrupt()
    assert terminal.wait() == 130
    assert time.monotonic() - began < 5
    assert "interrupted: the answer is the best candidate so far" in terminal.text
    assert terminal.text.rstrip().endswith("cand 4")
    assert "Traceback" not in terminal.text


def test_ctrl_c_while_a_model_loads(chat_server):
    terminal = Terminal("run", QUESTION, *at(chat_server(), reward="slow"))
    terminal.read(until="loading")
    time.sleep(0.5)
    began = time.monotonic()
    terminal.interrupt()
    assert terminal.wait() == 130
    assert time.monotonic() - began < 5
    assert "interrupted: no candidate was drawn" in terminal.text
    assert "Traceback" not in terminal.text


def test_ctrl_c_while_candidates_are_scored_keeps_their_texts(chat_server):
    terminal = Terminal("run", QUESTION, *at(chat_server(), reward="stuck"))
    terminal.read(until="score: asking the reward model")
    terminal.interrupt()
    assert terminal.wait() == 130
    assert "interrupted: 5 candidates drawn, none scored" in terminal.text
    assert "candidate 0-4 (5 of 5, not scored):\ncand 4" in terminal.text
