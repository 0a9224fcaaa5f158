"""What a run takes: conversations in every LangChain form, a query, and a context."""

import json

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tests.hostile_texts import nested
from tests.tpo_script import number_reward, scripted_policy
from tpo_graph import ConfigurationError, TPOSettings, create_tpo_graph
from tpo_graph.human import human_nodes
from tpo_graph.langchain.chat_model import ChatTPO

BON = {"mode": "bon"}


def run(inputs, policy=None, reward=None, **context):
    policy = policy or scripted_policy()
    return create_tpo_graph(policy, reward or number_reward()).invoke(inputs, context=context)


@pytest.mark.parametrize(
    "messages",
    [
        [("system", "be brief"), ("user", "hello")],
        [("system", "be brief"), ("human", "hello")],
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        [SystemMessage("be brief"), HumanMessage("hello")],
        [SystemMessage("be brief"), "hello"],
        [SystemMessage([{"type": "text", "text": "be brief"}]), HumanMessage([{"type": "text", "text": "hello"}])],
        [("system", "be brief"), {"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    ],
)
def test_a_conversation_in_any_form_reaches_the_policy(messages):
    policy = scripted_policy()
    result = run({"messages": messages}, policy, depth=1)
    assert [(message.type, message.text) for message in policy.requests[0]] == [
        ("system", "be brief"),
        ("human", "hello"),
    ]
    assert "[System] be brief\n\n[User] hello" in policy.requests[5][-1].text
    assert [message.type for message in result["messages"]] == ["system", "human", "ai"]


@pytest.mark.parametrize(
    "messages", ["hello", HumanMessage("hello"), ("user", "hello"), {"role": "user", "content": "hello"}]
)
def test_a_single_message_is_a_conversation_too(messages):
    policy = scripted_policy()
    run({"messages": messages}, policy, **BON)
    assert [(message.type, message.text) for message in policy.requests[0]] == [("human", "hello")]


def test_a_query_follows_the_conversation():
    policy = scripted_policy()
    run({"messages": [("system", "s"), ("user", "a"), ("ai", "b")], "query": "c"}, policy, **BON)
    assert [message.text for message in policy.requests[0]] == ["s", "a", "b", "c"]


def test_the_whole_history_reaches_policy_reward_model_and_prompts():
    history = [("system", "SYS"), ("user", "U1"), ("ai", "A1"), ("user", "U2")]
    seen = []

    class Reward:
        async def score(self, messages, responses):
            seen.append([(message.type, message.text) for message in messages])
            return [float(text.split()[-1]) for text in responses]

    policy = scripted_policy()
    run({"messages": history}, policy, Reward())
    whole = [("system", "SYS"), ("human", "U1"), ("ai", "A1"), ("human", "U2")]
    assert seen == [whole] * 3
    assert [(message.type, message.text) for message in policy.requests[0]] == whole
    for place in (5, 6, 7, 12, 13, 14):
        assert "[System] SYS\n\n[User] U1\n\n[Assistant] A1\n\n[User] U2" in policy.requests[place][-1].text


def test_tool_results_are_part_of_the_conversation():
    messages = [
        HumanMessage("weather?"),
        AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Turku"}, "id": "1"}]),
        {"role": "tool", "content": "22 degrees", "tool_call_id": "1"},
    ]
    policy = scripted_policy()
    result = run({"messages": messages}, policy, depth=1)
    assert '[Assistant] weather({"city": "Turku"})\n\n[Tool] 22 degrees' in policy.requests[5][-1].text
    assert result["stop_reason"] == "depth"


@pytest.mark.parametrize(
    "inputs",
    [
        {"query": ""},
        {"query": " \n\t"},
        {"query": 7},
        {},
        {"messages": []},
        {"messages": [AIMessage("hello")]},
        {"messages": [("user", "hi"), ("assistant", "hello")]},
        {"messages": [HumanMessage("")]},
        {"messages": [HumanMessage(" \n")]},
        {"messages": [HumanMessage([{"type": "text", "text": ""}])]},
    ],
    ids=str,
)
def test_nothing_to_answer_is_an_error_before_anything_is_paid_for(inputs):
    policy = scripted_policy()
    with pytest.raises(ConfigurationError) as caught:
        run(inputs, policy)
    assert caught.value.hint
    assert policy.requests == []


CALL = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage("find it"), CALL, ToolMessage("", tool_call_id="1")],
        [HumanMessage("find it"), CALL, ToolMessage([], tool_call_id="1")],
        [SystemMessage(""), HumanMessage("hello")],
        [HumanMessage(""), AIMessage(""), HumanMessage("hello")],
    ],
    ids=["tool", "tool-blocks", "system", "in the middle"],
)
def test_only_the_last_message_of_a_person_must_have_a_text(messages):
    assert run({"messages": messages}, depth=1)["stop_reason"] == "depth"


def test_a_conversation_that_is_nested_too_deep_is_an_error_that_says_so():
    call = AIMessage("", tool_calls=[{"name": "search", "args": nested(10_000), "id": "1"}])
    for run_with in (
        lambda messages: run({"messages": messages}),
        ChatTPO(policy=scripted_policy(), reward=number_reward()).invoke,
    ):
        with pytest.raises(ConfigurationError, match="nested too deep"):
            run_with([HumanMessage("find it"), call, ToolMessage("", tool_call_id="1")])


HALF, NUL = "a\ud800b", "a\0b"


@pytest.mark.parametrize("text", [HALF, NUL], ids=["half a surrogate pair", "NUL"])
def test_what_no_store_can_hold_is_repaired_in_every_text_of_a_run(text):
    replies = {"sample": f"{text} 1", "loss": f"{text} loss", "gradient": f"{text} gradient"}
    policy = scripted_policy(**replies, update=f"<revised_response>{text} 2</revised_response>")
    saver = InMemorySaver()
    graph = create_tpo_graph(policy, number_reward(), checkpointer=saver)
    thread = {"configurable": {"thread_id": "1"}}
    history = [HumanMessage([{"type": "text", "text": text}]), AIMessage(text)]
    inputs = {"messages": history, "query": text, "drafts": [f"{text} 3"]}
    result = graph.invoke(inputs, thread, context={"n": 2, "depth": 1, "preference": text})
    assert result["answer"] == "a\ufffdb 3"
    assert [message.text for message in policy.requests[0]] == ["a\ufffdb"] * 3
    assert "<preference>\na\ufffdb\n</preference>" in policy.requests[-1][-1].text
    # in PostgreSQL the texts among these are JSON
    stored = [saved.checkpoint["channel_values"] for saved in saver.list(thread)]
    assert {name for values in stored for name, value in values.items() if isinstance(value, str)} >= {
        "query",
        "loss",
        "gradient",
        "answer",
    }
    channels = [{**values, "__start__": None} for values in stored]
    written = json.dumps([channels, [[message.text for message in asked] for asked in policy.requests]], default=repr)
    assert not [escape for escape in (r"\u0000", r"\ud800", r"\x00") if escape in written]


def test_a_providers_message_and_a_persons_critique_are_repaired_too():
    policy = scripted_policy(gradient=ValueError(f"{HALF}{NUL}"))
    graph = create_tpo_graph(policy, number_reward(), nodes=human_nodes(policy), checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    graph.invoke({"query": "q"}, thread, context={"n": 2, "depth": 1})
    graph.invoke(Command(resume={"critique": f"{NUL} mine"}), thread, context={"n": 2, "depth": 1})
    state = graph.get_state(thread).values
    assert state["choices"][0]["critique"] == "a\ufffdb mine"
    assert ["a\ufffdba\ufffdb" in record["detail"] for record in state["failures"]] == [True]


def test_the_critique_of_a_persons_own_node_is_repaired_too():
    nodes = {"loss": lambda _: {"loss": NUL, "gradient": HALF}}
    graph = create_tpo_graph(scripted_policy(), number_reward(), nodes=nodes)
    (record,) = graph.invoke({"query": "q"}, context={"n": 2, "depth": 1})["trajectory"][1:]
    assert (record["loss"], record["gradient"]) == ("a\ufffdb", "a\ufffdb")


def test_an_image_without_text_is_something_to_answer():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    policy = scripted_policy()
    run({"messages": [HumanMessage([image])]}, policy, **BON)
    assert policy.requests[0][0].content == [image]


@pytest.mark.parametrize("context", [{"n": 3, "depth": 1}, TPOSettings(n=3, depth=1)])
def test_a_partial_context_overrides_only_what_it_names(context):
    policy = scripted_policy()
    defaults = TPOSettings(n=2, depth=4, sample_temperature=0.1)
    result = create_tpo_graph(policy, number_reward(), settings=defaults).invoke({"query": "q"}, context=context)
    assert [record["candidates"] for record in result["trajectory"]] == [3, 3]
    assert policy.knobs[0]["temperature"] == 0.1


def test_the_context_may_name_a_default_to_get_it_back():
    defaults = TPOSettings(n=2, target_reward=-100.0)
    graph = create_tpo_graph(scripted_policy(), number_reward(), settings=defaults)
    assert graph.invoke({"query": "q"})["stop_reason"] == "target"
    assert graph.invoke({"query": "q"}, context={"target_reward": None})["stop_reason"] == "depth"


def test_the_context_of_one_call_does_not_stay():
    graph = create_tpo_graph(scripted_policy(), number_reward())
    assert len(graph.invoke({"query": "q"}, context={"n": 2})["cache"]) == 6
    assert len(graph.invoke({"query": "q"})["cache"]) == 15


@pytest.mark.parametrize("config", [{"n": 2}, {"configurable": {"n": 2, "thread_id": "1"}}])
@pytest.mark.parametrize(("context", "n"), [(None, 2), ({"depth": 1}, 2), ({"n": 3, "depth": 1}, 3)])
async def test_settings_in_the_config_count_and_those_of_the_context_come_first(config, context, n):
    settings = TPOSettings(n=4, depth=1)
    graph = create_tpo_graph(scripted_policy(), number_reward(), settings=settings)
    assert len(graph.invoke({"query": "q"}, config, context=context)["cache"]) == 2 * n
    assert len((await graph.ainvoke({"query": "q"}, config, context=context))["cache"]) == 2 * n


def test_a_bad_setting_in_the_config_is_refused_before_anything_is_paid_for():
    policy = scripted_policy()
    with pytest.raises(ConfigurationError, match="n=0"):
        create_tpo_graph(policy, number_reward()).invoke({"query": "q"}, {"configurable": {"n": 0}})
    assert policy.requests == []


def test_a_setting_among_the_options_of_the_graph_is_an_error_that_says_where_it_goes():
    with pytest.raises(ConfigurationError, match="not options of the graph: n=3, mode='bon'") as caught:
        create_tpo_graph("openai:not-loaded", "nor-this", n=3, mode="bon")
    assert "settings=TPOSettings(n=3, mode='bon')" in caught.value.hint
    assert "context={'n': 3, 'mode': 'bon'}" in caught.value.hint


def test_models_are_taken_by_name(chat_server):
    server, critic = chat_server(), chat_server()
    names = [f"server:{model.url}#scripted" for model in (server, critic)]
    graph = create_tpo_graph(names[0], "length:1-9 words", critic=names[1], settings=TPOSettings(n=2, depth=1))
    assert graph.invoke({"query": "q"})["stop_reason"] == "target"
    graph = create_tpo_graph(names[0], number_reward(), critic=names[1], settings=TPOSettings(n=2, depth=1))
    assert graph.invoke({"query": "q"})["stop_reason"] == "depth"
    assert (len(server.requests), len(critic.requests)) == (3, 2)


def test_the_name_of_a_variant_is_not_taken_for_nodes():
    with pytest.raises(ConfigurationError, match="nodes='fused-critique' is a name") as caught:
        create_tpo_graph(scripted_policy(), number_reward(), nodes="fused-critique")
    assert "nodes=fused_critique(policy)" in caught.value.hint


def test_settings_of_the_environment_are_the_defaults_of_a_graph(monkeypatch):
    monkeypatch.setenv("TPO_N", "2")
    assert (
        len(create_tpo_graph(scripted_policy(), number_reward()).invoke({"query": "q"}, context={"depth": 0})["cache"])
        == 2
    )


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"nn": 3}, "Unknown setting 'nn'"),
        ({"mode": "best"}, "'tpo', 'revision' or 'bon'"),
        ({"sample_top_p": 1.5}, "sample_top_p=1.5"),
        ({"open_tag": " "}, "open_tag"),
    ],
)
def test_a_bad_context_is_refused_before_anything_is_paid_for(context, message):
    policy = scripted_policy()
    with pytest.raises(ConfigurationError, match=message):
        run({"query": "q"}, policy, **context)
    assert policy.requests == []


@pytest.mark.parametrize(
    ("drafts", "asked"), [(["draft 7"], 4), ([f"draft {place}" for place in range(7)], 0), ([], 5)]
)
def test_drafts_are_candidates_of_step_0_and_the_policy_draws_the_rest(drafts, asked):
    policy = scripted_policy()
    result = run({"query": "q", "drafts": drafts}, policy, depth=0)
    assert [candidate["text"] for candidate in result["cache"]] == drafts + [f"cand {place}" for place in range(asked)]
    assert len(policy.requests) == result["usage"]["sample"]["requests"] == asked
    assert {candidate["step"] for candidate in result["cache"]} == {0}
    assert "drafts" not in result


def test_a_preference_reaches_loss_gradient_and_update():
    policy = scripted_policy()
    run({"query": "q"}, policy, preference="  answer for a ten-year-old ", depth=1)
    shown = ["answer for a ten-year-old" in request[-1].text for request in policy.requests]
    assert shown == [False] * 5 + [True] * 7
    assert "<preference>\nanswer for a ten-year-old\n</preference>" in policy.requests[5][-1].text


def test_no_preference_leaves_no_trace():
    policy = scripted_policy()
    run({"query": "q"}, policy, depth=1)
    assert not any("preference" in request[-1].text for request in policy.requests)


@pytest.mark.parametrize(("policy", "reward"), [("gpt-4o", None), (None, object()), (None, "locl"), (7, None)])
def test_a_policy_or_reward_model_of_the_wrong_kind_is_refused_at_build(policy, reward):
    with pytest.raises(ConfigurationError) as caught:
        create_tpo_graph(policy or scripted_policy(), reward or number_reward())
    assert caught.value.hint
