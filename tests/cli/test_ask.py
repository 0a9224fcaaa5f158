"""What a person sees in the terminal when they are asked, and what their lines become."""

import io
import json
import sys

import pytest

from tests.cli.conftest import Terminal, at, run_process
from tests.tpo_script import phase_of
from tpo_graph.cli.ask import ask

QUESTION = {
    "kind": "tpo_choice",
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
        ("9\n2\n\n\n", {"best": "0-2"}),
        ("2\n2\n0-2\n1\n\n", {"best": "0-2", "worst": "0-1"}),  # it can't be both
        ("9\n", {"stop": True}),
    ],
)
def test_lines_become_an_answer(typed, answer):
    assert answered(typed)[0] == answer


def test_the_person_sees_everything_that_they_choose_from():
    _, shown = answered("\n\n\n")
    assert "[1] 0-1  reward +0.500\n    two\n    lines\n" in shown
    assert "bad ␛[31mred" in shown and "\x1b" not in shown
    assert "Best [1], or s to stop: Worst [3]: Critique [the critic writes it]: " in shown


def test_long_candidates_break_between_words_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    out.isatty = lambda: True
    candidates = [{"id": name, "step": 0, "reward": 0.5, "text": "everyone " * 30} for name in ("0-1", "0-0")]
    ask({**QUESTION, "candidates": candidates}, read=io.StringIO("s\n").readline, out=out)
    lines = [line for line in out.getvalue().splitlines() if "everyone" in line]
    assert set(lines[:7]) == {"    everyone everyone everyone everyone"} and len(lines) == 16


def test_at_the_end_there_is_only_the_best_to_choose():
    answer, shown = answered("2\n", ends="depth")
    assert answer == {"best": "0-2"} and "Worst" not in shown


def test_a_graph_without_a_critique_asks_for_none():
    assert "Critique" not in answered("\n\n", answer={"best": "", "worst": "", "stop": ""})[1]


def test_what_was_wrong_stands_above_the_next_prompt():
    assert "\nbest='9' is no candidate.\nBest [1]" in answered("\n\n\n", problem="best='9' is no candidate.")[1]
    assert "\x1b" not in (shown := answered("\x1b[2J\n\n\n")[1])
    assert "Best [1], or s to stop: There is no '␛[2J' here; these are: 1, 2, 3.\nBest [1], or s to stop: " in shown


RATING = {
    "kind": "tpo_rating",
    "question": "How good is each candidate?",
    "problem": "",
    "candidates": [{"id": "1-0", "step": 1, "text": "two\nlines"}, {"id": "1-1", "step": 1, "text": "other"}],
    "best_so_far": {"id": "0-0", "step": 0, "reward": 1.0, "text": "the first"},
}


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("7 3.5\n", {"ratings": {"1-0": 7.0, "1-1": 3.5}}),
        ("7, -3\n", {"ratings": {"1-0": 7.0, "1-1": -3.0}}),
        ("7 good\n7\nnan 1\n7 5\n", {"ratings": {"1-0": 7.0, "1-1": 5.0}}),
        ("\n\n9\n2\nb\n2\n1\n", {"best": "1-1", "worst": "1-0"}),
        ("\n2\n\n", {"best": "1-1"}),
        ("\nb\n1\n", {"best": "0-0", "worst": "1-0"}),
        ("\n1-1\n", {"best": "1-1"}),
    ],
)
def test_lines_become_a_rating(typed, answer):
    out = io.StringIO()
    assert ask(RATING, read=io.StringIO(typed).readline, out=out) == answer
    assert "[1] 1-0\n    two\n    lines\n" in out.getvalue()
    assert "[b] the best so far: 0-0  reward +1.000\n    the first\n" in out.getvalue()


@pytest.mark.parametrize("typed", ["", "\n"])
def test_who_leaves_before_they_rated_interrupts_the_run(typed):
    with pytest.raises(EOFError):
        ask(RATING, read=io.StringIO(typed).readline, out=io.StringIO())


CRITIQUE = {
    "kind": "tpo_critique",
    "question": "This is what the critic wrote.",
    "problem": "",
    "critique": "too stiff\nand long",
    "gradient": "",
}


@pytest.mark.parametrize(
    ("typed", "answer"), [("\n", "ok"), ("", "ok"), (" ok? no \n", {"critique": "ok? no"}), ("e\n", {"critique": "e"})]
)
def test_a_line_becomes_a_critique(typed, answer, monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.setenv("PATH", "")
    out = io.StringIO()
    assert ask(CRITIQUE, read=io.StringIO(typed).readline, out=out) == answer
    assert "critique:\n    too stiff\n    and long\n" in out.getvalue() and "advice" not in out.getvalue()


def test_an_editor_that_is_not_there_leaves_the_critique_as_it_is(monkeypatch):
    monkeypatch.setenv("VISUAL", "/no/such/editor")
    out = io.StringIO()
    assert ask(CRITIQUE, read=io.StringIO("e\n").readline, out=out) == {"critique": CRITIQUE["critique"]}
    assert "Another critique [this one], or e to edit it in editor: " in out.getvalue()
    assert "The editor '/no/such/editor' can't be started" in out.getvalue()


def test_problems_with_ratings_stand_between_the_prompts():
    out = io.StringIO()
    ask(RATING, read=io.StringIO("7 good\n7\n7 5\n").readline, out=out)
    problems = [line.rpartition("): ")[2] for line in out.getvalue().splitlines() if "needed" in line]
    assert problems == [
        "'good' is not a number; 2 numbers needed, one for each candidate.",
        "1 rating typed; 2 numbers needed, one for each candidate.",
    ]


class Pieces(io.StringIO):
    """Keeps what is written, piece by piece: a prompt is one of them."""

    def write(self, text):
        self.pieces = [*getattr(self, "pieces", []), text]
        return len(text)


def test_nothing_is_wider_than_80_columns():
    for question, typed in ((QUESTION, "9\n\n\n\n"), (RATING, "7\n\n1\n\n"), (CRITIQUE, "\n")):
        out = Pieces()
        ask(question, read=io.StringIO(typed).readline, out=out)
        assert max(len(line) for piece in out.pieces for line in piece.splitlines()) < 80


def test_the_advice_that_was_written_with_it_is_shown_too():
    out = io.StringIO()
    ask({**CRITIQUE, "gradient": "loosen it"}, read=io.StringIO("\n").readline, out=out)
    assert "    loosen it\n" in out.getvalue()


# the whole command


@pytest.fixture
def run_with(chat_server, tpo, monkeypatch):
    """Runs the command with what a person types; how it ended, and what the policy was asked."""

    def run(typed, *flags, reward="number", editor=None):
        server = chat_server()
        arguments = ["run", "Why?", *at(server, reward=reward), "-n", "3", "--depth", "1", *flags]
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        # an editor needs a real standard error
        ended = run_process(*arguments, stdin=typed, EDITOR=editor) if editor else tpo(*arguments)
        return ended, [(phase_of(request.text), request.text) for request in server.requests]

    return run


def test_a_person_chooses_and_leaves_the_critique_to_the_critic(run_with):
    # best and worst of the drafts, no critique, the critic's is good; then one of the drafts after all
    ended, asked = run_with("0-0\n0-1\n\n\n0-1\n", "--ask", "--json")
    result = json.loads(ended.out)
    assert (ended.code, result["answer"], result["best"]["id"], result["stop_reason"]) == (0, "cand 1", "0-1", "depth")
    choices = [(choice["best"], choice["worst"]) for choice in result["choices"]]
    assert choices == [("cand 0", "cand 1"), ("cand 1", "cand 0")]
    assert [phase for phase, _ in asked] == ["sample", "loss", "gradient", "update"]
    assert "<best_response>\ncand 0" in asked[1][1] and "<worst_response>\ncand 1" in asked[1][1]
    assert "critique:\n    the loss\n" in ended.err
    assert "score     best +7.000   mean +6.000   worst +5.000" in ended.err


@pytest.mark.subprocess
def test_a_person_edits_the_critique_in_their_editor(run_with):
    ended, asked = run_with("\n\n\ne\n\n", "--ask", editor="sed -i s/the/your/")
    assert (ended.code, ended.out) == (0, "rev 7\n")
    assert all("your loss" in text for phase, text in asked if phase in ("gradient", "update"))


def test_what_can_not_be_understood_is_asked_again(run_with):
    ended, _ = run_with("9\nstop\n", "--ask")
    assert (ended.code, ended.out) == (0, "cand 2\n")
    assert "There is no '9' here; these are: 1, 2, 3." in ended.err
    assert "person: you stopped it\nfirst draft (+0.000) -> answer (+2.000) best of 3, 1 request" in ended.err


def test_the_end_of_the_input_stops_the_run(run_with):
    ended, asked = run_with("", "--ask", "--quiet")
    assert (ended.code, ended.out, len(asked)) == (0, "cand 2\n", 1)


def test_a_person_is_the_reward(run_with):
    ended, asked = run_with("1 5 2\n\nb\n2\n", reward="person")
    assert (ended.code, ended.out) == (0, "cand 1\n")
    assert [phase for phase, _ in asked] == ["sample", "loss", "gradient", "update"]
    assert "<best_response>\ncand 1" in asked[1][1] and "<worst_response>\ncand 0" in asked[1][1]
    assert "score     best +5.000   mean +2.667   worst +1.000" in ended.err
    assert "score     best +0.000   mean -0.333   worst -1.000" in ended.err


def test_a_person_is_the_reward_and_chooses_too(run_with):
    typed = "1 5 2\n" + "\n\nIt is stiff.\n" + "1 9 2\n" + "\n"
    ended, asked = run_with(typed, "--ask", reward="person")
    assert (ended.code, ended.out) == (0, "rev 5\n")
    assert [phase for phase, _ in asked] == ["sample", "gradient", "update"] and "It is stiff." in asked[1][1]


def test_who_leaves_before_they_rated_gets_the_drafts(run_with):
    ended, _ = run_with("", reward="person")
    assert (ended.code, ended.out) == (130, "")
    assert "interrupted: 3 candidates drawn, none scored" in ended.err
    assert "candidate 0-2 (3 of 3, not scored):\ncand 2" in ended.err and "Traceback" not in ended.err


def test_a_question_from_standard_input_leaves_none_for_the_answers(tpo):
    for flags, named in ((["--ask"], "--ask"), (["--reward", "person"], "--reward person")):
        ended = tpo("run", "-", *flags)
        assert ended.code == 2 and f"{named} reads your answers from standard input" in ended.err


@pytest.mark.subprocess
def test_the_terminal_is_free_while_a_person_is_asked(chat_server):
    terminal = Terminal("run", "Why?", *at(chat_server(), reward="person"), "-n", "2", "--mode", "bon")
    terminal.read(until="pick the best instead): ")
    terminal.type("3 4\n")
    assert terminal.wait() == 0
    assert terminal.text.rstrip().endswith("cand 1")


@pytest.mark.subprocess
def test_ctrl_c_while_a_person_is_asked(chat_server):
    terminal = Terminal("run", "Why?", *at(chat_server()), "--ask")
    terminal.read(until="or s to stop: ")
    terminal.interrupt()
    assert terminal.wait() == 130
    assert terminal.text.rstrip().endswith("cand 4") and "Traceback" not in terminal.text
