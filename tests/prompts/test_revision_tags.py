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
        ("<R>A</R>", "", "no_tags"),
        ("<r>cut", "cut", "not_closed"),
        ("</r><r>cut", "cut", "not_closed"),
        ("<r>", "", "not_closed"),
        ("<r></r>", "", "empty"),
        ("<r> \n </r>", "", "empty"),
        ("<r>A</r", "A</r", "not_closed"),
    ],
)
def test_what_is_no_revision(completion, text, problem):
    assert extract(completion) == (text, problem)


QUOTED = "<r>Use <r>x</r> in the prompt, then the rest is cu"


@pytest.mark.parametrize(
    ("completion", "open_tag", "close_tag", "text", "problem"),
    [
        (QUOTED, "<r>", "</r>", QUOTED.removeprefix("<r>"), "not_closed"),
        ("I put it between <r> and </r>.\n<r>fin", "<r>", "</r>", "fin", "not_closed"),
        ("<r>whole</r>\nI hope that", "<r>", "</r>", "whole", None),
        ("<r>Use <r>x</r> in it.</r> Now", "<r>", "</r>", "Use <r>x</r> in it.", None),
        ("--- A --- B --- cu", "---", "---", "A --- B --- cu", "not_closed"),
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
        ("A", {"opened": True}, "A", "not_closed"),
        ("A", {"opened": True, "closed": True}, "A", None),
        ("", {"opened": True, "closed": True}, "", "empty"),
        ("<r>A", {"closed": True}, "A", None),
        ("A", {"closed": True}, "", "no_tags"),
        ("<r>A</r>", {"opened": True}, "A", None),
        ("<r>A</r>", {"closed": True}, "A", None),
        ("A</r>", {"opened": True, "closed": True}, "A", None),
        ("<r>cut", {"keep_truncated": True}, "cut", None),
        ("<r>", {"keep_truncated": True}, "", "empty"),
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


@pytest.mark.parametrize(("completion", "problem"), [("---A", "not_closed"), ("A", "no_tags"), ("------", "empty")])
def test_equal_tags_that_fence_nothing(completion, problem):
    assert extract(completion, "---", "---")[1] == problem


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_revision_of_any_text_is_cut_out_whole(text):
    tags = {"open_tag": "<revised_response>", "close_tag": "</revised_response>"}
    completion = f"Here it is:\n<revised_response>\nA{text}Z\n</revised_response>\nDone."
    assert extract_revision(completion, **tags) == (f"A{text}Z", None, True)
