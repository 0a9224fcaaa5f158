"""The commands put together: help, version, what Click refuses, and the graph as a picture."""

import subprocess
import sys
import tomllib

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import CONTROL_CODES, ROOT, environment
from tests.fresh_process import run_script
from tpo_graph.cli.commands import app


@pytest.mark.subprocess
def test_help_imports_nothing_heavy():
    done = run_script(
        """
        import sys
        from tpo_graph.cli.commands import execute
        for arguments in ([], ["--help"], ["run", "--help"], ["--version"]):
            assert execute(arguments) == 0
        print({"torch", "transformers", "langgraph", "langchain_core", "openai"} & sys.modules.keys())
        """
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert "Usage" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_command_alone_shows_help(arguments):
    result = CliRunner().invoke(app, arguments)
    text = CONTROL_CODES.sub("", result.output)
    assert result.exit_code == 0
    for word in ("run", "graph", "prompts", "score", "serve", "--debug", "Exit codes", "130 interrupted"):
        assert word in text


@pytest.mark.subprocess
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "tpo_graph", "--version"], capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0
    assert done.stdout.startswith("tpo-graph ")


def test_the_entry_point_is_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["tpo-graph"] == "tpo_graph.cli.app:main"


def test_graph_prints_mermaid(tpo, monkeypatch):
    monkeypatch.setenv("TPO_DEPTH", "abc")  # a picture does not depend on settings
    ended = tpo("graph")
    assert (ended.code, ended.err) == (0, "")
    for edge in ("__start__ --> sample", "sample --> score", "select -.-> loss", "select -.-> __end__"):
        assert edge in ended.out


@pytest.mark.parametrize(
    "arguments", [["frob"], ["run"], ["run", "q", "--frob"], ["prompts", "frob"], ["run", "q", "-n"]]
)
def test_a_command_line_that_can_not_be_understood(tpo, arguments):
    code, _, hint = tpo(*arguments).error
    assert code == 2
    assert "--help" in hint


def test_a_question_without_quotes(tpo):
    assert "quotes" in tpo("run", "Why", "is").error.hint
    assert "quotes" not in tpo("prompts", "list", "tpo").error.hint


@pytest.mark.parametrize("arguments", [["--debug", "run", "q", "--n", "0"], ["run", "q", "--n", "0", "--debug"]])
def test_debug_shows_the_traceback_and_then_the_two_lines(tpo, arguments):
    ended = tpo(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("Traceback")
    assert ended.err.splitlines()[-2].startswith("error: Setting n='0'")
