"""The process around a command: streams that are closed or full, signals, and locales."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Ended, at, command, environment
from tests.fresh_process import run_script

pytestmark = pytest.mark.subprocess

BEST_OF_ONE = ["--mode", "bon", "-n", "1"]


def run_in_shell(redirections: str, *arguments: str, cwd: Path = ROOT, **variables: str) -> Ended:
    """Run the command with redirections as a shell writes them; its code is what the shell sees."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" "$@" {redirections}', *command(*arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**variables),
        cwd=cwd,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def started(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """The command in a process that goes on."""
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=cwd,
    )


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kept_in(folder: Path) -> str:
    """The text of the one file that was kept in a folder."""
    (file,) = folder.iterdir()
    return file.read_text("utf-8")


def test_progress_that_can_not_be_written_is_lost_and_the_answer_is_not(chat_server):
    ended = run_in_shell("2>/dev/full", "run", "q", *at(chat_server()), *BEST_OF_ONE)
    assert (ended.code, ended.out) == (0, "cand 0\n")


def test_with_all_streams_closed_the_answer_is_kept_in_a_file(chat_server, tmp_path):
    ended = run_in_shell("<&- >&- 2>&-", "run", "q", *at(chat_server()), *BEST_OF_ONE, cwd=tmp_path)
    assert ended.code == 6
    assert kept_in(tmp_path) == "cand 0\n"


def test_a_document_that_stdout_does_not_take_is_kept_whole(chat_server, tmp_path):
    ended = run_in_shell(">/dev/full", "run", "q", *at(chat_server()), *BEST_OF_ONE, "--json", "-q", cwd=tmp_path)
    assert ended.error.code == 6
    assert ended.error.message == "Standard output can't be written: No space left on device."
    (file,) = tmp_path.iterdir()
    assert ended.error.hint == f"The result is kept in {file}." and file.suffix == ".json"
    assert json.loads(file.read_text())["answer"] == "cand 0"


def test_candidates_that_stderr_does_not_take_are_kept_too(chat_server, tmp_path):
    arguments = ["run", "q", *at(chat_server(), reward="broken"), *BEST_OF_ONE]
    ended = run_in_shell("2>&-", *arguments, cwd=tmp_path)
    assert ended.code == 4
    (file,) = tmp_path.iterdir()
    assert ended.out == f"Standard error can't be written. {file} keeps 1 candidate, not scored.\n"
    assert "candidate 0-0 (1 of 1, not scored):\ncand 0\n" in file.read_text()


def test_what_was_not_paid_for_ends_with_the_code_alone():
    ended = run_in_shell(">/dev/full", "prompts", "show", "tpo")
    assert (ended.code, ended.err) == (6, "error: Standard output can't be written: No space left on device.\n")


def test_a_reader_that_leaves_is_no_error():
    ended = run_in_shell("| head -1; exit ${PIPESTATUS[0]}", "prompts", "show", "tpo")
    assert ended.out.startswith("# ---- pack.toml") and ended.err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_ctrl_c(chat_server, number, code):
    server = chat_server(faults=[None, "hang"])
    with started("run", "q", *at(server), "-q") as process:
        wait_until(lambda: len(server.requests) == 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "cand 4\n")
    assert err == "interrupted: the answer is the best candidate so far\n"


def test_the_second_signal_ends_at_once_and_one_that_comes_with_the_first_does_not():
    done = run_script(
        """
        import os, signal, time
        from tpo_graph.cli import process
        process.prepare()
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        except KeyboardInterrupt as interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            print(interrupt, process.interrupt_code(), flush=True)
        time.sleep(0.4)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            print("still here", flush=True)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "129 129\n", "")


def test_a_signal_that_is_ignored_stays_so():
    done = run_script(
        """
        import os, signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        from tpo_graph.cli import process
        process.prepare()
        os.kill(os.getpid(), signal.SIGHUP)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["tpo_graph.cli.process", "typer", "langgraph.graph"])
def test_ctrl_c_while_something_is_imported(module):
    done = run_script(
        f"""
        import os, signal, sys
        class PressCtrlC:
            def find_spec(self, name, *_):
                if name == {module!r}:
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, PressCtrlC())
        sys.argv = ["tpo-graph", "graph"]
        from tpo_graph.cli.app import main
        main()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_question_in_a_c_locale_is_utf_8(chat_server):
    server = chat_server(answer=lambda *_: "grün 1")
    c_locale = {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = run_in_shell("", "run", "Wie grün?", *at(server), *BEST_OF_ONE, "-q", **c_locale)
    assert (ended.code, ended.out, ended.err) == (0, "grün 1\n", "")
    assert server.bodies[0]["messages"][-1]["content"] == "Wie grün?"


def test_score_reports_what_it_has_when_it_is_ended(tmp_path):
    (tmp_path / "reward.py").write_text(
        "import pathlib, time\n"
        "def reward(response):\n"
        "    if response == 'slow':\n"
        "        pathlib.Path('started').touch()\n"
        "        time.sleep(60)\n"
        "    return len(response)\n"
    )
    pairs = [{"prompt": "q", "chosen": chosen, "rejected": "b"} for chosen in ("good", "slow")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    arguments = ["score", "pairs.jsonl", "--reward", "python:reward.py:reward", "--concurrency", "1", "--json"]
    with started(*arguments, cwd=tmp_path) as process:
        wait_until((tmp_path / "started").exists)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert json.loads(out)["scores"] == [{"line": 1, "chosen": 4.0, "rejected": 1.0, "truncated": False}]
    assert err.endswith("the report is of the first 1 pair alone\ninterrupted\n")
