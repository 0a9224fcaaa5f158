"""How one answer of a chat model is read: its text without the reasoning, how it ended, and why it can't be used.

Every provider has words of its own for the end of an answer. The kinds are OpenAI's: `stop`, `length`, `tool_calls`
and `content_filter`, with `refusal` of Anthropic and `error` for what a provider broke off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage

from tpo_graph._storable import storable_text
from tpo_graph.policies.thinking import strip_thinking
from tpo_graph.types import JSON, FailureReason, JSONObject, Options

_FINISH_REASONS: Mapping[str, str] = {
    word: kind
    for kind, words in {
        "stop": "stop end_turn stop_sequence eos eos_token complete completed",
        "length": "length max_tokens max_output_tokens max_new_tokens model_length model_context_window_exceeded "
        "token_limit error_limit",
        "tool_calls": "tool_calls tool_call tool_use function_call",
        "content_filter": "content_filter content_filtered safety recitation prohibited_content blocklist blocked spii "
        "language image_safety guardrail_intervened model_armor error_toxic sensitive",
        "refusal": "refusal",
        "error": "error other abort cancelled user_cancel failed timeout time_limit insufficient_system_resource "
        "malformed_function_call unexpected_tool_call",
    }.items()
    for word in words.split()
}
_QUOTED_CHARACTERS = 500  # of a refusal


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        text: what was written, without the reasoning in front of it; "" where there was no text.
        finish_reason: how it ended: "stop", "length", "tool_calls", "content_filter", "refusal", "error", the
            provider's own word in small letters where it is none of these, or "" where it did not say.
        whole: the text with its reasoning, or the reasoning that came beside it where there is no text.
        tool_calls: it calls a tool.
        has_thought: the model was seen to reason before it answered.
        notice: the words of a refusal, or what a filter said.
        limit: the token limit that was sent; None where there was none.
    """

    text: str
    finish_reason: str = ""
    whole: str = ""
    tool_calls: bool = False
    has_thought: bool = False
    notice: str = ""
    limit: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether it ended before its end: at the token limit, or because the provider broke off."""
        return self.finish_reason in ("length", "error")

    @property
    def problem(self) -> FailureReason | None:
        """Why it can't be used, whatever it is for; None where it can."""
        if self.finish_reason == "content_filter":
            return "filtered"
        if self.finish_reason == "refusal":
            return "refused"
        if self.text.strip():
            return None
        if self.tool_calls:
            return "tool_calls"
        # tokens were written until the limit, and nothing of them is to be seen: not all clients pass reasoning on
        return "thinking_only" if self.has_thought or (self.finish_reason == "length" and not self.whole) else "empty"

    @property
    def lost_to_thinking(self) -> bool:
        """Whether the token limit went into reasoning, so that a larger one helps."""
        return self.problem == "thinking_only" and self.finish_reason == "length"


def read_completion(
    message: BaseMessage,
    generation_info: Mapping[str, Options] | None = None,
    *,
    keep_thinking: bool = False,
    limit: int | None = None,
) -> Completion:
    """The completion in a message of any provider.

    Args:
        message: the answer of a chat model.
        generation_info: what LangChain keeps beside the message.
        keep_thinking: leave reasoning in the text.
        limit: the token limit that was sent.
    """
    # servers that cut at a token may send half a character
    whole = storable_text(message.text)
    text, thinking = (whole, "") if keep_thinking else strip_thinking(whole)
    has_calls = bool(getattr(message, "tool_calls", None))
    kind, notice = _ending(message, generation_info or {}, has_text=bool(text.strip()))
    if text.strip():
        return Completion(text, kind, whole, has_calls, bool(thinking), notice, limit)
    beside = "\n".join(_reasoning_beside(message))
    tokens = message.usage_metadata if isinstance(message, AIMessage) else None
    reasoning_tokens = tokens.get("output_token_details", {}).get("reasoning") if tokens else None
    has_thought = bool(thinking or beside or reasoning_tokens)
    return Completion(text, kind, whole or beside, has_calls, has_thought, notice, limit)


def finish_reason(message: BaseMessage) -> str:
    """How an answer ended, as in `Completion.finish_reason`."""
    return _ending(message, {}, has_text=bool(message.text.strip()))[0]


def _ending(message: BaseMessage, generation_info: Mapping[str, Options], *, has_text: bool) -> tuple[str, str]:
    """The kind of finish reason, and the provider's words where it refuses or filters."""
    details = {**generation_info, **message.response_metadata}
    incomplete = details.get("incomplete_details")
    feedback = details.get("prompt_feedback")
    word = next(
        (
            str(value)
            for value in (
                *(details.get(name) for name in ("finish_reason", "stop_reason", "stopReason", "done_reason")),
                incomplete.get("reason") if isinstance(incomplete, Mapping) else None,
                # the prompt itself was blocked, so that nothing was written at all
                feedback.get("block_reason") and "blocked" if isinstance(feedback, Mapping) else None,
                details.get("status"),
            )
            if value
        ),
        "",
    )
    small = word.lower().replace("-", "_").removeprefix("finishreason.").removeprefix("finish_reason_")
    kind = _FINISH_REASONS.get(small, small)
    refusal = _refusal(message, details)
    if kind == "refusal" or (refusal and not has_text):
        return "refusal", refusal[:_QUOTED_CHARACTERS]
    if kind != "content_filter":
        return kind, ""
    blocked = feedback.get("block_reason") if isinstance(feedback, Mapping) else None
    return kind, f"finish reason {word!r}" if not blocked else f"the prompt was blocked, reason {blocked!r}"


def _refusal(message: BaseMessage, details: Mapping[str, JSON]) -> str:
    """The words of a refusal: OpenAI's field or content block, or Anthropic's explanation."""
    explained = details.get("stop_details")
    blocks = [block for block in _blocks(message) if block.get("type") == "refusal"]
    return str(
        message.additional_kwargs.get("refusal")
        or " ".join(str(block.get("refusal") or "") for block in blocks)
        or (explained.get("explanation") if isinstance(explained, Mapping) else None)
        or ""
    )


def _reasoning_beside(message: BaseMessage) -> Iterator[str]:
    """Reasoning that a client passes on beside the text: in a field of its own, or in content blocks."""
    for name in ("reasoning_content", "reasoning"):
        if reasoning := message.additional_kwargs.get(name):
            yield str(reasoning)
    for block in _blocks(message):
        if any(word in str(block.get("type")) for word in ("thinking", "reasoning")):
            found = block.get("thinking") or block.get("reasoning") or block.get("reasoning_content")
            yield str(found.get("text") or "") if isinstance(found, dict) else str(found or "")


def _blocks(message: BaseMessage) -> list[JSONObject]:
    return [block for block in message.content if isinstance(block, dict)] if isinstance(message.content, list) else []
