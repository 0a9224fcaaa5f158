"""What a person sees of a run: as a snapshot, on a real pseudo-terminal, and what its words and its chart are."""

import io
import math
import re
import time
from typing import get_args

import pytest
from rich.console import Console

from tests.cli.conftest import Terminal, at, run_process, snapshot
from tests.tpo_script import phase_of, server_reply
from tpo_graph.cli.display import ASCII_MARKS, Reporter, ending, failure_line, reward_chart
from tpo_graph.cli.outcome import Outcome
from tpo_graph.settings import TPOSettings
from tpo_graph.types import FailureReason, FailureRecord, StopReason

QUESTION = "Why is the sky blue?"
LONG = "\n\n".join(f"{number}. Say what the [b]best[/b] response still lacks, and quote it." for number in range(1, 14))


def long_gradients_and_revisions_without_tags(request, number):
    """The script with long gradients, in which every other revision has no tags."""
    phase = phase_of(request.text)
    if phase == "update" and number % 2 == 0:
        return f"Sure: rev {number}"
    return LONG if phase == "gradient" else server_reply(request, number)


def without_times(err: str) -> str:
    """Progress without what differs from run to run."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", err)
    lines = [re.sub(r"^(  [✓+✗x] .*?) +\d+\.\d s$", r"\1", line) for line in text.splitlines()]
    # policy and reward model are loaded at the same time
    first = next(number for number, line in enumerate(lines) if line.startswith(("  ✓", "  +")))
    lines[first : first + 2] = sorted(lines[first : first + 2])
    return re.sub(r"\d+\.\d s$", "TIME", "\n".join(lines), flags=re.MULTILINE) + "\n"


@pytest.mark.parametrize("width", [80, 120])
def test_a_whole_run(chat_server, tpo, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    server = chat_server(answer=long_gradients_and_revisions_without_tags)
    ended = tpo("run", QUESTION, *at(server), "--seed", "7")
    assert ended.code == 0
    assert max(len(line) for line in ended.err.splitlines()) <= width
    assert "\x1b" not in ended.err and "\r" not in ended.err
    snapshot(f"run_{width}.txt", without_times(ended.err))


@pytest.mark.subprocess
def test_a_terminal_without_unicode(chat_server):
    server = chat_server(answer=lambda *asked: server_reply(*asked).replace("rev ", "né→ "))
    ended = run_process("run", QUESTION, *at(server), "--depth", "1", PYTHONIOENCODING="ascii:strict", COLUMNS="44")
    assert (ended.code, ended.out) == (0, "n\\xe9\\u2192 11\n")
    assert max(len(line) for line in ended.err.splitlines()) <= 44
    snapshot("run_ascii.txt", without_times(ended.err))


@pytest.mark.subprocess
class TestTerminal:
    def test_phases_chart_loss_gradient_and_answer(self, chat_server):
        terminal = Terminal("run", QUESTION, *at(chat_server()))
        assert terminal.wait() == 0
        text = terminal.text
        assert "loading policy and reward model" in text
        for step in (0, 1, 2):
            assert f"\nstep {step}\n" in text
        for phase in ("sample", "score", "select", "loss", "gradient", "update"):
            assert re.search(rf"✓ {phase} ", text), phase
        assert "drawing 5 candidates" in text  # what goes on, while it goes on
        assert "│ the loss" in text and "│ 1. the gradient" in text
        assert re.search(r"step 2 .*◆ +\+18\.000 +\+16\.000 +\+14\.000", text)
        assert "depth: all steps are done" in text
        assert re.search(r"best \+18\.000 \(2-4\) · 7 requests · [\d,]+ \+ [\d,]+ tokens · \d+\.\d s", text)
        assert "─ answer ─" in text and text.rstrip().endswith("rev 18")
        assert b"\x1b[32m" in terminal.raw  # colour

    def test_no_color_is_honoured_and_the_policy_can_not_write_control_codes(self, chat_server):
        hostile = "\x1b]0;title\x07\x1b[31;5mwarm \x9b41m \u202e[red]x[/red] 1"
        terminal = Terminal("run", QUESTION, *at(chat_server(answer=lambda *_: hostile)), "--depth", "1", NO_COLOR="1")
        assert terminal.wait() == 0
        assert (
            b"\x1b]" not in terminal.raw
            and b"\x07" not in terminal.raw
            and not {"\x9b", "\u202e"} & set(terminal.raw.decode())
        )
        colours = {code for codes in re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw) for code in codes.split(b";")}
        assert colours <= {b"0", b"1", b"2", b"3", b"39", b"49"}  # bold, dim, italic
        assert terminal.text.rstrip().endswith("␛]0;title␇␛[31;5mwarm \ufffd41m \ufffd[red]x[/red] 1")

    def test_a_dumb_terminal_gets_no_control_codes(self):
        terminal = Terminal("run", QUESTION, "--policy", "server:nowhere", "--reward", "none", TERM="dumb")
        assert terminal.wait() == 2
        assert b"\x1b" not in terminal.raw
        assert terminal.text.startswith("tpo-graph  policy server:nowhere · reward model none · mode tpo")

    @pytest.mark.parametrize(
        ("faults", "reward", "until", "says", "last_line"),
        [
            (
                [None, "hang"],
                "number",
                "loss: comparing the best with the worst",
                "interrupted: the answer is the best candidate so far",
                "cand 4",
            ),
            ([], "slow", "loading reward model", "interrupted: no candidate was drawn", ""),
            (
                [],
                "stuck",
                "score: asking the reward model",
                "interrupted: 5 candidates drawn, none scored",
                "candidate 0-4 (5 of 5, not scored):\ncand 4",
            ),
        ],
    )
    def test_ctrl_c_keeps_what_was_paid_for(self, chat_server, faults, reward, until, says, last_line):
        terminal = Terminal("run", QUESTION, *at(chat_server(faults=faults), reward=reward))
        terminal.read(until=until)
        interrupted_at = time.monotonic()
        terminal.interrupt()
        assert terminal.wait() == 130
        assert time.monotonic() - interrupted_at < 5
        assert says in terminal.text
        assert terminal.text.rstrip().endswith(last_line)
        assert "Traceback" not in terminal.text


def test_a_long_wait_is_not_silent():
    now = [0.0]
    file = io.StringIO()
    with Reporter(Console(file=file, width=80), clock=lambda: now[0]) as reporter:
        reporter.load("policy", "local", None)
        for now[0] in (10.0, 25.0, 26.0):
            reporter.idle()
        reporter.phase_started("sample", 0, TPOSettings())
        for now[0] in (45.0, 47.0):
            reporter.idle()
    assert file.getvalue().splitlines() == [
        "  ... loading policy (25 s)",
        "",
        "step 0",
        "  ... sample: drawing 5 candidates (21 s)",
    ]


def test_nothing_is_shown_after_the_end():
    file = io.StringIO()
    reporter = Reporter(Console(file=file, width=80))
    with reporter:
        reporter.finish(Outcome(interrupted=True))
        reporter.warn("late")
    assert "no candidate was drawn" in file.getvalue() and "late" not in file.getvalue()


@pytest.mark.parametrize("reason", get_args(StopReason))
def test_every_stop_reason_has_its_words(reason):
    words = ending(Outcome(state={"stop_reason": reason}))
    assert words.startswith(f"{reason}: ") and len(words) > len(reason) + 5


@pytest.mark.parametrize("reason", get_args(FailureReason))
def test_every_failure_has_its_words(reason):
    assert "_" not in failure_line(FailureRecord(phase="update", step=1, reason=reason, detail="", text=""))


def chart(*steps: tuple[float, list[float]], width: int = 80) -> list[str]:
    """The lines of a chart, of the best reward so far and the rewards of each step."""
    trajectory = [{"step": step, "best_reward": best} for step, (best, _) in enumerate(steps)]
    cache = [{"step": step, "reward": reward} for step, (_, rewards) in enumerate(steps) for reward in rewards]
    lines = reward_chart({"trajectory": trajectory, "cache": cache}, width=width, marks=ASCII_MARKS)
    return [line.plain.rstrip() for line in lines[1:]]


def test_there_is_no_chart_before_the_first_selection():
    assert reward_chart({}, width=80) == []


def test_best_worst_and_mean_stand_where_they_belong():
    head, first, second, _ = chart((0.0, [-1.0, 0.0]), (1.0, [0.5, 1.0]))
    assert head.split() == ["rewards", "-1.000", "+1.000", "best", "mean", "worst"]
    assert first[9] == "o"  # the lowest of all is at the left edge
    assert first.split()[-3:] == ["+0.000", "-0.500", "-1.000"]
    assert second.index("*") == 9 + 47 - 1  # the highest of all is at the right edge
    assert second.index("o") < second.index("|") < second.index("*")


def test_a_step_without_candidates_keeps_the_best():
    *_, last, _ = chart((1.0, [0.0, 1.0]), (1.0, []))
    assert last.endswith("no candidates") and "*" in last and "o " not in last[9:56]


def test_equal_rewards_stand_in_the_middle():
    _, row, _ = chart((2.0, [2.0, 2.0]))
    assert row.index("*") == 9 + 23


@pytest.mark.parametrize("value", [1e-300, 1e300, math.ulp(1.0), -1.7e308])
def test_any_finite_rewards(value):
    assert len(chart((abs(value), [value, abs(value), 0.0]))) == 3


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width):
    rows = [(12345.678, [-12345.678, 0.0]) for step in range(12)]
    assert max(len(line) for line in chart(*rows, width=width)) <= width
