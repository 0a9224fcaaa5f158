"""What the command writes: JSON in any encoding, and errors as two lines with an exit code."""

import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tpo_graph.cli.output import (
    EXIT_CODES_HELP,
    OutputError,
    clean,
    deliver,
    describe_error,
    keep,
    report_error,
    write_answer,
    write_json,
)
from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_in_any_encoding(monkeypatch, encoding):
    document = {"answer": "naïve → \x7f\x9b \ud83d"}
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    write_json(document)
    written = out.buffer.getvalue().decode(encoding)
    assert json.loads(written) == document
    assert ("→" in written) == (encoding == "utf-8")
    assert not {"\x7f", "\x9b"} & set(written)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (MissingDependencyError("x"), 2),
        (PromptError("x"), 2),
        (PolicyError("x"), 3),
        (RewardError("x"), 4),
        (BudgetError("x"), 5),
        (OutputError("x", hint="y"), 6),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_kind_of_error_has_an_exit_code_a_hint_and_a_place_in_the_help(error, code):
    described = describe_error(error)
    assert described["exit_code"] == code
    assert described["hint"]
    assert re.search(rf"\b{code} ", EXIT_CODES_HELP)


def test_a_defect_is_reported_as_one(capsys):
    assert report_error(ZeroDivisionError("division by zero")) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: ZeroDivisionError: division by zero"
    assert "--debug" in hint


def test_an_error_of_several_lines_is_printed_in_one(capsys):
    report_error(ConfigurationError("a\n\x1b[31mb.toml can't be read."))
    error, _ = capsys.readouterr().err.splitlines()
    assert error == "error: a ␛[31mb.toml can't be read."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb\u2066c\u2069", "a\ufffdb\ufffdc\ufffd"),  # what turns a line around
        ("a\u200e\u200f\u061c\ufeff\U000e0041b", "a" + 5 * "\ufffd" + "b"),  # what no one sees
        ("👩\u200d👧 می\u200cروم ไทย\u200bไทย", "👩\u200d👧 می\u200cروم ไทย\u200bไทย"),  # what scripts need stays
    ],
)
def test_what_turns_or_hides_text_is_shown_as_a_sign(text, shown):
    assert clean(text) == shown


def test_a_pipe_gets_the_exact_answer_and_a_terminal_a_clean_one(capsys, monkeypatch):
    write_answer("\u202eabc\x1b[2J")
    assert capsys.readouterr().out == "\u202eabc\x1b[2J\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_answer("\u202eabc\x1b[2J")
    assert capsys.readouterr().out == "\ufffdabc␛[2J\n"


def broken_stream(kind):
    """A stream that takes nothing: on a full disk, or a pipe whose reader has left."""
    if kind == "full disk":
        return Path("/dev/full").open("w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", errors="backslashreplace")


@pytest.mark.parametrize("kind", ["full disk", "pipe"])
def test_what_stdout_does_not_take_is_kept_in_the_current_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with broken_stream(kind) as stream, pytest.raises(OutputError) as raised:
        monkeypatch.setattr(sys, "stdout", stream)
        deliver("paid for")
    (file,) = tmp_path.iterdir()
    assert raised.value.hint == f"The result is kept in {file}."
    assert file.read_text() == "paid for\n"


def test_where_the_current_folder_takes_nothing_either(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = keep("paid for \ud83d")
    assert Path(path).read_text() == "paid for \\ud83d\n" and list(tmp_path.iterdir()) == [Path(path)]
    monkeypatch.setattr(tempfile, "tempdir", str(gone))
    assert keep("paid for") == "" and capsys.readouterr().err == "paid for\n"
