"""What is streamed, what is not, and where the inner run stands in a trace."""

import asyncio

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from tests.tpo_script import number_reward, reply, scripted_policy
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.testing import ScriptedChatModel, TableReward

BETA = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


def chat(**options):
    return ChatTPO(**{"policy": scripted_policy(), "reward": number_reward(), **options})


def graph_of(ask, **compile_options):
    """A graph of one node."""
    builder = StateGraph(MessagesState)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    return builder.compile(**compile_options)


def outer_graph(model, *, sync=False, **compile_options):
    """A graph of one node that asks the model, as people write it."""

    async def ask(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    def ask_sync(state):
        return {"messages": [model.invoke(state["messages"])]}

    return graph_of(ask_sync if sync else ask, **compile_options)


def streamed(sync, model, **options):
    """What a graph around the model streams, from sync or async code."""
    graph = outer_graph(model, sync=sync)
    if sync:
        return list(graph.stream(ASKED, **options))

    async def collect():
        return [part async for part in graph.astream(ASKED, **options)]

    return asyncio.run(collect())


ASKED = {"messages": [("user", "q")]}


def test_the_answer_comes_in_pieces_and_the_last_one_tells_the_rest():
    text = "\n two  words\nand more "
    model = ChatTPO(policy=ScriptedChatModel([text]), reward=TableReward({}, default=0.0), n=1, mode="bon")
    chunks = list(model.stream("q"))
    assert [chunk.text for chunk in chunks] == ["two  ", "words\n", "and ", "more"]
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False, False, False, True]
    assert chunks[-1].response_metadata["tpo"]["stop_reason"] == "bon"
    assert chunks[-1].chunk_position == "last"
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_async_pieces_are_the_same():
    whole = None
    async for chunk in chat().astream("q"):
        whole = chunk if whole is None else whole + chunk
    assert (whole.text, whole.response_metadata["tpo"]["steps"]) == ("rev 18", 2)


def test_streaming_can_be_switched_off():
    assert len(list(chat(disable_streaming=True).stream("q"))) == 1


def test_a_stream_can_be_left_early():
    stream = chat().stream("q")
    assert next(stream).text == "rev "
    stream.close()


async def test_an_async_stream_can_be_left_early():
    stream = chat().astream("q")
    assert (await anext(stream)).text == "rev "
    await stream.aclose()


def texts_by_place(parts):
    """The texts of a message stream, by the namespace that they came from."""
    texts = {}
    for namespace, (message, _) in parts:
        texts.setdefault(len(namespace), []).append(message.text)
    return texts


@pytest.mark.parametrize("sync", [False, True], ids=["async node", "sync node"])
def test_no_draft_leaks_into_the_message_stream_of_a_graph(sync):
    texts = texts_by_place(streamed(sync, chat(), stream_mode="messages", subgraphs=True))
    assert [text for text in texts.pop(0) if text] == ["rev ", "18"]
    # the graph inside says nothing at all, not even the answer again
    assert texts == {}


def test_no_draft_leaks_when_the_node_itself_streams():
    model = chat()

    def ask(state):
        whole = None
        for chunk in model.stream(state["messages"]):
            whole = chunk if whole is None else whole + chunk
        return {"messages": [whole]}

    parts = graph_of(ask).stream(ASKED, stream_mode="messages", subgraphs=True)
    texts = texts_by_place(parts)
    assert [text for text in texts.pop(0) if text] == ["rev ", "18"]
    assert texts == {}


def test_the_inner_graph_can_be_watched_with_subgraphs():
    parts = streamed(True, chat(depth=1), stream_mode="updates", subgraphs=True)
    inner = [next(iter(update)) for namespace, update in parts if namespace]
    assert inner == ["sample", "score", "select", "loss", "gradient", "update", "score", "select"]


async def test_events_stream_the_answer_and_tell_the_steps():
    answer, steps, leaked, order = [], [], [], []
    async for event in chat().astream_events("q", version="v2"):
        if event["event"] == "on_chat_model_stream":
            (answer if event["name"] == "ChatTPO" else leaked).append(event["data"]["chunk"].text)
        if event["name"] in ("ChatTPO", "tpo_step") and event["event"] in ("on_chat_model_stream", "on_custom_event"):
            order.append(event["event"])
        if event["event"] == "on_custom_event":
            steps.append((event["name"], event["data"]["step"], event["data"]["best_reward"]))
    assert "".join(answer) == "rev 18"
    assert steps == [("tpo_step", 0, 4.0), ("tpo_step", 1, 11.0), ("tpo_step", 2, 18.0)]
    assert leaked == []
    assert order == ["on_custom_event"] * 3 + ["on_chat_model_stream"] * 2


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_steps_and_candidates_are_in_the_custom_stream_of_a_graph(sync):
    parts = streamed(sync, chat(), stream_mode="custom")
    assert [part["tpo_step"]["best_reward"] for part in parts if "tpo_step" in part] == [4.0, 11.0, 18.0]
    phases = [part["tpo_candidates"]["phase"] for part in parts if "tpo_candidates" in part]
    assert phases == ["sample", "score", "update", "score", "update", "score"]


@BETA
async def test_the_newer_protocol_streams_the_answer_alone():
    stream = await chat().astream_events("q", version="v3")
    assert "".join([delta async for delta in stream.text]) == "rev 18"
    message = await stream.output
    assert message.response_metadata["run_usage"]["output_tokens"] == 40
    assert message.response_metadata["tpo"]["reward"] == 18.0


@BETA
async def test_the_newer_protocol_of_a_graph_streams_the_answer_alone():
    run = await outer_graph(chat()).astream_events(ASKED, version="v3")
    texts = [await message.text async for message in run.messages]
    assert texts == ["rev 18"]


class Tree(BaseCallbackHandler):
    """Remembers each run's parent."""

    def __init__(self):
        self.names, self.parents, self.ended = {}, {}, []

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, **kwargs):
        self._add(run_id, parent_run_id, serialized["id"][-1])

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self._add(run_id, parent_run_id, kwargs.get("name"))

    def on_llm_end(self, response, *, run_id, **kwargs):
        self.ended.append(self.names[run_id])

    def _add(self, run_id, parent, name):
        self.names[run_id], self.parents[run_id] = name, parent

    def path(self, name):
        """Names from the outermost run down to the first one of this name."""
        run, path = next(run for run, other in self.names.items() if other == name), []
        while run is not None:
            path.append(self.names[run])
            run = self.parents[run]
        return path[::-1]


def call(way, runnable, config):
    async def consume():
        async for _ in runnable.astream("q", config):
            pass

    return {
        "invoke": lambda: runnable.invoke("q", config),
        "stream": lambda: list(runnable.stream("q", config)),
        "batch": lambda: runnable.batch(["q"], config),
        "ainvoke": lambda: asyncio.run(runnable.ainvoke("q", config)),
        "astream": lambda: asyncio.run(consume()),
    }[way]()


WAYS = ["invoke", "stream", "batch", "ainvoke", "astream"]


@pytest.mark.parametrize("way", WAYS)
def test_the_inner_run_is_traced_under_the_model_alone_and_in_a_chain(way):
    tree = Tree()
    call(way, chat(mode="bon"), {"callbacks": [tree]})
    assert tree.path("ScriptedChatModel") == ["ChatTPO", "tpo", "sample", "ScriptedChatModel"]
    assert tree.ended[-1] == "ChatTPO"
    tree = Tree()
    call(way, RunnableLambda(lambda text: text) | chat(mode="bon"), {"callbacks": [tree]})
    assert tree.path("ScriptedChatModel") == ["RunnableSequence", "ChatTPO", "tpo", "sample", "ScriptedChatModel"]


async def test_and_in_a_graph_that_streams_messages():
    tree = Tree()
    stream = outer_graph(chat(mode="bon")).astream(ASKED, {"callbacks": [tree]}, stream_mode="messages")
    assert [part async for part in stream]
    assert tree.path("ScriptedChatModel")[-4:] == ["ChatTPO", "tpo", "sample", "ScriptedChatModel"]


async def test_and_under_events():
    tree = Tree()
    async for _ in chat(mode="bon").astream_events("q", {"callbacks": [tree]}, version="v2"):
        pass
    assert tree.path("ScriptedChatModel") == ["ChatTPO", "tpo", "sample", "ScriptedChatModel"]


def test_the_id_of_a_run_is_kept_when_it_is_given():
    from uuid import uuid4

    tree, run_id = Tree(), uuid4()
    list(chat(mode="bon").stream("q", {"callbacks": [tree], "run_id": run_id}))
    assert tree.names[run_id] == "ChatTPO"


def test_tags_and_metadata_reach_the_policy():
    seen = []

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, *, tags=None, metadata=None, **kwargs):
            seen.append((serialized["id"][-1], tags, metadata["who"]))

    config = {"callbacks": [Handler()], "tags": ["mine"], "metadata": {"who": "me"}}
    list(chat(mode="bon", n=1).stream("q", config))
    assert [(name, "mine" in tags, who) for name, tags, who in seen] == [
        ("ChatTPO", True, "me"),
        ("ScriptedChatModel", True, "me"),
    ]


async def test_it_does_not_write_into_the_thread_of_the_graph_around_it():
    saver = InMemorySaver()
    graph = outer_graph(chat(), checkpointer=saver)
    config = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke(ASKED, config)
    await graph.ainvoke(ASKED, config)
    namespaces = {checkpoint.config["configurable"]["checkpoint_ns"] for checkpoint in saver.list(None)}
    assert namespaces == {""}
    assert len((await graph.aget_state(config)).values["messages"]) == 4


async def test_two_models_in_one_node():
    model = chat()

    async def ask(state):
        answers = await asyncio.gather(*(model.ainvoke(state["messages"]) for _ in range(3)))
        return {"messages": answers}

    result = await graph_of(ask).ainvoke(ASKED)
    assert [message.text.split()[0] for message in result["messages"][1:]] == ["rev"] * 3


class Streaming(ScriptedChatModel):
    """A policy that streams whenever it may."""

    streaming: bool = True

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        text = self._generate(messages, stop, None, **kwargs).generations[0].message.text
        for piece in text.split(" "):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


@pytest.mark.parametrize("wrapped", ["alone", "with retry", "with fallbacks"])
async def test_the_first_reply_with_tools_is_not_streamed(wrapped):
    policy = Streaming(lambda messages, number: reply(messages[-1].text, number))
    policies = {
        "alone": policy,
        "with retry": policy.with_retry(),
        "with fallbacks": policy.bind(user="me").with_fallbacks([policy]),
    }
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    model = ChatTPO(policy=policies[wrapped], reward=number_reward(), n=2, depth=0).bind_tools([tool])
    streamed = [
        (event["name"], event["data"]["chunk"].text)
        async for event in model.astream_events("q")
        if event["event"] == "on_chat_model_stream"
    ]
    assert streamed == [("ChatTPO", "cand "), ("ChatTPO", "1")]
