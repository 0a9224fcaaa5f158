"""Runs with a checkpointer: threads that are used again, plain values in checkpoints, and resuming."""

import json
import logging
import sqlite3

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import StateGraph

from tests.tpo_script import number_reward, phases_asked, scripted_policy
from tpo_graph import PolicyError, RewardError, TPOSettings, build_tpo_graph, create_tpo_graph, is_finished

THREAD = {"configurable": {"thread_id": "1"}}


def saved_graph(policy, reward=None, **options):
    options = {"settings": TPOSettings(max_retries=0), "checkpointer": InMemorySaver(), **options}
    return create_tpo_graph(policy, reward or number_reward(), **options)


def is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def test_a_second_run_in_a_thread_begins_anew_and_keeps_the_conversation():
    policy = scripted_policy()
    graph = saved_graph(policy)
    first = graph.invoke({"query": "first"}, THREAD)
    second = graph.invoke({"query": "second"}, THREAD, context={"depth": 1})
    assert [message.text for message in second["messages"]] == ["first", first["answer"], "second", second["answer"]]
    assert [message.text for message in policy.requests[19]] == ["first", first["answer"], "second"]
    assert len(second["cache"]) == 10
    assert [record["step"] for record in second["trajectory"]] == [0, 1]
    assert sum(used["requests"] for used in second["usage"].values()) == 12
    assert min(candidate["reward"] for candidate in second["cache"]) == 19.0
    assert (second["step"], second["stop_reason"], second["failures"]) == (1, "depth", [])


def test_what_sample_shows_is_what_it_did():
    graph = saved_graph(scripted_policy(), settings=TPOSettings(n=2, depth=1))
    for query in ("first", "second"):
        (update,) = [part["sample"] for part in graph.stream({"query": query}, THREAD) if "sample" in part]
        assert update.keys() == {"messages", "pending", "step", "failures", "usage"}
        assert (len(update["pending"]), update["usage"]["sample"]["requests"], update["failures"]) == (2, 2, [])
        state = graph.get_state(THREAD).values
        assert (len(state["cache"]), len(state["trajectory"])) == (4, 2)


@pytest.mark.parametrize("interrupts", [[], ["sample"]])
def test_a_thread_that_the_graph_did_not_empty_is_emptied_by_sample(interrupts):
    # a graph that is wired in another way, or a checkpoint of an earlier version
    builder, saver = (
        build_tpo_graph(scripted_policy(), number_reward(), settings=TPOSettings(n=2, depth=1)),
        InMemorySaver(),
    )
    other = StateGraph.compile(builder, checkpointer=saver)
    other.invoke({"query": "first"}, THREAD)
    other.invoke({"query": "second"}, THREAD, interrupt_before=interrupts)
    result = builder.compile(checkpointer=saver).invoke(None, THREAD) if interrupts else other.get_state(THREAD).values
    assert [candidate["id"] for candidate in result["cache"]] == ["0-0", "0-1", "1-0", "1-1"]
    assert [message.text for message in result["messages"]] == ["first", "rev 5", "second", result["answer"]]
    assert (len(result["trajectory"]), result["usage"]["sample"]["requests"], result["failures"]) == (2, 2, [])


def test_failures_of_an_earlier_run_in_the_thread_do_not_end_the_next():
    policy = scripted_policy(
        update=lambda number: "no tags" if number < 29 else f"<revised_response>r {number}</revised_response>"
    )
    graph = saved_graph(policy)
    assert graph.invoke({"query": "first"}, THREAD)["stop_reason"] == "updates_failed"
    second = graph.invoke({"query": "second"}, THREAD)
    assert (second["stop_reason"], second["failures"]) == ("depth", [])


def test_a_message_sent_in_the_thread_is_added_to_the_conversation():
    policy = scripted_policy()
    graph = saved_graph(policy)
    graph.invoke({"messages": [("system", "s"), ("user", "first")]}, THREAD, context={"mode": "bon"})
    graph.invoke({"messages": [("user", "second")]}, THREAD, context={"mode": "bon"})
    assert [message.type for message in policy.requests[5]] == ["system", "human", "ai", "human"]


class DyingSaver(InMemorySaver):
    """Keeps what the nodes wrote, and fails at its checkpoint with the number `last`, as a killed process would."""

    last = 0

    def put(self, *arguments):
        self.last -= 1
        if self.last < 0:
            raise OSError("killed")
        return super().put(*arguments)


@pytest.mark.parametrize("last", range(1, 9))
def test_a_run_is_not_finished_where_nothing_is_next_and_there_is_no_stop_reason(last):
    saver = DyingSaver()
    graph = create_tpo_graph(scripted_policy(), number_reward(), checkpointer=saver, settings=TPOSettings(n=2, depth=1))
    assert not is_finished(graph.get_state(THREAD))
    for _ in range(2):  # the second run finds the stop reason of the first in its thread
        saver.last = last
        with pytest.raises(OSError, match="killed"):
            graph.invoke({"query": "q"}, THREAD)
        state = graph.get_state(THREAD)
        assert (state.next, is_finished(state)) == ((), False)
        saver.last = 100
        result = graph.invoke(None, THREAD)
        assert result["stop_reason"] == "depth"
        assert is_finished(result) and is_finished(graph.get_state(THREAD))


def test_state_holds_plain_values():
    result = create_tpo_graph(scripted_policy(), number_reward()).invoke({"query": "q"})
    rest = {key: value for key, value in result.items() if key != "messages"}
    assert is_plain(rest)
    assert json.loads(json.dumps(rest)) == rest
    for message in result["messages"]:
        assert is_plain(message.response_metadata)


def test_checkpoints_read_back_silently_as_what_was_written(caplog):
    graph = saved_graph(
        scripted_policy(update=lambda number: "x" if number % 3 else f"<revised_response>r {number}</revised_response>")
    )
    with caplog.at_level(logging.WARNING):
        result = graph.invoke({"query": "q"}, THREAD)
        states = list(graph.get_state_history(THREAD))
    assert states[0].values == result
    assert len(states) == 1 + 1 + 3 + 5 * 2
    assert caplog.records == []
    serializer = JsonPlusSerializer()
    assert serializer.loads_typed(serializer.dumps_typed(result)) == result


def test_earlier_checkpoints_hold_what_was_known_then():
    graph = saved_graph(scripted_policy())
    graph.invoke({"query": "q"}, THREAD)
    states = list(graph.get_state_history(THREAD))
    sizes = [len(state.values.get("cache", [])) for state in reversed(states)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, 15)


def test_a_run_can_be_resumed_from_an_earlier_checkpoint():
    policy = scripted_policy()
    graph = saved_graph(policy)
    graph.invoke({"query": "q"}, THREAD)
    after_first_select = next(
        state for state in reversed(list(graph.get_state_history(THREAD))) if state.next == ("loss",)
    )
    asked = len(policy.requests)
    result = graph.invoke(None, after_first_select.config)
    assert (result["stop_reason"], len(result["cache"])) == ("depth", 15)
    assert len(policy.requests) - asked == 14


@pytest.mark.parametrize("phase", ["sample", "loss", "gradient", "update"])
def test_a_run_that_raised_goes_on_where_it_was(phase):
    down = [True]

    def fail_once(number):
        if down:
            down.clear()
            return ConnectionError("gone")
        return reply_of_phase(number)

    replies = {"sample": "cand {}", "update": "<revised_response>r {}</revised_response>"}
    reply_of_phase = replies.get(phase, "words").format
    policy = scripted_policy(**{phase: fail_once})
    graph = saved_graph(policy)
    options = {"context": {"on_failure": "raise", "n": 1, "mode": "revision"}}
    with pytest.raises(PolicyError, match="gone"):
        graph.invoke({"query": "q"}, THREAD, **options)
    result = graph.invoke(None, THREAD, **options)
    assert (result["stop_reason"], len(result["cache"])) == ("depth", 3)
    assert phases_asked(policy).count("sample") == (2 if phase == "sample" else 1)
    assert [message.text for message in result["messages"]] == ["q", result["answer"]]


def test_a_run_whose_reward_model_raised_goes_on_with_the_same_candidates():
    class FailsOnce:
        calls = 0

        async def score(self, messages, responses):
            self.calls += 1
            if self.calls == 2:
                raise RewardError("no")
            return [float(text.split()[-1]) for text in responses]

    policy = scripted_policy()
    graph = saved_graph(policy, FailsOnce())
    options = {"context": {"on_failure": "raise", "max_retries": 0}}
    with pytest.raises(RewardError):
        graph.invoke({"query": "q"}, THREAD, **options)
    result = graph.invoke(None, THREAD, **options)
    assert (len(result["cache"]), len(policy.requests)) == (15, 19)


def test_a_new_query_after_a_run_that_raised_starts_a_new_run():
    policy = scripted_policy(
        update=lambda number: (
            ConnectionError("gone") if number < 12 else f"<revised_response>r {number}</revised_response>"
        )
    )
    graph = saved_graph(policy)
    with pytest.raises(PolicyError):
        graph.invoke({"query": "first"}, THREAD, context={"on_failure": "raise", "max_retries": 0})
    result = graph.invoke({"query": "second"}, THREAD)
    assert (result["stop_reason"], len(result["cache"]), len(result["trajectory"])) == ("depth", 15, 3)


@pytest.mark.parametrize("next_node", ["score", "loss"])
def test_a_fork_holds_nothing_of_the_branch_that_it_leaves(next_node):
    # a fork before `score` held the abandoned candidates too, up to some version between langgraph 1.2.0 and 1.2.11
    graph = saved_graph(scripted_policy())
    first = graph.invoke({"query": "q"}, THREAD)
    earlier = next(s for s in graph.get_state_history(THREAD) if s.next == (next_node,) and s.values["step"] == 1)
    fork = graph.update_state(earlier.config, {"worst": earlier.values["best"]})
    result = graph.invoke(None, fork)
    assert [candidate["id"] for candidate in result["cache"]] == [candidate["id"] for candidate in first["cache"]]
    before = earlier.values["cache"]
    assert result["cache"][: len(before)] == before
    drawn_later = {candidate["text"] for candidate in first["cache"]} - {
        candidate["text"] for candidate in [*before, *earlier.values["pending"]]
    }
    assert drawn_later.isdisjoint(candidate["text"] for candidate in result["cache"])


def test_an_edit_in_the_state_is_used():
    policy = scripted_policy()
    graph = saved_graph(policy, interrupt_after=["loss"])
    graph.invoke({"query": "q"}, THREAD, context={"depth": 1})
    graph.update_state(THREAD, {"loss": "EDITED BY A PERSON"})
    result = graph.invoke(None, THREAD, context={"depth": 1})
    assert "EDITED BY A PERSON" in policy.requests[6][-1].text
    assert result["trajectory"][-1]["loss"] == "EDITED BY A PERSON"


def test_checkpoint_size_is_linear_in_the_text(tmp_path):
    sqlite = pytest.importorskip("langgraph.checkpoint.sqlite")
    sizes = []
    for depth in (10, 40):
        file = tmp_path / f"{depth}.sqlite"
        policy = scripted_policy(update=lambda number: f"<revised_response>{'x' * 2000} {number}</revised_response>")
        with sqlite.SqliteSaver.from_conn_string(str(file)) as saver:
            create_tpo_graph(policy, number_reward(), checkpointer=saver).invoke(
                {"query": "q"}, THREAD, context={"depth": depth, "n": 1, "mode": "revision"}
            )
        with sqlite3.connect(file) as connection:
            sizes.append(connection.execute("select sum(length(checkpoint)) from checkpoints").fetchone()[0])
    assert sizes[1] < 8 * sizes[0]
