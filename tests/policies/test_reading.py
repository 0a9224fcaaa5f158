"""How an answer is read: every provider's word for how it ended, refusals, filters, and reasoning beside the text."""

import pytest
from langchain_core.messages import AIMessage

from tpo_graph.policies.reading import finish_reason, read_completion


def answer(text="text", **metadata):
    return AIMessage(text, response_metadata=metadata)


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "STOP"}, "stop"),
        ({"finish_reason": "COMPLETE"}, "stop"),
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "stop_sequence"}, "stop"),
        ({"stopReason": "end_turn"}, "stop"),
        ({"done_reason": "stop"}, "stop"),
        ({"status": "completed"}, "stop"),
        ({"finish_reason": "eos_token"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "FinishReason.MAX_TOKENS"}, "length"),
        ({"finish_reason": "model_length"}, "length"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stop_reason": "model_context_window_exceeded"}, "length"),
        ({"done_reason": "length"}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"finish_reason": "tool_calls"}, "tool_calls"),
        ({"stop_reason": "tool_use"}, "tool_calls"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"finish_reason": "SAFETY"}, "content_filter"),
        ({"finish_reason": "RECITATION"}, "content_filter"),
        ({"finish_reason": "PROHIBITED_CONTENT"}, "content_filter"),
        ({"stopReason": "guardrail_intervened"}, "content_filter"),
        ({"stopReason": "content_filtered"}, "content_filter"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"prompt_feedback": {"block_reason": "SAFETY"}}, "content_filter"),
        ({"prompt_feedback": {"block_reason": 0}, "finish_reason": "STOP"}, "stop"),
        ({"stop_reason": "refusal"}, "refusal"),
        ({"finish_reason": "insufficient_system_resource"}, "error"),
        ({"finish_reason": "OTHER"}, "error"),
        ({"stop_reason": "pause_turn"}, "pause_turn"),
        ({}, ""),
    ],
)
def test_every_providers_word_is_one_of_few_kinds(metadata, kind):
    assert read_completion(answer(**metadata)).finish_reason == finish_reason(answer(**metadata)) == kind


def test_langchains_own_record_of_a_generation_counts_too():
    assert read_completion(AIMessage("a"), {"finish_reason": "length"}).truncated


@pytest.mark.parametrize(
    ("message", "reason", "notice"),
    [
        (AIMessage("", additional_kwargs={"refusal": "I can't help."}), "refused", "I can't help."),
        (AIMessage([{"type": "refusal", "refusal": "I can't help."}]), "refused", "I can't help."),
        (
            answer("Sure, I", stop_reason="refusal", stop_details={"explanation": "Not allowed."}),
            "refused",
            "Not allowed.",
        ),
        (answer("Half a", finish_reason="SAFETY"), "filtered", "finish reason 'SAFETY'"),
        (
            answer("", prompt_feedback={"block_reason": "OTHER"}),
            "filtered",
            "the prompt was blocked, reason 'OTHER'",
        ),
    ],
)
def test_refusals_and_filters_are_quoted(message, reason, notice):
    completion = read_completion(message)
    assert (completion.problem, completion.notice, completion.whole) == (reason, notice, message.text)


@pytest.mark.parametrize(
    ("message", "reason", "whole"),
    [
        (answer("<think>hm", finish_reason="length"), "thinking_only", "<think>hm"),
        (answer("", finish_reason="length"), "thinking_only", ""),
        (AIMessage("", additional_kwargs={"reasoning_content": "hm"}), "thinking_only", "hm"),
        (AIMessage([{"type": "thinking", "thinking": "hm", "signature": "s"}]), "thinking_only", "hm"),
        (AIMessage([{"type": "reasoning_content", "reasoning_content": {"text": "hm"}}]), "thinking_only", "hm"),
        (answer("", finish_reason="stop"), "empty", ""),
        (answer("  ", finish_reason="length"), "empty", "  "),
        (AIMessage("<think>hm</think>", tool_calls=[{"name": "f", "args": {}, "id": "1"}]), "tool_calls", None),
        (answer("<think>hm</think> a"), None, "<think>hm</think> a"),
    ],
)
def test_reasoning_without_an_answer_is_named_so(message, reason, whole):
    completion = read_completion(message)
    assert completion.problem == reason
    assert completion.whole == (message.text if whole is None else whole)


def test_reasoning_tokens_are_a_sign_of_reasoning():
    usage = {
        "input_tokens": 1,
        "output_tokens": 9,
        "total_tokens": 10,
        "output_token_details": {"reasoning": 9},
    }
    assert read_completion(AIMessage("", usage_metadata=usage)).problem == "thinking_only"


def test_reasoning_is_kept_where_a_person_wants_it():
    message = answer("<think>hm</think>a")
    assert read_completion(message).text == "a"
    assert read_completion(message, keep_thinking=True).text == message.text
