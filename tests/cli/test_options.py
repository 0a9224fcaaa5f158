"""Every setting is a flag of its own name, and flags come before variables, these before the file."""

import json
import re

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import CONTROL_CODES, at
from tpo_graph.cli.commands import app
from tpo_graph.cli.output import ExitCode
from tpo_graph.settings import TPOSettings

QUESTION = "Why is the sky blue?"


def settings_of(ended) -> dict:
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["settings"]


@pytest.fixture
def bon(chat_server, tpo):
    """Runs best of N with flags; the settings that it used."""
    server = chat_server()
    return lambda *flags: settings_of(tpo("run", QUESTION, *at(server), "--mode", "bon", "--json", "-q", *flags))


def test_every_setting_is_a_flag_with_its_description():
    shown = CONTROL_CODES.sub("", CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output)
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    for name, field in TPOSettings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in words, name
        assert field.description.split(";")[0].rstrip(".") in words, name


def test_flags_of_every_kind(bon):
    used = bon(
        *("-n", "3", "--depth", "4", "--tolerance", "0.5", "--target-reward", "-1.5", "--budget-seconds", "none"),
        *("--preference", " brief ", "--seed", "0", "--keep-truncated", "--sample-temperature", "none"),
        *("--timeout", "none", "--max-retries", "1"),
        *("--sample-stop", "###", "--sample-stop", "User:", "--on-failure", "raise"),
    )
    expected = {
        "n": 3,
        "depth": 4,
        "tolerance": 0.5,
        "target_reward": -1.5,
        "budget_seconds": None,
        "preference": "brief",
        "seed": 0,
        "timeout": None,
        "max_retries": 1,
        "keep_truncated": True,
        "sample_temperature": None,
        "sample_stop": ["###", "User:"],
        "on_failure": "raise",
    }
    assert {name: used[name] for name in expected} == expected


def test_what_is_not_given_is_the_default(bon):
    default = TPOSettings(mode="bon").model_dump(mode="json")
    assert bon() == default


def test_flag_before_variable_before_file(bon, monkeypatch, tmp_path):
    file = tmp_path / "tpo.toml"
    file.write_text('n = 2\ndepth = 7\nseed = 5\nsample_stop = ["END"]\n')
    monkeypatch.setenv("TPO_N", "3")
    monkeypatch.setenv("TPO_DEPTH", "8")
    monkeypatch.setenv("TPO_KEEP_TRUNCATED", "true")
    used = bon("--config", str(file), "--n", "4", "--no-keep-truncated")
    assert (used["n"], used["depth"], used["seed"], used["sample_stop"]) == (4, 8, 5, ["END"])
    assert used["keep_truncated"] is False


def test_names_of_models_from_variables(chat_server, tpo, monkeypatch):
    monkeypatch.setenv("TPO_POLICY", f"server:{chat_server().url}#scripted")
    monkeypatch.setenv("TPO_REWARD", "number")
    assert tpo("run", QUESTION, "--mode", "bon").out == "cand 4\n"


def test_the_knobs_reach_the_requests(chat_server, tpo):
    server = chat_server()
    flags = ["--mode", "bon", "-n", "2", "--sample-top-p", "0.5", "--sample-stop", "END", "--seed", "3"]
    assert tpo("run", QUESTION, *at(server), *flags).code == 0
    body = server.bodies[0]
    assert (body["n"], body["top_p"], body["stop"], body["seed"]) == (2, 0.5, ["END"], 3)


def test_a_hang_ends_by_the_flags(chat_server, tpo):
    server = chat_server(always="hang")
    ended = tpo("run", QUESTION, *at(server), "--timeout", "0.5", "--max-retries", "0", "-q")
    assert "no answer within 0.5 s" in ended.err
    assert (ended.code, ended.out) == (ExitCode.POLICY, "")
    assert tpo("run", QUESTION, *at(server), "--budget-seconds", "0.2", "-q").code == ExitCode.BUDGET


def test_the_end_of_the_time_shows_the_best_so_far(chat_server, tpo):
    ended = tpo("run", QUESTION, *at(chat_server(faults=[None, "hang"])), "--budget-seconds", "0.5")
    assert (ended.code, ended.out) == (0, "cand 4\n")
    assert "the time was over" in " ".join(ended.err.split())
