"""Cutting a revision out of its tags: a table of what models write."""

import pytest

from tests.hostile_texts import HOSTILE
from tpo_graph.prompts.revision_tags import extract_revision, without_blank_edges


def extract(completion, open_tag="<r>", close_tag="</r>", **options):
    found = extract_revision(completion, open_tag=open_tag, close_tag=close_tag, **options)
    return found.text, found.problem


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("<r>A</r>", "A"),
        ("<r>\n  A b\n\n c \n</r>", "  A b\n\n c"),
        ("<r>  A b\n c </r>", "A b\n c"),
        ("Sure!\n<r>A</r>\nHope that helps.", "A"),
        ("<r>draft</r> better: <r>final</r>", "final"),
        ("I put it between <r> and </r>.\n<r>final</r>", "final"),
        ("<r>A</r> and then <r>cut", "A"),
        ("<r>quotes <r>inner</r> here</r>", "quotes <r>inner</r> here"),
        ("<r>ends with a stray </r> tag</r>", "ends with a stray </r> tag"),
        ("<r>opens <r> and does not close</r>", "opens <r> and does not close"),
        ("</r><r>A</r>", "A"),
        ("<r>$query {{best}} $$ \\1</r>", "$query {{best}} $$ \\1"),
        ("<r>漢字 مرحبا 👩‍👩‍👧</r>", "漢字 مرحبا 👩‍👩‍👧"),
        ("<R>no</R><r>A</r>", "A"),
        ("<r>A", "A"),
        ("</r><r>A", "A"),
        ("I put it between <r> and </r>.\n<r>final", "final"),
        (
            "I put it between <r> and </r>.\n**<r>**\nopens <r> and does not close\n**</r>**",
            "opens <r> and does not close",
        ),
        ("<r><r>A</r></r>", "<r>A</r>"),
    ],
)
def test_the_revision_between_the_tags(completion, text):
    assert extract(completion) == (text, None)


@pytest.mark.parametrize(
    ("completion", "text", "problem"),
    [
        ("", "", "empty"),
        (" \n", "", "empty"),
        ("no tags", "", "no_tags"),
        ("A</r>", "", "no_tags"),
        ("<r2>A</r2>", "", "no_tags"),
        ("<r", "", "no_tags"),
        ("<r>", "", "empty"),
        ("<r></r>", "", "empty"),
        ("<r> \n </r>", "", "empty"),
    ],
)
def test_what_is_no_revision(completion, text, problem):
    assert extract(completion) == (text, problem)


TAGS = {"open_tag": "<new_text>", "close_tag": "</new_text>"}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("**<new_text>**\nA\n**</new_text>**", "A"),
        ("**<new_text>**\n**Bold** and *thin*\n</new_text>", "**Bold** and *thin*"),
        ("<new_text>**A** and **B**</new_text>", "**A** and **B**"),
        ("**<new_text>A **b**</new_text>**", "A **b**"),
        ("**`<new_text>`**A**`</new_text>`**", "A"),
        ("`<new_text>`\nuse `x`\n`</new_text>`", "use `x`"),
        ("### <new_text>\nA\n### </new_text>", "A"),
        ("```xml\n<new_text>\nA\n</new_text>\n```", "A"),
        ("```xml\n<new_text>\n```\nA\n```xml\n</new_text>\n```", "A"),
        ("```xml\n<new_text>\nA\n```", "A"),
        ("```xml\n<new_text>\n```py\nA\n```\n</new_text>\n```", "```py\nA\n```"),
        ("<new_text>\n```py\nA\n```\n</new_text>", "```py\nA\n```"),
        ("<NEW_TEXT>A</New_Text>", "A"),
        ("< new_text >A</ new_text >", "A"),
        ("<new_text >A< / new_text>", "A"),
        ('<new_text id="1" lang=en>A</new_text>', "A"),
        ("<new-text>A</new-text>", "A"),
        ("<new text>A</new text>", "A"),
        ("<new\\_text>A</new\\_text>", "A"),
        ("&lt;new_text&gt;A&lt;/new_text&gt;", "A"),
        ("&LT;new_text&#62;A &lt; B&lt;/new_text&#x3E;", "A &lt; B"),
        ("<new_text>A</New_Text>", "A"),
        ("**<New-Text>**\nA", "A"),
        ("<new_text>Write <New_Text a=1/> here</new_text>", "Write <New_Text a=1/> here"),
        ("<new_text>In HTML: &lt;/new_text&gt;.</new_text>", "In HTML: &lt;/new_text&gt;."),
    ],
)
def test_tags_in_other_spellings_and_marks_around_them(completion, text):
    found = extract_revision(completion, **TAGS)
    assert (found.text, found.problem) == (text, None)


@pytest.mark.parametrize(
    "completion", ["<new_texts>A</new_texts>", "<new_text is what I write", "< new _ texts >A", "newtext"]
)
def test_what_only_looks_like_a_tag(completion):
    assert extract_revision(completion, **TAGS).problem == "no_tags"


@pytest.mark.parametrize("completion", ["###begin A ###end", "### BEGIN A ### END", "###-BEGIN A"])
def test_tags_of_another_form_match_as_they_are(completion):
    assert extract(completion, "###BEGIN", "###END")[1] == "no_tags"
    assert extract("###BEGIN**A**###END", "###BEGIN", "###END") == ("**A**", None)


HALVES = [
    "<",
    "< ",
    "&lt;",
    "<new_text",
    "</new_text ",
    "<new-text a='",
    "<new_text>",
    "```\n<new_text>",
    "*",
    "`",
    "\n",
    " ",
]


@pytest.mark.parametrize("half", HALVES)
def test_a_megabyte_of_half_tags_is_read_in_linear_time(half):
    text = half * (1_000_000 // len(half))
    for completion in (text, f"<new_text>{text}", f"**<new_text{text}</new_text>"):
        extract_revision(completion, **TAGS)


QUOTED = "<r>Use <r>x</r> in the prompt, then the rest is cu"


@pytest.mark.parametrize(
    ("completion", "open_tag", "close_tag", "text", "problem"),
    [
        ("<r>cut", "<r>", "</r>", "cut", "truncated"),
        ("</r><r>A</r", "<r>", "</r>", "A</r", "truncated"),
        ("<R>cut", "<r>", "</r>", "cut", "truncated"),
        ("###BEGIN cut", "###BEGIN", "###END", "cut", "truncated"),
        (QUOTED, "<r>", "</r>", QUOTED.removeprefix("<r>"), "truncated"),
        ("I put it between <r> and </r>.\n<r>fin", "<r>", "</r>", "fin", "truncated"),
        ("<r>whole</r>\nI hope that", "<r>", "</r>", "whole", None),
        ("<r>Use <r>x</r> in it.</r> Now", "<r>", "</r>", "Use <r>x</r> in it.", None),
        ("--- A --- B --- cu", "---", "---", "A --- B --- cu", "truncated"),
        ("--- A --- cu", "---", "---", "A", None),
        ("---begin A ---end and", "---begin", "---end", "A", None),
    ],
)
def test_a_truncated_completion_has_only_the_blocks_that_were_closed(completion, open_tag, close_tag, text, problem):
    assert extract(completion, open_tag, close_tag, truncated=True) == (text, problem)
    assert extract(completion, open_tag, close_tag, truncated=True, keep_truncated=True) == (text, None)


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        ("", ""),
        (" \n\t\n ", ""),
        ("A\n", "A"),
        (" A", "A"),
        ("    if x:\n        y\n\n", "    if x:\n        y"),
        ("\n \r\n\tif x:\n\t\ty", "\tif x:\n\t\ty"),
        ("\u3000\u3000\u7532", "\u3000\u3000\u7532"),
    ],
)
def test_blank_edges_are_cut_and_indentation_is_not(text, trimmed):
    assert without_blank_edges(text) == trimmed


@pytest.mark.parametrize(
    ("completion", "options", "text", "problem"),
    [
        ("A</r>", {"opened": True}, "A", None),
        ("A</r> B", {"opened": True}, "A", None),
        ("A", {"opened": True}, "A", None),
        ("A", {"opened": True, "truncated": True}, "A", "truncated"),
        ("<R>A", {"opened": True}, "A", None),
        ("A", {"opened": True, "closed": True}, "A", None),
        ("", {"opened": True, "closed": True}, "", "empty"),
        ("<r>A", {"closed": True}, "A", None),
        ("A", {"closed": True}, "", "no_tags"),
        ("<r>A</r>", {"opened": True}, "A", None),
        ("<r>A</r>", {"closed": True}, "A", None),
        ("A</r>", {"opened": True, "closed": True}, "A", None),
        ("<r>", {"keep_truncated": True, "truncated": True}, "", "empty"),
        ("none", {"keep_truncated": True}, "", "no_tags"),
    ],
)
def test_tags_that_the_prompt_or_the_provider_has_taken_and_truncated_revisions(completion, options, text, problem):
    assert extract(completion, **options) == (text, problem)


@pytest.mark.parametrize(
    ("open_tag", "close_tag", "completion", "text"),
    [
        ("---", "---", "x --- A --- y", "A"),
        ("```", "```", "```\nA\n```", "A"),
        ("[[", "]]", "[[A [[B]] C]]", "A [[B]] C"),
        ("REVISED:", "END", "ok REVISED: A END", "A"),
        ("<改>", "</改>", "<改>甲</改>", "甲"),
        ("$open", "$close", "$open A $close", "A"),
        (".*", "+?", ".*A+?", "A"),
    ],
)
def test_tags_of_any_kind(open_tag, close_tag, completion, text):
    assert extract(completion, open_tag, close_tag) == (text, None)


@pytest.mark.parametrize(("completion", "problem"), [("---", "empty"), ("A", "no_tags"), ("------", "empty")])
def test_equal_tags_that_fence_nothing(completion, problem):
    assert extract(completion, "---", "---")[1] == problem


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_revision_of_any_text_is_cut_out_whole(text):
    tags = {"open_tag": "<revised_response>", "close_tag": "</revised_response>"}
    completion = f"Here it is:\n<revised_response>\nA{text}Z\n</revised_response>\nDone."
    assert extract_revision(completion, **tags) == (f"A{text}Z", None, True)


def test_without_tags_the_completion_is_the_revision():
    assert extract("\n\n  A <r>b</r>\n", "", "") == ("  A <r>b</r>", None)
    assert extract("  \n", "", "") == ("", "empty")
    assert extract("A b", "", "", truncated=True) == ("A b", "truncated")
    assert extract("A b", "", "", truncated=True, keep_truncated=True) == ("A b", None)
