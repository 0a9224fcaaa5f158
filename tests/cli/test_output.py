"""What the command writes: JSON in any encoding, and errors as two lines with an exit code."""

import io
import json
import re
import sys

import pytest

from tpo_graph.cli.output import EXIT_CODES_HELP, describe_error, report_error, write_json
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
