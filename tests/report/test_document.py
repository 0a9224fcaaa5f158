"""Reading a run from its file, and who came from whom in it."""

import json

import pytest

from tests.report.conftest import candidate, document, record
from tpo_graph.errors import ConfigurationError
from tpo_graph.report import RunDocument, read_run


def run_of(**changes):
    return RunDocument.model_validate(document(**changes))


class TestFile:
    def test_new_keys_are_left_out_and_old_files_may_lack_some(self, tmp_path):
        path = tmp_path / "run.json"
        old = {key: document()[key] for key in ("answer", "cache", "trajectory")}
        path.write_text(json.dumps({**old, "first_of_its_kind": [1]}))
        assert read_run(path).usage == {}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is not valid JSON"),
            ("{'a': 1}", "is not valid JSON"),
            ("[" * 200_000, "nested too deep"),
            (
                '{"answer": null, "cache": [], "trajectory": [], "settings": ' + '{"a":' * 9000 + "1" + "}" * 9001,
                "deep",
            ),
            ("[]", "is not the document of a run: all of it: Input should be a valid dictionary"),
            ("{}", "answer: Field required; cache: Field required; trajectory: Field required"),
            (json.dumps(document(cache=[candidate("0-0", "x", float("nan"))])), "cache.0.reward: .*finite"),
            ('{"answer": "", "trajectory": [], "cache": [{"id": "a", "step": -1, "text": "", "reward": 1}]}', "step"),
            ("1" * 5000, "is not valid JSON|not the document of a run"),
        ],
    )
    def test_another_file_is_refused(self, tmp_path, text, message):
        path = tmp_path / "run.json"
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=message) as refused:
            read_run(path)
        assert str(path) in refused.value.message
        assert "tpo-graph run --save" in refused.value.hint
        assert len(refused.value.message) < 1000

    def test_a_file_that_is_too_large_or_not_there_is_refused(self, tmp_path):
        path = tmp_path / "run.json"
        with pytest.raises(ConfigurationError, match="can't be read: No such file"):
            read_run(path)
        path.write_bytes(b" " * (16 * 2**20 + 1))
        with pytest.raises(ConfigurationError, match="more than 16 MiB"):
            read_run(path)


class TestLineage:
    def test_candidates_of_a_step_come_from_the_best_after_the_step_before(self):
        run = run_of()
        parents = {child.id: run.parent(child) for child in run.cache}
        assert {child: parent.id for child, parent in parents.items() if parent} == {
            "1-0": "0-1",
            "1-1": "0-1",
            "2-0": "1-0",
        }
        assert [one.id for one in run.line_of_descent(run.by_id["2-0"])] == ["2-0", "1-0", "0-1"]

    def test_a_candidate_that_was_not_scored_has_a_parent_too(self):
        run = run_of(unscored=[candidate("2-1", "late")])
        assert run.parent(run.by_id["2-1"]).id == "1-0"

    def test_a_best_that_the_file_does_not_have_is_no_parent(self):
        run = run_of(trajectory=[record(0, "gone", 0.5, -1.0)])
        assert run.parent(run.by_id["1-0"]) is None

    def test_a_person_may_pick_another_parent_than_the_rewards(self):
        run = run_of(trajectory=[record(0, "0-0", -1.0, -1.0)])
        assert run.parent(run.by_id["1-0"]).id == "0-0"

    def test_a_step_is_written_from_best_and_worst_after_the_step_before(self):
        run = run_of()
        pairs = {step: run.comparison(step) for step in (0, 1, 2)}
        assert pairs[0] is None
        assert [(pairs[step].chosen.id, pairs[step].rejected.id) for step in (1, 2)] == [("0-1", "0-0"), ("1-0", "0-0")]

    def test_of_equal_candidates_nothing_is_rejected_until_a_person_tells_them_apart(self):
        cache = [candidate("0-0", "one", 1.0), candidate("0-1", "two", 1.0), candidate("1-0", "three", 1.0)]
        trajectory = [record(0, "0-0", 1.0, 1.0), record(1, "0-0", 1.0, 1.0)]
        assert run_of(cache=cache, trajectory=trajectory).comparison(1).rejected is None
        picked = {"step": 0, "best": "one", "worst": "two", "critique": ""}
        assert run_of(cache=cache, trajectory=trajectory, choices=[picked]).comparison(1).rejected.id == "0-1"
