"""A run as a log of inspect_ai, read back by inspect_ai itself."""

from datetime import UTC, datetime

import pytest
from inspect_ai.event import EventTreeSpan, ModelEvent, ScoreEvent, event_tree, event_tree_walk
from inspect_ai.log import read_eval_log, write_eval_log

from tests.report.conftest import QUESTION, candidate, document
from tpo_graph.report.document import RunDocument
from tpo_graph.report.inspect_log import inspect_log

ENDED = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
FAILED = {"phase": "update", "step": 1, "reason": "no_tags", "detail": "", "text": "without tags"}


@pytest.fixture
def logged(tmp_path):
    """Writes the log of a document to a file, and reads it back."""

    def write_and_read(**changes):
        run = RunDocument.model_validate(document(**changes))
        write_eval_log(inspect_log(run, ended=ENDED), tmp_path / "run.eval")
        return read_eval_log(tmp_path / "run.eval")

    return write_and_read


def outline(nodes):
    """The names of spans, as they stand inside each other; of other events the kind."""
    spans = [node for node in nodes if isinstance(node, EventTreeSpan)]
    assert all(span.end for span in spans)
    return {span.name: outline(span.children) for span in spans} or [event.event for event in nodes]


def of_kind(log, kind):
    return list(event_tree_walk(event_tree(log.samples[0].events), kind))


def test_nodes_are_spans_inside_their_steps(logged):
    later = {name: ["model"] for name in ("loss", "gradient")}
    assert outline(event_tree(logged().samples[0].events)) == {
        "tpo": {
            "step 0": {"sample": ["model"], "score": ["score"] * 2, "select": ["info"]},
            "step 1": {**later, "update": ["model"], "score": ["score"] * 2, "select": ["info"]},
            "step 2": {**later, "update": ["model"], "score": ["score"], "select": ["info"]},
        }
    }


def test_a_span_ends_before_the_one_around_it_and_time_goes_on(logged):
    events, open_spans = logged().samples[0].events, []
    for event in events:
        if event.event == "span_begin":
            assert event.parent_id == (open_spans[-1] if open_spans else None)
            open_spans.append(event.id)
        elif event.event == "span_end":
            assert event.id == open_spans.pop()
    assert open_spans == []
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    assert times[0].isoformat() == "2026-11-25T11:59:58.500000+00:00"
    assert times[-1] == ENDED


def test_a_node_takes_the_time_that_the_file_says(logged):
    phases = [{"phase": "sample", "step": 0, "seconds": 2.0}, {"phase": "score", "step": 0, "seconds": 0.5}]
    log = logged(phases=[*phases, {"phase": "loss", "step": 1, "seconds": 1.5}])
    models = of_kind(log, ModelEvent)
    assert [(model.working_start, model.working_time) for model in models[:3]] == [(0.0, 2.0), (2.5, 1.5), (4.0, 0.0)]
    assert log.samples[0].total_time == 4.0


def test_a_critique_that_no_step_followed_is_there(logged):
    log = logged(loss="too short", phases=[{"phase": "loss", "step": 3, "seconds": 1.0}], stop_reason=None)
    assert "too short" in [model.output.completion for model in of_kind(log, ModelEvent)]


def test_all_completions_of_a_node_are_choices(logged):
    log = logged(failures=[FAILED], settings={"n": 3, "update_temperature": 0.7})
    models = of_kind(log, ModelEvent)
    assert [model.config.num_choices for model in models] == [3, 1, 1, 3, 1, 1, 3]
    update = models[3]
    choices = [(choice.message.text, choice.message.metadata, choice.stop_reason) for choice in update.output.choices]
    assert choices == [
        ("the sky scatters blue light", {"candidate": "1-0"}, "stop"),
        ("the sky is wet", {"candidate": "1-1"}, "max_tokens"),
        ("without tags", {"failure": "no_tags"}, "unknown"),
    ]
    assert (update.role, update.config.temperature) == ("policy", 0.7)
    assert [message.text for message in update.input] == [
        QUESTION,
        "best:\nthe sky is blue\n\nworst:\nno idea\n\nloss:\nthe loss\n\ngradient:\nthe gradient",
    ]
    assert [model.role for model in models[1:3]] == ["critic", "critic"]


def test_a_gradient_that_the_loss_wrote_is_no_request_of_its_own(logged):
    log = logged(usage={"loss": {"requests": 2}, "update": {"requests": 2}}, variant="fused-critique")
    step = outline(event_tree(log.samples[0].events))["tpo"]["step 1"]
    assert (step["loss"], step["gradient"]) == (["model"], ["info"])


def test_each_candidate_has_its_score_and_the_run_its_own(logged):
    log = logged()
    scores = [(event.score.metadata["candidate"], event.score.value) for event in of_kind(log, ScoreEvent)]
    assert scores == [("0-0", -1.0), ("0-1", 0.5), ("1-0", 2.5), ("1-1", 0.0), ("2-0", 1.5)]
    (sample,) = log.samples
    assert (sample.scores["reward"].value, sample.scores["first_draft"].value) == (2.5, 0.5)
    assert sample.scores["candidates"].value == dict(scores)
    assert [(score.name, score.metrics["value"].value) for score in log.results.scores] == [
        ("reward", 2.5),
        ("first_draft", 0.5),
    ]


def test_the_sample_is_the_conversation_and_its_answer(logged):
    log = logged()
    (sample,) = log.samples
    assert [message.text for message in sample.input] == [QUESTION]
    assert [(message.role, message.text) for message in sample.messages] == [
        ("user", QUESTION),
        ("assistant", "the sky scatters blue light"),
    ]
    assert sample.output.completion == "the sky scatters blue light"
    assert sample.model_usage["local"].total_tokens == 1540
    assert (log.status, log.eval.model, sample.metadata["stop_reason"]) == ("success", "local", "depth")


def test_tokens_are_those_of_the_model_that_used_them(logged):
    costs = {"requests": 1, "input_tokens": 10, "output_tokens": 1, "seconds": 1.0}
    models = {"policy": "p", "critic": "c", "reward model": "judge"}
    log = logged(usage=dict.fromkeys(("sample", "score", "loss", "gradient", "update"), costs), models=models)
    usage = log.samples[0].model_usage
    assert {name: used.input_tokens for name, used in usage.items()} == {"p": 20, "judge": 10, "c": 20}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"interrupted": True, "stop_reason": None}, "cancelled"),
        ({"error": {"kind": "PolicyError", "message": "It is gone."}, "stop_reason": None}, "error"),
    ],
)
def test_a_run_that_did_not_finish_says_so(logged, changes, status):
    waiting = candidate("3-0", "not scored")
    log = logged(unscored=[waiting], **changes)
    assert log.status == status
    assert [choice.message.text for choice in of_kind(log, ModelEvent)[-1].output.choices] == ["not scored"]


def test_a_run_without_a_candidate(logged):
    failed = {**FAILED, "phase": "sample", "step": 0, "reason": "request_failed", "detail": "status 500", "text": ""}
    nothing = {"answer": None, "best": None, "cache": [], "trajectory": [], "stop_reason": None}
    log = logged(**nothing, failures=[failed], messages=[{"role": "user", "content": QUESTION}])
    (model,) = of_kind(log, ModelEvent)
    assert (model.error, model.output.choices, log.samples[0].scores) == ("status 500", [], None)
