"""Errors that a person will meet: one clear line, one hint, an exit code, no traceback."""

import json
import re
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, at, environment
from tpo_graph.cli.failures import EXIT_CODES_HELP, describe, exit_code_of, report
from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
)

QUESTION = "Why is the sky blue?"


def told(ended) -> tuple[int, str, str]:
    """The exit code and the two lines."""
    assert "Traceback" not in ended.err
    assert len(ended.error_lines) == 2, ended.err
    error, hint = ended.error_lines
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return ended.code, error, hint


def test_no_key(tpo):
    code, error, hint = told(tpo("run", QUESTION, "--policy", "openai:gpt-4o-mini", "--reward", "number"))
    assert code == 2
    assert "openai:gpt-4o-mini" in error
    assert "OPENAI_API_KEY" in error
    assert hint


def test_the_hint_is_for_the_command_that_was_given(tpo):
    _, _, hint = told(tpo("score", "nowhere.jsonl", "--reward", "local"))
    assert hint == "hint: --help after the command lists every option and what it takes."


def test_a_second_reward_beside_a_person(tpo):
    code, error, _ = told(tpo("run", QUESTION, "--reward", "person", "--second-reward", "local"))
    assert code == 2
    assert "--second-reward watches a reward model" in error


def test_no_server(tpo, unused_tcp_port):
    policy = f"server:http://127.0.0.1:{unused_tcp_port}/v1#m"
    code, error, hint = told(tpo("run", QUESTION, "--policy", policy, "--reward", "number"))
    assert code == 3
    assert "refused" in error
    assert "running" in hint


def test_no_server_to_ask_for_its_model(tpo, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    code, error, hint = told(tpo("run", QUESTION, "--policy", f"server:{url}", "--reward", "number"))
    assert code == 3
    assert url in error
    assert error.endswith("does not tell its models: the connection was refused.")
    assert "running" in hint


def test_wrong_model_name(chat_server, tpo):
    code, error, hint = told(tpo("run", QUESTION, *at(chat_server(always="404"))))
    assert code == 3
    assert "The model does not exist" in error
    assert "model name" in hint


def test_a_key_that_is_not_accepted(chat_server, tpo):
    code, error, hint = told(tpo("run", QUESTION, *at(chat_server(always="401"))))
    assert code == 3
    assert "Incorrect API key" in error
    assert "API key" in hint


def test_the_local_extra_is_missing():
    script = (
        "import sys; sys.modules['xllamacpp'] = None; sys.argv = ['tpo-graph', 'run', 'q', '--policy', 'local']\n"
        "from tpo_graph.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment(), cwd=ROOT
    )
    error, hint = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert done.returncode == 2
    assert error.startswith("error: ")
    assert "tpo-graph[local]" in error + hint


def test_an_unknown_prompt_variable(chat_server, tpo, tmp_path):
    folder = tmp_path / "mine"
    tpo("prompts", "copy", "tpo", str(folder))
    loss = folder / "loss.toml"
    loss.write_text(loss.read_text().replace("$best", "$bset"))
    for arguments in (["prompts", "check", str(folder)], ["run", QUESTION, "--prompts", str(folder)]):
        code, error, _ = told(tpo(*arguments))
        assert code == 2
        assert "$bset" in error
        assert "loss.toml" in error
        assert "best" in error


def test_an_unknown_pack(tpo):
    code, error, hint = told(tpo("run", QUESTION, "--prompts", "nope"))
    assert code == 2
    assert "'nope'" in error
    assert "prompts" in hint


@pytest.mark.parametrize("question", ["", "  \n "])
def test_an_empty_question(tpo, question):
    code, error, hint = told(tpo("run", question))
    assert code == 2
    assert "empty" in error
    assert "quotes" in hint


def test_a_question_without_quotes(tpo):
    code, _, hint = told(tpo("run", "Why", "is"))
    assert code == 2
    assert "quotes" in hint
    code, _, hint = told(tpo("prompts", "list", "tpo"))
    assert code == 2
    assert "quotes" not in hint


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--n", "0"], "n='0'"),
        (["-n", "many"], "n='many'"),
        (["--mode", "foo"], "mode='foo'"),
        (["--depth", "none"], "depth='none'"),
        (["--sample-top-p", "2"], "sample_top_p='2'"),
        (["--close-tag", " "], "close_tag=' '"),
    ],
)
def test_a_bad_setting(tpo, arguments, named):
    code, error, _ = told(tpo("run", QUESTION, *arguments))
    assert code == 2
    assert named in error


def test_a_bad_variable(tpo, monkeypatch):
    monkeypatch.setenv("TPO_DEPTH", "abc")
    code, error, _ = told(tpo("run", QUESTION))
    assert code == 2
    assert "TPO_DEPTH='abc'" in error


def test_a_config_file_that_is_not_there(tpo, tmp_path):
    code, error, _ = told(tpo("run", QUESTION, "--config", str(tmp_path / "none.toml")))
    assert code == 2
    assert "none.toml" in error


@pytest.mark.parametrize(("text", "said"), [("n = ", "not valid TOML"), ("nn = 3", "'nn'"), ("n = -1", "n=-1")])
def test_a_config_file_that_is_wrong(tpo, tmp_path, text, said):
    file = tmp_path / "tpo.toml"
    file.write_text(text)
    code, error, _ = told(tpo("run", QUESTION, "--config", str(file)))
    assert code == 2
    assert said in error


def test_an_unknown_reward(chat_server, tpo):
    code, error, hint = told(tpo("run", QUESTION, *at(chat_server(), reward="nunber")))
    assert code == 2
    assert "'nunber'" in error
    assert "number" in hint


def test_a_policy_that_can_not_be_understood(tpo):
    code, error, _ = told(tpo("run", QUESTION, "--policy", "vllm:nowhere", "--reward", "number"))
    assert code == 2
    assert "vllm:nowhere" in error


@pytest.mark.parametrize(
    "arguments", [["frob"], ["run"], ["run", "q", "--frob"], ["prompts", "frob"], ["run", "q", "-n"]]
)
def test_a_command_line_that_can_not_be_understood(tpo, arguments):
    code, _, hint = told(tpo(*arguments))
    assert code == 2
    assert "--help" in hint


def test_debug_shows_the_traceback_and_then_the_two_lines(tpo):
    ended = tpo("run", QUESTION, "--n", "0", "--debug")
    assert ended.code == 2
    assert ended.err.startswith("Traceback")
    assert ended.err.splitlines()[-2].startswith("error: Setting n='0'")


def test_json_tells_errors_too(tpo):
    ended = tpo("run", QUESTION, "--n", "0", "--json")
    assert ended.code == 2
    error = json.loads(ended.out)["error"]
    assert (error["kind"], error["exit_code"]) == ("ConfigurationError", 2)
    assert "n='0'" in error["message"]


def test_an_error_of_several_lines_is_told_in_one(tpo, tmp_path):
    code, error, _ = told(tpo("run", QUESTION, "--config", str(tmp_path / "a\n\x1b[31mb.toml")))
    assert code == 2
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (MissingDependencyError("x"), 2),
        (PromptError("x"), 2),
        (PolicyError("x"), 3),
        (RewardError("x"), 4),
        (BudgetError("x"), 5),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_kind_of_error_has_an_exit_code_a_hint_and_a_place_in_the_help(error, code):
    told = describe(error)
    assert exit_code_of(error) == told["exit_code"] == code
    assert told["hint"]
    assert re.search(rf"\b{code} ", EXIT_CODES_HELP)


def test_a_defect_is_told_as_one(capsys):
    assert report(ZeroDivisionError("division by zero"), debug=False) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: ZeroDivisionError: division by zero"
    assert "--debug" in hint
