"""`watch`: a run is shown while it goes on, and the result shows itself."""

import json
import signal
import time
import warnings

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import create_tpo_graph, watch
from tpo_graph.human.nodes import human_nodes
from tpo_graph.report import read_run

CELL = """
from tpo_graph import create_tpo_graph, watch
from tpo_graph.testing import ScriptedChatModel, TableReward
reward = TableReward(lambda text: float(len(text)))
graph = create_tpo_graph(ScriptedChatModel(["<b>a</b>", "longer than <b>a</b>"]), reward)
watch(graph, "q", context={"n": 2, "mode": "bon"})
"""


@pytest.fixture
def graph():
    return create_tpo_graph(scripted_policy(), number_reward())


def test_it_shows_the_run_on_standard_error_and_returns_it(graph, capsys, tmp_path):
    run = watch(graph, "Why?", context={"n": 3, "depth": 1})
    assert (run.answer, str(run), run.state["stop_reason"]) == ("rev 7", "rev 7", "depth")
    out, err = capsys.readouterr()
    assert out == "" and "  ✓ sample    3 candidates" in err and "    │ best  +7.000  rev 7" in err
    assert "first draft (+0.000) -> answer (+7.000) after 1 step, 8 requests, " in err
    run.save(tmp_path / "run.json")
    saved = read_run(tmp_path / "run.json")
    assert (saved.answer, saved.question, len(saved.phases)) == ("rev 7", "Why?", 8)


def test_the_result_is_html_with_nothing_of_the_texts_in_it():
    policy = scripted_policy(sample=lambda number: f"<script>\x1b {number}")
    run = watch(create_tpo_graph(policy, number_reward()), {"query": "q"}, context={"mode": "bon", "n": 2})
    page = run._repr_html_()
    assert "<script" not in page and "\x1b" not in page
    assert "<th>first draft (+0.000)</th><th>answer (+1.000)</th>" in page and "&lt;script&gt;␛ 1</td>" in page
    assert "first draft (+0.000) -&gt; answer (+1.000) best of 2, 2 requests, " in page


def test_a_run_that_is_interrupted_is_returned_with_what_it_has():
    def interrupt(number):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        return "late"

    run = watch(create_tpo_graph(scripted_policy(loss=interrupt), number_reward()), "q", context={"n": 2})
    assert (run.answer, run.outcome.interrupted) == ("cand 1", True)
    with pytest.raises(KeyboardInterrupt):
        watch(create_tpo_graph(scripted_policy(sample=interrupt), number_reward()), "q")


def test_a_person_is_asked_by_the_result_and_answers_with_the_next():
    policy = scripted_policy()
    graph = create_tpo_graph(policy, number_reward(), nodes=human_nodes(policy), checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    asked = watch(graph, "q", config=thread, context={"n": 2})
    assert asked.question["kind"] == "tpo_choice" and "a person is asked" in asked._repr_html_()
    assert watch(graph, Command(resume={"best": "0-0", "stop": True}), config=thread).answer == "cand 0"


@pytest.mark.subprocess
def test_in_a_notebook_the_run_stands_below_its_cell(monkeypatch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import nbclient
        import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    log, result = notebook.cells[0]["outputs"]
    assert "drawn" not in json.dumps(log)
    assert (log["output_type"], result["output_type"]) == ("display_data", "execute_result")
    shown = log["data"]["text/html"]
    assert "sample" in shown and "2 candidates" in shown and "&lt;b&gt;a&lt;/b&gt;" in shown and "<b>" not in shown
    assert "<th>first draft (+8.000)</th><th>answer (+20.000)</th>" in result["data"]["text/html"]
