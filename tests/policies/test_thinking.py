"""Reasoning in front of an answer is taken away, whichever marks a model has for it; talk about marks is not."""

import random
import time

import pytest

from tpo_graph.policies.thinking import strip_thinking

ANSWER = "The answer.\n\n    with code"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<THINK>", "</THINK>"),
        ("<thinking>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<unused94>thought\n", "<unused95>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_marks_of_every_model(opening, closing):
    for edge in ("", "\n", "\n\n"):
        thinking = f"{opening}{edge}Hm. Use <revised_response>?{edge}{closing}"
        assert strip_thinking(f"{edge}{thinking}{edge}{ANSWER}") == (ANSWER, thinking)
    assert strip_thinking(f"{opening}never ends </think").text == ""
    assert strip_thinking(f"before the end{closing}{ANSWER}").text == ANSWER
    assert strip_thinking(f"{opening}a{closing}\n{opening}b{closing}\n{ANSWER}").text == ANSWER


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\n\n</think>\n\nHello", "Hello"),
        ("<think></think>", ""),
        ("<think>a\n<think>b\n</think>\nc\n</think>\nd", "d"),
        ("The user asks about <think> tags.\n</think>\n\nThey mark reasoning.", "They mark reasoning."),
        ("<think>Say `</think>`?</think>Yes: `</think>`.", "Yes: `</think>`."),
        ("<think>a</think>A block ends with </think>, always.", "A block ends with </think>, always."),
        (
            "<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>\nb<|end_of_solution|>",
            "b",
        ),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "b"),
        ("<|channel|>final<|message|>b<|return|>", "b"),
        ('<|channel|>analysis<|message|>a<|channel|>final <|constrain|>json<|message|>{"b": 1}<|return|>', '{"b": 1}'),
        ("analysisWe need b.assistantfinalb", "b"),
        ("Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nb\n[END FINAL RESPONSE]<|end|>", "b"),
        ("a\n[BEGIN FINAL RESPONSE]\nb\n[END FINAL RESPONSE]", "b"),
        ("Here is my thought process:\na\n\nHere is my response:\nb", "b"),
        ("Here's my thought process: a\n\nHere's my response: b", "b"),
    ],
)
def test_what_is_left(text, answer):
    assert strip_thinking(text).text == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n indented, as it was \n",
        "Analysis: it works.",
        "Here is my thought process: first, I look.",
        "Here is my response: no.",
        "Put the reasoning between <think> and </think>.",
        "The tag `</think>` ends it.",
        'The tag "</think>" ends it.',
        "```xml\n<think>\nreasoning\n</think>\n```\nThat is the format.",
        "~~~\nreasoning\n</think>\n~~~\nThat is the format.",
        "An example:\n<think>\nreasoning\n</think>\nThat is the format.",
        "Sure. <think>Hm.</think> Done.",
        "<revised_response><think>Hm.\n</think>\n\nDone.</revised_response>",
        "`<think>` without an end",
    ],
)
def test_an_answer_that_speaks_of_marks_stays_as_it_is(text):
    assert strip_thinking(text) == (text, "")


def test_any_text_is_stripped_in_time_and_once():
    random.seed(5)
    pieces = ["<think>", "</think>", "`", "```", "\n", "~~~", "[THINK]", "a ", "<|channel|>final", "'", "analysis"]
    for length in (*range(30), 20_000):
        text = "".join(random.choices(pieces, k=length))
        began = time.perf_counter()
        stripped = strip_thinking(text)
        assert time.perf_counter() - began < 2
        assert stripped.text in text
    assert strip_thinking("<think>a</think>" * 20_000).text == ""
