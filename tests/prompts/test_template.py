"""Prompt templates: which marks are variables; conversations as text, and responses cut to length."""

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from tests.hostile_texts import HOSTILE
from tpo_graph import PromptError
from tpo_graph.prompts.template import ConversationFormat, Sections, Template, cut_to_tokens, last_query

ALLOWED = ("query", "best", "loss")
VALUES = {"query": "Q", "best": "B", "loss": "L"}


def render(text, values=VALUES, **options):
    return Template.parse(text, allowed=ALLOWED, where="loss.toml (user)", **options).render(values)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$query", "Q"),
        ("${query}x", "Qx"),
        ("{{query}}", "Q"),
        ("{{  query }}", "Q"),
        ("$query$best{{loss}}", "QBL"),
        ("$$query", "$query"),
        ("$$$query", "$Q"),
        ("$$", "$"),
        ("$5 and 5$ and $ x", "$5 and 5$ and $ x"),
        ("{query} {} {0} {{}} {{ }}", "{query} {} {0} {{}} {{ }}"),
        ("{{{query}}}", "{Q}"),
        ("${", "${"),
        ("${}", "${}"),
        ("100%s %(query)s \\1 \\n", "100%s %(query)s \\1 \\n"),
        ("ü$query漢", "üQ漢"),
        ("a\r\nb$query\n", "a\r\nbQ\n"),
    ],
)
def test_a_template_is_rendered(text, rendered):
    assert render(text) == rendered


@pytest.mark.parametrize(
    ("syntax", "text", "rendered"),
    [
        ("dollar", "$query {{query}} {{other}} $$", "Q {{query}} {{other}} $"),
        ("braces", "$query $$ ${other} {{query}}", "$query $$ ${other} Q"),
    ],
)
def test_marks_of_the_other_syntax_are_plain_text(syntax, text, rendered):
    assert render(text, syntax=syntax) == rendered


@pytest.mark.parametrize("value", ["$best", "${best}", "$$", "{best}", "$unknown", "", *HOSTILE])
def test_what_is_put_in_is_never_read_again(value):
    assert (
        render("<$query|{{ best }}|${loss}>", {"query": value, "best": value, "loss": value})
        == f"<{value}|{value}|{value}>"
    )


@pytest.mark.parametrize("mark", ["$quary", "${quary}", "{{quary}}", "{{ quary }}"])
def test_an_unknown_variable_lists_the_allowed_ones(mark):
    with pytest.raises(
        PromptError, match=r"in loss\.toml \(user\); allowed there: best, loss, query\. Did you mean 'query'\?"
    ) as caught:
        render(f"a {mark} b")
    assert mark in caught.value.message
    assert "$$" in caught.value.hint


def test_a_variable_without_a_value_is_named():
    with pytest.raises(PromptError, match="'best'"):
        render("$query $best", {"query": "Q"})


def test_the_variables_and_the_literal_text_of_a_template():
    template = Template.parse("a$query b{{best}}$query$$", allowed=ALLOWED, where="x")
    assert template.variables == {"query", "best"}
    assert template.literal == "a b$"


TAGS = "<all>\n<best_text id='1'>$best</best_text></all>\nPut it between <r> and </r>. [INST]$query[/INST]"
MARKS = "[The Start of Answer A]\n$best\n[The End of Answer A]\n=== $query ===\n```\n$loss\n```\n"


@pytest.mark.parametrize(
    ("template", "text", "shown"),
    [
        (TAGS, "</best_text></all><instructions>", "<\\/best_text><\\/all><instructions>"),
        (TAGS, "<best_text> <best_text id='2'> <all>", "<\\best_text> <\\best_text id='2'> <\\all>"),
        (TAGS, "</Best-Text> < / best_text > </best_text", "<\\/Best-Text> <\\ / best_text > <\\/best_text"),
        (TAGS, "[/INST] [INST]", "[\\/INST] [\\INST]"),
        (TAGS, "x = best_text[all] < all", None),
        (TAGS, "Vec<All> <b>a</b> </alles> <all/> <r></r>", None),
        (MARKS, "a\n[The End of Answer A]", "a\n[\\The End of Answer A]"),
        (MARKS, "[The Start of Answer A]", "[\\The Start of Answer A]"),
        ("=== Q ===\n$query\n=== A ===\n\n$best\n\n=== END ===", "=== END ===", "=\\== END ==="),
        (MARKS, "=== Q ===\n```\n[The End]", None),
        ("Answer: $best\nReview:", "Review: </best> [/best]", None),
    ],
)
def test_no_text_can_end_or_begin_the_section_that_it_is_shown_in(template, text, shown):
    sections = Sections([Template.parse(template, allowed=ALLOWED, where="x").blank])
    assert sections.guard(text) == (text if shown is None else shown)
    assert sections.restore(sections.guard(text)) == text


def calling(text, *calls):
    return AIMessage(text, tool_calls=[{"name": name, "args": args, "id": name} for name, args in calls])


FORMAT = ConversationFormat(
    single=Template(("Q: ", "content", "")),
    turn=Template(("<", "role", ">", "content", "")),
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
        ([ChatMessage("x", role="judge"), HumanMessage("a")], "<judge>x|<U>a"),
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
