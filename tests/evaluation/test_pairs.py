"""Preference data sets: what a line may hold, what is reported, and the command that prints it."""

import asyncio
import json
import math
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tpo_graph import ConfigurationError, RewardError
from tpo_graph.cli.output import OutputError
from tpo_graph.cli.score import score
from tpo_graph.evaluation.pairs import BadLine, Pair, read_pairs, score_pairs, wilson_interval
from tpo_graph.rewards import FunctionReward, WatchedReward, WeightedSum
from tpo_graph.testing import TableReward


def line(prompt="Why?", chosen="good", rejected="bad", **more):
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected, **more})


def only(raw):
    (pair,) = read_pairs([raw])
    return pair


USER, GOOD, BAD = (
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "good"},
    {"role": "assistant", "content": "bad"},
)


@pytest.mark.parametrize(
    "raw",
    [
        line(),
        line([USER]),
        line([USER], [GOOD], [BAD]),
        line(None, [USER, GOOD], [USER, BAD]),
        json.dumps({"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
        line().encode(),
    ],
)
def test_forms_of_a_pair(raw):
    pair = only(raw)
    assert isinstance(pair, Pair)
    assert [(message.type, message.text) for message in pair.messages] == [("human", "Why?")]
    assert (pair.line, pair.chosen, pair.rejected) == (1, "good", "bad")


SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER, AGAIN = {"role": "assistant", "content": "Because."}, {"role": "user", "content": "Really?"}


@pytest.mark.parametrize(
    ("raw", "roles"),
    [
        (line("Why?", [USER, ANSWER, AGAIN, GOOD], [USER, ANSWER, AGAIN, BAD]), "human ai human"),
        (line("Why?", [USER, ANSWER, AGAIN, GOOD], "bad"), "human ai human"),
        (line(None, [GOOD], [USER, BAD]), "human"),
        (line("Why?", [SYSTEM, USER, GOOD], [SYSTEM, USER, BAD]), "system human"),
        (line([SYSTEM, USER], [USER, ANSWER, AGAIN, GOOD], [USER, ANSWER, AGAIN, BAD]), "system human ai human"),
    ],
)
def test_the_fuller_conversation_counts(raw, roles):
    pair = only(raw)
    assert isinstance(pair, Pair), pair
    assert " ".join(message.type for message in pair.messages) == roles
    assert (pair.chosen, pair.rejected) == ("good", "bad")


def test_other_columns_travel_with_the_query():
    assert only(line(reference="42", id=7)).messages[0].additional_kwargs == {"reference": "42", "id": 7}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "not JSON"),
        ("3", "int, not an object"),
        (b'"\xff"', "not UTF-8"),
        ("[" * 100_000, "nested too deep"),
        (line(3), "prompt is 3"),
        (line(""), 'prompt is ""'),
        (line(None), "prompt is missing"),
        (line(chosen=None), "chosen is missing"),
        (line(rejected=["x"]), "rejected ends with a message of the user"),
        (line(rejected=[{"role": "nobody"}]), "rejected can't be read as messages"),
        (line([{"content": "x"}]), "prompt can't be read as messages"),
        (line(chosen=[USER]), "chosen ends with a message of the user"),
        (line(None, [USER, GOOD], [AGAIN, BAD]), "different conversations"),
        (line(None, [USER, ANSWER, AGAIN, GOOD], [USER, BAD]), "different conversations"),
        (line("How?", [USER, GOOD], [USER, BAD]), "do not go on from prompt"),
        (line([USER, ANSWER, AGAIN], [USER, GOOD], [USER, BAD]), "do not go on from prompt"),
        (line([{**SYSTEM, "content": "?"}, USER], [SYSTEM, USER, GOOD], "bad"), "do not go on from prompt"),
    ],
)
def test_bad_lines_are_reported_by_number(raw, message):
    pairs = list(read_pairs(["\n", raw, line()]))
    assert isinstance(pairs[0], BadLine)
    assert pairs[0].line == 2
    assert message in pairs[0].reason
    assert isinstance(pairs[1], Pair)


async def test_report():
    lines = [
        line(chosen="long good", rejected="bad"),  # both right
        line(chosen="good", rejected="very long bad"),  # the reward is right, length is not
        line(chosen="same", rejected="also"),  # both tied
        line(chosen="bad", rejected="long good"),  # both wrong
        "broken",
        line(chosen="nan", rejected="bad"),
    ]
    table = TableReward(lambda text: math.nan if text == "nan" else float("good" in text))
    report = await score_pairs(table, lines)
    assert report["pairs"] == 4
    assert (report["reward"]["wins"], report["reward"]["ties"], report["reward"]["losses"]) == (2, 1, 1)
    assert report["reward"]["accuracy"] == 0.625
    assert (report["length_rule"]["wins"], report["length_rule"]["ties"], report["length_rule"]["losses"]) == (1, 1, 2)
    assert report["length_rule"]["accuracy"] == 0.375
    assert report["advantage"] == 0.25
    assert report["advantage_low"] < 0.25 < report["advantage_high"]
    assert report["mean_margin"] == 0.25
    assert report["bad_lines"] == [{"line": 5, "reason": "it is not JSON: Expecting value at column 1"}]
    assert report["unscored_lines"] == [{"line": 6, "reason": "the rewards are nan and 0.0"}]
    json.dumps(report, allow_nan=False)


async def test_pairs_of_one_prompt_do_not_share_a_scale():
    combination = WeightedSum({"part": TableReward({"a": 1.0, "b": 2.0, "c": 500.0, "d": 501.0})})
    report = await score_pairs(combination, [line(chosen="b", rejected="a"), line(chosen="d", rejected="c")])
    assert report["mean_margin"] == 2.0


async def test_a_second_reward_that_watches_is_not_asked():
    second = TableReward({})
    report = await score_pairs(WatchedReward(TableReward({"good": 1.0, "bad": 0.0}), second), [line()])
    assert (report["pairs"], second.calls) == (1, [])


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775), (0.7, 1000, 0.6709, 0.7276)],
)
def test_wilson_interval(share, count, low, high):
    assert wilson_interval(share, count) == pytest.approx((low, high), abs=1e-4)


async def test_not_more_lines_are_read_than_are_scored():
    read = running = most = 0

    def lines():
        nonlocal read
        for _ in range(50):
            read += 1
            yield line()

    async def slow(messages, responses):
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert read <= seen + 4 + 1
        await asyncio.sleep(0.001)
        running -= 1
        return [1.0, 0.0]

    seen = 0

    def count(tally):
        nonlocal seen
        seen = tally.pairs

    report = await score_pairs(FunctionReward(slow), lines(), max_concurrency=4, on_progress=count)
    assert report["pairs"] == seen == 50
    assert most == 4


class Flaky:
    def __init__(self, fails):
        self.fails, self.calls = fails, 0

    async def score(self, messages, responses):
        self.calls += 1
        if self.fails(self.calls):
            raise RewardError("The server is down.")
        return [1.0, 0.0]


async def test_pairs_that_fail_are_left_out():
    report = await score_pairs(Flaky(lambda call: call % 2), [line()] * 20, max_concurrency=1)
    assert (report["pairs"], report["unscored"]) == (10, 10)
    assert report["unscored_lines"][0] == {"line": 1, "reason": "The server is down."}


async def test_a_reward_model_that_always_fails_is_given_up():
    model = Flaky(lambda call: True)
    with pytest.raises(RewardError, match="The server is down"):
        await score_pairs(model, [line()] * 500, max_concurrency=4)
    assert model.calls <= 20


@pytest.mark.parametrize(("lines", "message"), [([], "empty"), (["x"], "Line 1"), ([line()], "does not apply")])
async def test_nothing_to_report(lines, message):
    with pytest.raises(ConfigurationError, match="No line is a pair") as caught:
        await score_pairs(FunctionReward(lambda responses: [None] * len(responses)), lines)
    assert message in caught.value.hint


async def test_no_concurrency():
    with pytest.raises(ConfigurationError, match="at least 1"):
        await score_pairs(TableReward({}), [], max_concurrency=0)


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_of_test.py").write_text("def f(response):\n    return float('good' in response)\n")
    (tmp_path / "pairs.jsonl").write_text("\n".join([line(chosen="good, long"), line(chosen="", rejected="good"), "x"]))
    app = typer.Typer()
    app.command()(score)
    from tpo_graph.rewards import load
    from tpo_graph.rewards.functions import load_function

    monkeypatch.setitem(load.SCHEMES, "python", load_function)
    return lambda *arguments, **options: CliRunner().invoke(app, list(arguments), **options)


REWARD = ("--reward", "python:rewards_of_test.py:f")


def test_command_prints_a_table(command):
    result = command("pairs.jsonl", *REWARD)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "               accuracy  95% interval       wins   ties  losses\n"
        "reward            50.0%  9.5% to 90.5%         1      0       1\n"
        "length rule       50.0%  9.5% to 90.5%         1      0       1\n"
        "difference        +0.0%  +0.0% to +0.0%\n"
        "2 pairs, mean margin +0\n"
    )
    assert "1 line left out, no pair:\n  line 3: it is not JSON" in result.stderr


def test_command_prints_the_scores(command):
    result = command("pairs.jsonl", *REWARD, "--scores")
    assert result.stdout.startswith(
        "    line      chosen    rejected      margin\n"
        "       1           1           0          +1\n"
        "       2           0           1          -1\n"
        "\n"
        "               accuracy"
    )


def test_command_prints_json_from_stdin(command):
    result = command("-", *REWARD, "--json", input=line(rejected="good") + "\n" + line())
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["reward"]["wins"], report["reward"]["ties"]) == (1, 1)
    assert report["scores"] == [
        {"line": 1, "chosen": 1.0, "rejected": 1.0, "truncated": False},
        {"line": 2, "chosen": 1.0, "rejected": 0.0, "truncated": False},
    ]


def test_command_reports_what_was_cut(command, tmp_path):
    (tmp_path / "cutting.py").write_text(
        "from tpo_graph.rewards.base import DetailedReward, Scoring\n"
        "class Cutting(DetailedReward):\n"
        "    async def score_in_detail(self, messages, responses, run):\n"
        "        truncated = frozenset(text for text in responses if 'long' in text)\n"
        "        return Scoring([float(len(text)) for text in responses], truncated=truncated)\n"
    )
    result = command("pairs.jsonl", "--reward", "python:cutting.py:Cutting", "--json")
    assert result.exit_code == 0, result.output
    assert "1 pair too long for the reward model" in result.stderr
    assert "a response: line 1" in result.stderr
    report = json.loads(result.stdout)
    assert (report["truncated"], report["truncated_lines"]) == (1, [1])
    assert [pair["truncated"] for pair in report["scores"]] == [True, False]


def test_a_line_without_an_end(command):
    with pytest.raises(ConfigurationError, match="line of more than 16 MiB"):
        raise command("/dev/zero", *REWARD).exception


def test_a_report_that_can_not_be_written_is_kept(command, tmp_path, monkeypatch):
    with Path("/dev/full").open("w") as full, pytest.raises(OutputError):
        monkeypatch.setattr(sys, "stdout", full)
        score("pairs.jsonl", reward=REWARD[1], as_json=True)
    (file,) = tmp_path.glob("tpo-graph-*.json")
    assert json.loads(file.read_text())["scores"]


def test_command_errors(command):
    assert isinstance(command("no.jsonl", *REWARD).exception, ConfigurationError)
    assert command("pairs.jsonl").exit_code == 2
