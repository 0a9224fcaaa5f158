"""The main job: a question in, the answer out, what happened beside it."""

import io
import json
import re
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, at, command, environment, run_process, snapshot
from tests.fresh_process import run_script
from tests.tpo_script import phase_of, server_reply
from tpo_graph.cli.result import write_json

QUESTION = "Why is the sky blue?"


def plain(err: str) -> str:
    """Progress without what differs from run to run."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", err)
    text = re.sub(r"\[ *\d+\.\d+s\]", "[TIME]", text)
    text = re.sub(r"\d+\.\d s\b", "TIME", text)
    lines = text.splitlines()
    # policy and reward model are loaded at the same time
    ready = sorted(line for line in lines if line.endswith("ready (TIME)"))
    rest = [line for line in lines if not line.endswith("ready (TIME)")]
    return "\n".join([*rest[:3], *ready, *rest[3:], ""])


def test_the_process_prints_the_answer_on_stdout_and_plain_progress_on_stderr(chat_server):
    ended = run_process("run", QUESTION, *at(chat_server()))
    assert ended.code == 0
    assert ended.out == "rev 18\n"
    assert "\x1b" not in ended.err
    assert "\r" not in ended.err
    snapshot("plain_run.txt", plain(ended.err))


def test_json_is_the_whole_result(chat_server, tpo):
    server = chat_server()
    ended = tpo("run", QUESTION, *at(server), "--json", "--depth", "1", "-n", "3", "--system", "Be brief.")
    assert ended.code == 0
    result = json.loads(ended.out)
    assert result["answer"] == "rev 7"
    assert result["stop_reason"] == "depth"
    assert result["best"] == {"id": "1-2", "step": 1, "text": "rev 7", "truncated": False, "reward": 7.0}
    assert result["worst"]["text"] == "cand 0"
    assert [each["reward"] for each in result["cache"]] == [0.0, 1.0, 2.0, 5.0, 6.0, 7.0]
    assert [record["step"] for record in result["trajectory"]] == [0, 1]
    assert result["trajectory"][1]["loss"] == "the loss"
    assert result["usage"]["sample"]["requests"] == 1
    assert result["failures"] == result["unscored"] == []
    assert result["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "rev 7"},
    ]
    assert result["settings"]["n"] == 3
    assert result["settings"]["depth"] == 1
    assert result["models"] == {"policy": f"server:{server.url}#scripted", "reward model": "number"}
    assert result["prompts"] == "tpo"
    assert result["error"] is None
    assert result["interrupted"] is False
    assert "step 1 update" in ended.err


def test_the_policy_gets_the_question_and_the_system_message(chat_server, tpo):
    server = chat_server()
    tpo("run", QUESTION, *at(server), "--mode", "bon", "--system", "Be brief.")
    roles = [(each["role"], each["content"]) for each in server.bodies[0]["messages"]]
    assert roles == [("system", "Be brief."), ("user", QUESTION)]


def test_a_critic_writes_loss_and_gradient(chat_server, tpo):
    policy, critic = chat_server(), chat_server()
    ended = tpo("run", QUESTION, *at(policy), "--critic", f"server:{critic.url}#scripted", "--depth", "1")
    assert ended.code == 0
    assert [phase_of(body["messages"][-1]["content"]) for body in policy.bodies] == ["sample", "update"]
    assert [phase_of(body["messages"][-1]["content"]) for body in critic.bodies] == ["loss", "gradient"]
    assert "critic server:" in ended.err


def test_a_critic_of_the_policys_name_is_loaded_once(chat_server, tpo):
    server = chat_server()
    ended = tpo("run", QUESTION, *at(server), "--critic", f"server:{server.url}#scripted", "--depth", "1")
    assert ended.code == 0
    assert ended.err.count(": loading") == 2


def test_a_dash_reads_standard_input(chat_server, tpo, monkeypatch):
    server = chat_server()
    monkeypatch.setattr(sys, "stdin", io.StringIO("  Wie grün\nist das? \n"))
    assert tpo("run", "-", *at(server), "--mode", "bon").code == 0
    assert server.bodies[0]["messages"][-1]["content"] == "Wie grün\nist das?"


@pytest.mark.parametrize(
    "arguments", [["-"], [b"caf\xe9"], [QUESTION, "--system", b"caf\xe9"], [QUESTION, "--preference", b"caf\xe9"]]
)
def test_bytes_that_are_no_text_are_refused_before_a_model_is_loaded(arguments):
    done = subprocess.run(
        [*command("run", "--policy", "server:nowhere"), *arguments],
        input=b"caf\xe9?",
        capture_output=True,
        timeout=60,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert b"is not valid UTF-8 after 'caf'" in done.stderr
    assert b"loading" not in done.stderr


def test_quiet_says_nothing_but_the_answer(chat_server, tpo):
    ended = tpo("run", QUESTION, *at(chat_server()), "-q", "--mode", "bon")
    assert (ended.code, ended.out, ended.err) == (0, "cand 4\n", "")


def test_a_pack_of_ones_own(chat_server, tpo, tmp_path):
    folder = tmp_path / "mine"
    assert tpo("prompts", "copy", "tpo", str(folder)).code == 0
    loss = folder / "loss.toml"
    loss.write_text(loss.read_text().replace("Find out why.", "Find out why, in rhyme."))
    server = chat_server()
    ended = tpo("run", QUESTION, *at(server), "--prompts", str(folder), "--depth", "1", "--json")
    assert "in rhyme" in server.requests[1].text
    assert json.loads(ended.out)["prompts"] == "mine"


def test_text_of_the_policy_is_neither_markup_nor_control_codes(chat_server, tpo):
    hostile = "\x1b[2J[red]bold[/red] \x07 \x9b31m [link=x] 3\r\nnext 4"
    server = chat_server(answer=lambda request, number: hostile)
    ended = tpo("run", QUESTION, *at(server), "--depth", "1")
    assert ended.out == "␛[2J[red]bold[/red] ␇ \ufffd31m [link=x] 3\nnext 4\n"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.err)
    raw = tpo("run", QUESTION, *at(server), "--depth", "1", "--json")
    assert json.loads(raw.out)["answer"] == hostile
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", raw.out)


def test_the_demonstration_reward_is_named_as_such(tpo):
    ended = tpo("run", QUESTION, "--policy", "openai:none", "--reward", "local")
    warnings = [line for line in ended.err.splitlines() if "warning:" in line]
    assert len(warnings) == 1
    assert "demonstration" in warnings[0]


def test_signs_of_overoptimization_are_told(chat_server, tpo):
    server = chat_server(answer=lambda request, number: server_reply(request, number % 2))
    ended = tpo("run", QUESTION, *at(server), "--depth", "1", "--json")
    kinds = [each["kind"] for each in json.loads(ended.out)["warnings"]]
    assert "duplicate_candidates" in kinds
    assert "warning: 6 of 10 candidates repeat an earlier one" in ended.err


def test_a_second_reward_watches(chat_server, tpo, tmp_path):
    (tmp_path / "second.py").write_text("def f(response):\n    return -float(response.split()[-1])\n")
    name = f"python:{tmp_path / 'second.py'}:f"
    ended = tpo("run", QUESTION, *at(chat_server()), "--depth", "1", "--second-reward", name, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["models"]["second reward model"] == name
    assert [each["kind"] for each in result["warnings"]] == ["second_scorer_falls"]
    assert ended.err.count("warning:") == 1
    assert "while the second scorer's fell" in ended.err


def test_the_first_line_comes_before_anything_heavy_is_imported(chat_server):
    done = run_script(
        f"""
        import sys
        class Watched:
            heavy = None
            encoding = "utf-8"
            isatty = staticmethod(lambda: False)
            flush = staticmethod(lambda: None)
            def write(self, text):
                if self.heavy is None:
                    self.heavy = {"torch", "langgraph", "langchain_core", "openai"} & sys.modules.keys()
        sys.stderr = Watched()
        from tpo_graph.cli.app import execute
        execute(["run", "q", "--policy", "server:{chat_server().url}#scripted", "--reward", "none"])
        print(sys.stderr.heavy)
        """
    )
    assert done.stdout == "set()\n"


def test_a_reader_that_leaves_is_no_error():
    shell = f"'{sys.executable}' -m tpo_graph prompts show tpo | head -1"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60
    )
    assert done.stdout.startswith("# ---- pack.toml")
    assert done.stderr == ""


def test_an_answer_that_the_terminals_encoding_has_no_letters_for(chat_server):
    server = chat_server(answer=lambda request, number: "naïve → 1")
    ended = run_process("run", QUESTION, *at(server), "--mode", "bon", "-q", PYTHONIOENCODING="ascii")
    assert (ended.code, ended.out) == (0, "na\\xefve \\u2192 1\n")


def test_json_in_any_encoding(monkeypatch):
    document = {"answer": "naïve → \x7f\x9b \ud83d"}
    for encoding in ("utf-8", "ascii", "latin-1"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        write_json(document)
        written = out.buffer.getvalue().decode(encoding)
        assert json.loads(written) == document
        assert ("→" in written) == (encoding == "utf-8")
        assert not {"\x7f", "\x9b"} & set(written)
