"""Prompt templates: which marks are variables, and that what is put in is never read again."""

import pytest

from tpo_graph import PromptError
from tpo_graph.prompts.template import Template

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


@pytest.mark.parametrize(
    "value", ["$best", "{{best}}", "${best}", "$$", "{best}", "\\g<0>", "%s", "$query", "$unknown", ""]
)
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
