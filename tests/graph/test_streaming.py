"""What each stream mode shows, with a policy that streams by itself and a global LLM cache: never a draft."""

import warnings

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache

from tests.tpo_script import GRADIENT, LOSS, number_reward, scripted_policy
from tpo_graph import Candidate, create_tpo_graph

QUERY = {"query": "q"}
NODES = ["sample", "score", "select", *["loss", "gradient", "update", "score", "select"] * 2]


@pytest.fixture(params=[False, True], ids=["plain", "streaming"])
def server_graph(request, chat_server, chat_openai):
    """A graph over a real server; the policy streams by itself in one of two cases."""
    server = chat_server()
    return create_tpo_graph(chat_openai(server, streaming=request.param), number_reward()), server


def texts(result):
    return [candidate["text"] for candidate in result["cache"]]


def is_whole(result):
    """Whether the run got the N different texts of every request."""
    return texts(result) == [f"cand {n}" for n in range(5)] + [f"rev {n}" for n in (*range(7, 12), *range(14, 19))]


async def test_messages_shows_the_answer_and_no_draft(server_graph):
    graph, server = server_graph
    shown, last = [], None
    async for mode, chunk in graph.astream(QUERY, stream_mode=["messages", "values"]):
        if mode == "messages":
            shown.append(chunk[0])
        else:
            last = chunk
    assert [message.text for message in shown] == ["rev 18"]  # nor the query again
    assert is_whole(last)
    assert server.asked_n == [5, 1, 1, 5, 1, 1, 5]
    assert not any(body.get("stream") for body in server.bodies)


def test_messages_of_a_sync_stream_show_the_answer_and_no_draft(server_graph):
    graph, _ = server_graph
    assert [message.text for message, _ in graph.stream(QUERY, stream_mode="messages")] == ["rev 18"]


async def test_messages_of_an_outer_graph_show_no_draft_either(chat_server, chat_openai):
    from langgraph.graph import START, MessagesState, StateGraph

    inner = create_tpo_graph(chat_openai(chat_server(), streaming=True), number_reward())

    async def ask(state):
        result = await inner.ainvoke({"messages": state["messages"]})
        return {"messages": result["messages"][-1:]}

    outer = StateGraph(MessagesState).add_node(ask).add_edge(START, "ask").compile()
    shown = [m.text async for m, _ in outer.astream({"messages": [("user", "q")]}, stream_mode="messages")]
    assert shown == ["rev 18"]


async def test_events_tell_every_model_call_and_merge_no_texts(server_graph):
    graph, server = server_graph
    events = [event async for event in graph.astream_events(QUERY, version="v2")]
    assert is_whole(events[-1]["data"]["output"])
    assert server.asked_n == [5, 1, 1, 5, 1, 1, 5]
    ended = [event for event in events if event["event"] == "on_chat_model_end"]
    assert [event["metadata"]["langgraph_node"] for event in ended] == ["sample", *["loss", "gradient", "update"] * 2]
    assert not any(event["event"] == "on_chat_model_stream" for event in events)


async def test_updates_show_one_node_after_another(server_graph):
    graph, _ = server_graph
    updates = [update async for update in graph.astream(QUERY, stream_mode="updates")]
    assert [next(iter(update)) for update in updates] == NODES
    assert updates[3]["loss"]["loss"] == LOSS
    assert updates[4]["gradient"]["gradient"] == GRADIENT
    assert updates[-1]["select"]["answer"] == "rev 18"


def test_tasks_and_debug_name_every_node():
    graph = create_tpo_graph(scripted_policy(), number_reward())
    started = [task["name"] for task in graph.stream(QUERY, stream_mode="tasks") if "input" in task]
    assert started == NODES
    kinds = {event["type"] for event in graph.stream(QUERY, stream_mode="debug")}
    assert kinds >= {"task", "task_result"}


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_custom_shows_what_a_node_writes(way):
    async def loss(state, writer):
        writer({"phase": "loss", "step": state["step"] + 1})
        return {"loss": "mine", "gradient": ""}

    graph = create_tpo_graph(scripted_policy(), number_reward(), nodes={"loss": loss})
    if way == "stream":
        shown = list(graph.stream(QUERY, stream_mode="custom"))
    else:
        shown = [part async for part in graph.astream(QUERY, stream_mode="custom")]
    assert [part for part in shown if part.get("phase") == "loss"] == [
        {"phase": "loss", "step": 1},
        {"phase": "loss", "step": 2},
    ]


def no_tags(number):
    return "without its tags" if number == 4 else f"<revised_response>rev {number}</revised_response>"


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_custom_shows_candidates_as_they_come_and_each_step(way):
    graph = create_tpo_graph(scripted_policy(update=no_tags), number_reward())
    settings, modes = {"n": 2, "depth": 1}, ["custom", "values"]
    if way == "stream":
        parts = list(graph.stream(QUERY, context=settings, stream_mode=modes))
    else:
        parts = [part async for part in graph.astream(QUERY, context=settings, stream_mode=modes)]
    news = [part for mode, part in parts if mode == "custom"]
    assert [next(iter(part)) for part in news] == ["tpo_candidates", "tpo_candidates", "tpo_step"] * 2
    drawn = [part["tpo_candidates"] for part in news if "tpo_candidates" in part]
    assert [
        (part["phase"], part["step"], [candidate["text"] for candidate in part["candidates"]]) for part in drawn
    ] == [
        ("sample", 0, ["cand 0", "cand 1"]),
        ("score", 0, ["cand 0", "cand 1"]),
        ("update", 1, ["rev 5"]),
        ("score", 1, ["rev 5"]),
    ]
    assert [candidate["reward"] for candidate in drawn[1]["candidates"]] == [0.0, 1.0]
    assert [failure["reason"] for failure in drawn[2]["failures"]] == ["no_tags"]
    assert [part["tpo_step"] for part in news if "tpo_step" in part] == parts[-1][1]["trajectory"]


def test_custom_shows_what_nodes_of_a_persons_own_draw():
    def sample(state):
        return {"pending": [Candidate(id="0-0", step=0, text="mine 3", truncated=False)], "step": 0}

    graph = create_tpo_graph(scripted_policy(), number_reward(), nodes={"sample": sample})
    shown = list(graph.stream({"messages": [("user", "q")]}, context={"mode": "bon"}, stream_mode="custom"))
    assert [part["tpo_candidates"]["candidates"][0]["text"] for part in shown[:2]] == ["mine 3"] * 2
    assert shown[2]["tpo_step"]["best_reward"] == 3.0


@pytest.mark.parametrize("most_n", [None, 1], ids=["n in one request", "one by one"])
async def test_a_global_llm_cache_gives_n_different_texts(chat_server, chat_openai, most_n):
    set_llm_cache(InMemoryCache())
    server = chat_server(most_n=most_n)
    graph = create_tpo_graph(chat_openai(server), number_reward())
    for _ in range(2):
        result = await graph.ainvoke(QUERY)
        assert len(set(texts(result))) == 15
    assert server.statuses.count(200) == (14 if most_n is None else 38)


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m, lambda m: m.with_retry(), lambda m: m.with_fallbacks([m])],
    ids=["plain", "retry", "fallbacks"],
)
def test_a_global_llm_cache_gives_n_different_texts_from_a_model_without_n(wrap):
    set_llm_cache(InMemoryCache())
    graph = create_tpo_graph(wrap(scripted_policy()), number_reward())
    drawn = [text for _ in range(2) for text in texts(graph.invoke(QUERY, context={"mode": "bon"}))]
    assert len(set(drawn)) == 10


class Recorder(BaseCallbackHandler):
    """Notes every run: its kind, name, parent and, for a model, how many texts it made."""

    def __init__(self):
        self.parents, self.names, self.models, self.made, self.tags, self.metadata = {}, {}, [], [], {}, {}

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **kwargs):
        self.parents[run_id], self.names[run_id] = parent_run_id, name

    def on_chat_model_start(
        self, serialized, messages, *, run_id, parent_run_id=None, tags=None, metadata=None, **kwargs
    ):
        self.parents[run_id] = parent_run_id
        self.models.append(run_id)
        self.tags[run_id], self.metadata[run_id] = tags, metadata

    def on_llm_end(self, response, **kwargs):
        self.made.append(len(response.generations[0]))

    def nodes(self):
        return [self.names.get(self.parents[run_id]) for run_id in self.models]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_model_calls_are_traced_below_their_nodes(chat_server, chat_openai, way):
    recorder = Recorder()
    graph = create_tpo_graph(chat_openai(chat_server()), number_reward())
    config = {"callbacks": [recorder], "metadata": {"mine": 1}, "tags": ["mine"]}
    result = graph.invoke(QUERY, config) if way == "invoke" else await graph.ainvoke(QUERY, config)
    assert result["stop_reason"] == "depth"
    assert recorder.nodes() == ["sample", *["loss", "gradient", "update"] * 2]
    assert recorder.made == [5, 1, 1, 5, 1, 1, 5]
    assert all("mine" in recorder.tags[run_id] and recorder.metadata[run_id]["mine"] == 1 for run_id in recorder.models)
    assert len({run_id for run_id, parent in recorder.parents.items() if parent is None}) == 1


@pytest.mark.parametrize("wrap", ["bind", "with_retry", "tags"])
def test_model_calls_of_wrapped_policies_are_traced_below_their_nodes(wrap):
    recorder, policy = Recorder(), scripted_policy()
    wrapped = {
        "bind": lambda: policy.bind(mark=1),
        "with_retry": lambda: policy.with_retry(),
        "tags": lambda: policy.with_config(tags=["theirs"], metadata={"team": "a"}),
    }[wrap]()
    create_tpo_graph(wrapped, number_reward()).invoke(
        QUERY, {"callbacks": [recorder], "tags": ["mine"]}, context={"mode": "bon"}
    )
    assert len(recorder.models) == 5
    for run_id in recorder.models:
        while recorder.parents[run_id] is not None and recorder.names.get(run_id) != "sample":
            run_id = recorder.parents[run_id]
        assert recorder.names.get(run_id) == "sample"
    if wrap == "tags":
        assert all({"mine", "theirs"} <= set(recorder.tags[run_id]) for run_id in recorder.models)
        assert all(recorder.metadata[run_id]["team"] == "a" for run_id in recorder.models)


def test_callbacks_bound_to_the_policy_come_beside_those_of_the_run():
    bound, outer = Recorder(), Recorder()
    policy = scripted_policy().with_config(callbacks=[bound])
    create_tpo_graph(policy, number_reward()).invoke(QUERY, {"callbacks": [outer]}, context={"mode": "bon"})
    assert len(bound.models) == 5
    assert outer.nodes() == ["sample"] * 5


def test_callbacks_of_the_model_itself_are_called():
    mine = Recorder()
    policy = scripted_policy().model_copy(update={"callbacks": [mine]})
    create_tpo_graph(policy, number_reward()).invoke(QUERY, context={"mode": "bon"})
    assert len(mine.models) == 5


def test_a_streamed_run_that_is_left_early_says_nothing(chat_server, chat_openai):
    graph = create_tpo_graph(chat_openai(chat_server()), number_reward())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = graph.stream(QUERY, stream_mode="updates")
        assert next(iter(stream)).keys() == {"sample"}
        stream.close()
