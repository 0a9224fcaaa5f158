"""What a person sees of a run: as a snapshot, on a real pseudo-terminal, and what its words and its chart are."""

import io
import itertools
import json
import math
import re
import time
from typing import get_args

import pytest
from rich.console import Console

from tests.cli.conftest import Terminal, at, run_process, snapshot
from tests.tpo_script import phase_of, server_reply
from tpo_graph.cli.chart import ASCII_MARKS, reward_chart
from tpo_graph.cli.display import Reporter, ending, failure_line, gain
from tpo_graph.cli.outcome import Outcome, RunRequest
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
        assert "(N 5, D 2), about 7 requests\n" in text
        ending = "first draft (+0.000) -> answer (+18.000) after 2 steps, 7 requests, "
        assert re.search(re.escape(ending) + r"[\d,]+ tokens read, [\d,]+ written, \d+\.\d s ", " ".join(text.split()))
        assert "─ answer ─" in text and text.rstrip().endswith("rev 18")
        assert b"\x1b[32m" in terminal.raw  # colour

    def test_the_clock_does_not_stand_still_while_a_library_holds_the_lock(self, chat_server):
        terminal = Terminal("run", QUESTION, *at(chat_server(), reward="holding"), "--mode", "bon")
        assert terminal.wait() == 0
        seconds = sorted({float(found) for found in re.findall(r"loading [a-z ]+ (\d+\.\d) s", terminal.text)})
        assert seconds[-1] > 2 and max(after - before for before, after in itertools.pairwise(seconds)) < 1
        assert terminal.text.count("✓ reward model") == 1 and terminal.text.rstrip().endswith("cand 4")

    def test_completions_are_counted_as_they_come_where_each_has_a_request(self, chat_server):
        server = chat_server(answer=lambda *asked: time.sleep(0.3) or server_reply(*asked), most_n=1)
        terminal = Terminal("run", QUESTION, *at(server), "--mode", "bon")
        assert terminal.wait() == 0
        assert re.search("drawing 5 candidates, [1-4] of 5 ", terminal.text)

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
        assert terminal.text.startswith("tpo-graph  policy server:nowhere · reward model none\n")

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
    def test_ctrl_c_keeps_what_was_paid_for(self, chat_server, tmp_path, faults, reward, until, says, last_line):
        file = tmp_path / "run.json"
        server = chat_server(faults=faults)
        terminal = Terminal("run", QUESTION, *at(server, reward=reward), "--save", str(file))
        terminal.read(until=until)
        interrupted_at = time.monotonic()
        terminal.interrupt()
        assert terminal.wait() == 130
        assert time.monotonic() - interrupted_at < 5
        assert says in terminal.text
        assert terminal.text.rstrip().endswith(last_line)
        assert "Traceback" not in terminal.text
        assert file.exists() == (reward != "slow")
        assert not file.exists() or json.loads(file.read_text())["interrupted"] is True


def test_a_long_wait_is_not_silent():
    now = [0.0]
    file = io.StringIO()
    with Reporter(Console(file=file, width=80), clock=lambda: now[0]) as reporter:
        reporter.load("policy", "local", None)
        for now[0] in (10.0, 25.0, 26.0):
            reporter.idle()
        request = RunRequest("q", TPOSettings(), {"policy": "p", "reward model": "r"})
        reporter.phase_started("sample", 0, request, {})
        reporter.arrived(2)
        for now[0] in (45.0, 47.0):
            reporter.idle()
    assert file.getvalue().splitlines() == [
        "  ... loading policy (25 s)",
        "",
        "step 0",
        "  ... sample: drawing 5 candidates, 2 of 5 (21 s)",
    ]


def test_the_texts_that_are_compared_have_a_line_each_that_fits(chat_server, tpo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    server = chat_server(answer=lambda request, number: f"\x1b[31m漢字 \n\n{'long ' * 20} {number}")
    lines = tpo("run", QUESTION, *at(server), "--mode", "bon", "-n", "2").err.splitlines()
    shown = [line for line in lines if line.startswith("    │ ")]
    assert shown == ["    │ best  +1.000  ␛[31m漢字 long long…", "    │ worst +0.000  ␛[31m漢字 long long…"]


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({}, "5 candidates, 2 steps of 5 revisions (N 5, D 2), about 7 requests"),
        ({"n": 1, "depth": 1}, "1 candidate, 1 step of 1 revision (N 1, D 1), about 4 requests"),
        ({"mode": "bon", "seed": 7}, "5 candidates, the best is taken (mode bon, N 5), about 1 request · seed 7"),
        ({"mode": "revision"}, "5 candidates, 2 steps of 5 revisions (mode revision, N 5, D 2), about 7 requests"),
        ({"depth": 0}, "5 candidates, the best is taken (N 5, D 0), about 1 request"),
    ],
)
@pytest.mark.parametrize("variant", [None, "fused-critique"])
def test_the_first_lines_say_what_will_happen(settings, plan, variant):
    file = io.StringIO()
    request = RunRequest("q", TPOSettings(**settings), {"policy": "p", "reward model": "r"}, variant=variant)
    Reporter(Console(file=file, width=120)).start(request)
    if variant:
        plan = plan.replace("7 requests", "5 requests").replace("4 requests", "3 requests")
    assert [line.strip() for line in file.getvalue().splitlines()] == ["tpo-graph  policy p · reward model r", plan]


def test_the_end_says_what_the_run_brought_and_took():
    def said(*rewards, best, steps):
        cache = [{"id": str(place), "reward": reward} for place, reward in enumerate(rewards)]
        usage = {"sample": {"requests": 7, "input_tokens": 3400, "output_tokens": 1700, "seconds": 1.0}}
        picked = {"best": cache[best], "choices": [{}]} if cache else {}
        state = {"cache": cache, "trajectory": [{}] * (steps + 1), "usage": usage, **picked}
        return gain(Outcome(state=state, seconds=62.04))

    costs = "7 requests, 3,400 tokens read, 1,700 written, 62.0 s"
    assert said(0.3, 2.7, best=1, steps=2) == f"first draft (+0.300) -> answer (+2.700) after 2 steps, {costs}"
    assert said(0.3, -2.7, best=0, steps=1) == f"first draft (+0.300) is the answer after 1 step, {costs}"
    assert said(0.3, 2.7, best=1, steps=0) == f"first draft (+0.300) -> answer (+2.700) best of 2, {costs}"
    assert said(best=0, steps=-1) == costs


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
