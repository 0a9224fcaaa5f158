"""The conversation as text, and the cut of what a prompt shows."""

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from tpo_graph.prompts.conversation import ConversationFormat, cut_to_tokens, last_query
from tpo_graph.prompts.template import Template


def template(text):
    return Template.parse(text, allowed={"role", "content"}, where="test")


def calling(text, *calls):
    return AIMessage(text, tool_calls=[{"name": name, "args": args, "id": name} for name, args in calls])


FORMAT = ConversationFormat(
    single=template("Q: $content"),
    turn=template("<$role>$content"),
    separator="|",
    roles={"user": "U", "assistant": "A", "system": "S"},
)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([HumanMessage("a")], "Q: a"),
        ([SystemMessage("s"), HumanMessage("a")], "<S>s|<U>a"),
        ([HumanMessage("a"), AIMessage("b"), HumanMessage("c")], "<U>a|<A>b|<U>c"),
        ([HumanMessage("$role {{content}}"), AIMessage("|")], "<U>$role {{content}}|<A>|"),
        ([HumanMessage("a"), ToolMessage("t", tool_call_id="1")], "<U>a|<tool>t"),
        ([HumanMessage("a"), calling("", ("f", {"città": "Forlì"}))], '<U>a|<A>f({"città": "Forlì"})'),
        ([HumanMessage("a"), calling("b", ("f", {}), ("g", {"x": [1]}))], '<U>a|<A>b\nf({})\ng({"x": [1]})'),
        ([AIMessage("")], "<A>"),
        ([AIMessage("b")], "<A>b"),
        ([HumanMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "Q: ab"),
        ([ChatMessage("x", role="judge"), HumanMessage("a")], "<chat>x|<U>a"),
    ],
)
def test_a_conversation_is_written_in_the_packs_format(messages, text):
    assert FORMAT.render(messages) == text


@pytest.mark.parametrize(
    ("messages", "query"),
    [
        ([], ""),
        ([SystemMessage("s")], ""),
        ([HumanMessage("a"), AIMessage("b"), HumanMessage("c"), AIMessage("d")], "c"),
    ],
)
def test_the_query_is_the_last_user_message(messages, query):
    assert last_query(messages) == query


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("", 1, ""),
        ("abcd", 1, "abcd"),
        ("abcde", 1, "abcd"),
        ("漢字", 1, "漢"),
        ("漢字", 2, "漢字"),
        ("👩‍👩", 1, "👩"),
        ("aaa漢", 1, "aaa"),
    ],
)
def test_a_text_is_cut_at_four_bytes_a_token_and_never_inside_a_character(text, limit, cut):
    assert cut_to_tokens(text, limit) == cut


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 7])
def test_a_tokenizer_of_the_policy_decides_where_there_is_one(limit):
    text = "one two three four five six"
    cut = cut_to_tokens(text, limit, str.split)
    assert text.startswith(cut)
    assert len(cut.split()) == min(limit, 6)
