"""`tpo-graph report`: a run in a file, and a page beside it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import at
from tpo_graph.report import read_run

QUESTION = "Why is the sky blue?"


@pytest.fixture
def saved(tpo, chat_server, tmp_path):
    """A run that `run --json` printed into a file."""

    def save(*arguments: str, **server: object) -> Path:
        file = tmp_path / "run.json"
        file.write_text(tpo("run", QUESTION, *at(chat_server(**server)), "--json", *arguments).out, "utf-8")
        return file

    return save


def test_a_page_is_written_beside_the_run(tpo, saved):
    file = saved("--depth", "1", "-n", "3")
    ended = tpo("report", str(file))
    page = file.with_suffix(".html")
    assert (ended.code, ended.out, ended.err) == (0, f"{page}\n", "")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert ">rev 7<" in page.read_text("utf-8").replace("<ins>", ">").replace("</ins>", "<")


def test_what_a_run_prints_is_read_with_its_lineage(saved):
    run = read_run(saved("--depth", "1", "-n", "3"))
    assert (run.answer, run.question, run.stop_reason) == ("rev 7", QUESTION, "depth")
    parents = {child.id: parent.id for child in run.cache if (parent := run.parent(child))}
    assert parents == {"1-0": "0-2", "1-1": "0-2", "1-2": "0-2"}


def test_a_run_that_failed_before_a_candidate_has_a_page_that_says_why(tpo, saved, tmp_path):
    ended = tpo("report", str(saved(always="401")), "-o", str(tmp_path / "failed.html"))
    assert ended.code == 0
    page = (tmp_path / "failed.html").read_text("utf-8")
    assert "PolicyError" in page and "401" in page and "No candidate was drawn." in page


@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        ("{}", [], 2, "is not the document of a run: answer: Field required"),
        (json.dumps({"answer": None, "cache": [], "trajectory": []}), ["-o", "RUN"], 2, "would replace the run"),
        (json.dumps({"answer": None, "cache": [], "trajectory": []}), ["-o", "no/such.html"], 6, "can't be written"),
    ],
)
def test_errors(tpo, tmp_path, monkeypatch, content, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.json"
    file.write_text(content)
    ended = tpo("report", "run.json", *("run.json" if argument == "RUN" else argument for argument in arguments))
    assert ended.error.code == code
    assert message in ended.error.message
    assert file.read_text() == content
