"""Runs that fail on the way: what was paid for is kept, and the exit code tells."""

import json
from typing import get_args

import pytest

from tests.cli.conftest import at
from tests.tpo_script import FailsAtACost, server_reply
from tpo_graph.cli.display import RunEnded, ending, phase_ended
from tpo_graph.rewards.load import SCHEMES
from tpo_graph.types import FailureReason, FailureRecord, StopReason

QUESTION = "Why is the sky blue?"


def test_candidates_that_could_not_be_scored_are_printed(chat_server, tpo):
    ended = tpo("run", QUESTION, *at(chat_server(), reward="broken"))
    assert ended.code == 4
    assert ended.out == ""  # no program may take one of them for the answer
    assert "failed: 5 candidates drawn, none scored" in ended.err
    assert "candidate 0-0 (1 of 5, not scored):\ncand 0\n" in ended.err
    assert "\nerror: The table has no reward for 'cand 0'.\nhint: " in ended.err
    assert "Traceback" not in ended.err


def test_candidates_that_could_not_be_scored_are_in_the_json(chat_server, tpo):
    ended = tpo("run", QUESTION, *at(chat_server(), reward="broken"), "--json", "--quiet")
    result = json.loads(ended.out)
    assert (ended.code, result["error"]["exit_code"]) == (4, 4)
    assert [each["text"] for each in result["unscored"]] == [f"cand {number}" for number in range(5)]
    assert result["answer"] is result["best"] is result["stop_reason"] is None
    assert result["error"]["kind"] == "RewardError"
    assert ended.err.splitlines()[0].startswith("error: ")


def test_what_a_failed_scoring_cost_is_in_the_json(chat_server, tpo, monkeypatch):
    monkeypatch.setitem(SCHEMES, "costly", lambda name: FailsAtACost())
    ended = tpo("run", QUESTION, *at(chat_server(), reward="costly"), "--json")
    usage = json.loads(ended.out)["usage"]
    assert (ended.code, usage["sample"]["requests"]) == (4, 1)
    assert (usage["score"]["requests"], usage["score"]["input_tokens"]) == (2, 300)
    assert "3 requests" in ended.err


def test_a_policy_that_fails_later_leaves_the_best_answer(chat_server, tpo):
    server = chat_server(faults=[None, "401"])
    ended = tpo("run", QUESTION, *at(server))
    assert (ended.code, ended.out) == (0, "cand 4\n")
    assert "step 1 loss: not usable: request failed: " in ended.err
    assert "policy_failed: the policy failed; the best answer so far is kept" in ended.err


def test_a_policy_that_fails_later_with_on_failure_raise(chat_server, tpo):
    server = chat_server(faults=[None, "401"])
    ended = tpo("run", QUESTION, *at(server), "--on-failure", "raise")
    assert (ended.code, ended.out) == (3, "cand 4\n")
    assert "failed: the answer is the best candidate so far" in ended.err
    assert ended.error_lines[0].startswith("error: ")
    assert "401" in ended.error_lines[0]
    assert ended.error_lines[1] == "hint: Check the API key: the provider does not accept it."


def test_revisions_that_could_not_be_scored(chat_server, tpo):
    ended = tpo("run", QUESTION, *at(chat_server(), reward="patchy"), "--on-failure", "raise", "--json")
    result = json.loads(ended.out)
    assert ended.code == 4
    assert result["answer"] == "cand 4"
    assert [each["id"] for each in result["unscored"]] == [f"1-{number}" for number in range(5)]


def test_failures_are_told_in_a_line_each(chat_server, tpo):
    texts = {
        4: "<revised_response>never ends",
        5: "no tags at all, just a revision",
        6: "",
        7: "<revised_response>\nrev 7\n</revised_response>",
    }
    server = chat_server(answer=lambda request, number: texts.get(number, server_reply(request, number)))
    ended = tpo("run", QUESTION, *at(server), "-n", "2", "--depth", "1")
    assert (ended.code, ended.out) == (0, "rev 7\n")
    assert [line.partition("] ")[2] for line in ended.err.splitlines() if "not usable: " in line] == [
        "step 1 update: not usable: no closing tag: <revised_response>never ends",
        "step 1 update: not usable: no opening tag: no tags at all, just a revision",
        "step 1 update: not usable: empty response",
    ]


def test_a_step_without_a_usable_revision(chat_server, tpo):
    server = chat_server(answer=lambda request, number: f"cand {number}")
    ended = tpo("run", QUESTION, *at(server), "-n", "2", "--depth", "3")
    assert (ended.code, ended.out) == (0, "cand 1\n")
    assert "step 1 update: 0 revisions, 4 not usable" in ended.err
    assert "updates_failed: no revision of this step could be used" in ended.err


def test_equal_failures_share_a_line(chat_server, tpo):
    server = chat_server(answer=lambda request, number: f"{number}" if number < 2 else "4")
    ended = tpo("run", QUESTION, *at(server), "-n", "2", "--depth", "1")
    assert "step 1 update: not usable: (4 times) no opening tag: 4" in ended.err


@pytest.mark.parametrize("reason", get_args(StopReason))
def test_every_stop_reason_has_its_words(reason):
    told = ending(RunEnded(ending="finished", stop_reason=reason))
    assert told.startswith(f"{reason}: ")
    assert len(told) > len(reason) + 5


@pytest.mark.parametrize("reason", get_args(FailureReason))
def test_every_failure_has_its_words(reason):
    record = FailureRecord(phase="update", step=1, reason=reason, detail="", text="")
    ended = phase_ended("update", 1, {}, {"failures": [record], "pending": []}, 0.0)
    assert len(ended.failures) == 1
    assert "_" not in ended.failures[0]
