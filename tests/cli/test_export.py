"""`tpo-graph export`: a run in a file, and a log of inspect_ai beside it."""

import pytest
from inspect_ai.event import ModelEvent
from inspect_ai.log import read_eval_log

from tests.cli.conftest import at


@pytest.fixture
def saved(tpo, chat_server, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(tpo("run", "Why?", *at(chat_server()), "--json", "--depth", "1", "-n", "3").out, "utf-8")
    return file


def test_a_log_is_written_beside_the_run(tpo, saved):
    ended = tpo("export", str(saved), "--to", "inspect")
    written = saved.with_suffix(".eval")
    assert (ended.code, ended.out, ended.err) == (0, f"{written}\n", "")
    (sample,) = read_eval_log(str(written)).samples
    assert (sample.output.completion, sample.scores["reward"].value) == ("rev 7", 7.0)
    models = [event for event in sample.events if isinstance(event, ModelEvent)]
    assert [len(event.output.choices) for event in models] == [3, 1, 1, 3]
    # one step has written each, so that their tokens are known
    assert sum(event.output.usage.total_tokens for event in models) == sum(
        used.total_tokens for used in sample.model_usage.values()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "nothing"], 2, "nothing"),
        (["--to", "inspect", "-o", "run.html"], 2, "can't be written to 'run.html'"),
        (["--to", "inspect", "-o", "/dev/null/run.eval"], 6, "can't be written"),
    ],
)
def test_errors(tpo, saved, arguments, code, message):
    ended = tpo("export", str(saved), *arguments)
    assert ended.error.code == code
    assert message in ended.error.message


def test_what_is_no_run(tpo, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    ended = tpo("export", str(tmp_path / "run.json"), "--to", "inspect")
    assert "is not the document of a run" in ended.error.message
    assert "Run file" in tpo("export", str(tmp_path / "no.json"), "--to", "inspect").error.message
