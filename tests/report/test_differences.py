"""Word differences: what is new, what is gone, and that nothing is lost."""

import time

import pytest

from tests.hostile_texts import HOSTILE
from tpo_graph.report.differences import word_differences


def kinds(before, after):
    return [(piece.kind, piece.text) for piece in word_differences(before, after)]


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("", "", []),
        ("same words", "same words", [("same", "same words")]),
        ("", "new", [("added", "new")]),
        ("old", "", [("removed", "old")]),
        ("a cat sat", "a dog sat", [("same", "a "), ("removed", "cat"), ("added", "dog"), ("same", " sat")]),
        ("It rains.", "It rains!", [("same", "It rains"), ("removed", "."), ("added", "!")]),
        ("一二三", "一四三", [("same", "一"), ("removed", "二"), ("added", "四"), ("same", "三")]),
        ("x हिन्दी", "x हिन्द", [("same", "x "), ("removed", "हिन्दी"), ("added", "हिन्द")]),
    ],
)
def test_known_differences(before, after, pieces):
    assert kinds(before, after) == pieces


def test_white_space_and_a_word_by_chance_do_not_tear_a_rewritten_passage_apart():
    before = "Start. Cold air makes muscles tense and people shiver in the long dark winter. End."
    after = "Start. Heat widens vessels and so the brain receives rather less oxygen. End."
    assert [kind for kind, _ in kinds(before, after)] == ["same", "removed", "added", "same"]


@pytest.mark.parametrize("before", HOSTILE)
def test_both_texts_can_be_put_together_again(before):
    for after in HOSTILE:
        pieces = word_differences(before, after)
        assert "".join(piece.text for piece in pieces if piece.kind != "added") == before
        assert "".join(piece.text for piece in pieces if piece.kind != "removed") == after


def test_texts_of_any_length_are_compared_in_a_moment():
    began = time.process_time()
    word_differences("a b " * 100_000, "b c " * 100_000)
    word_differences("a b " * 990, "b a a " * 660)
    word_differences(" ".join(map(str, range(1990))), " ".join(map(str, range(1990, 0, -1))))
    assert time.process_time() - began < 5
