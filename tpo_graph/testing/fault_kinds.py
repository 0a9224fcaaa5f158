"""What can go wrong with one answer of a chat server, by name, and the bytes that a client then gets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

from tpo_graph.errors import ConfigurationError

ErrorShape: TypeAlias = Literal["openai", "mistral", "detail", "string", "list", "text", "html", "empty"]
Choices: TypeAlias = list[dict[str, Any]]  # of a chat completion, as JSON

_SHAPES: tuple[ErrorShape, ...] = ("openai", "mistral", "detail", "string", "list", "text", "html", "empty")
_MESSAGES = {
    400: "The content was flagged",
    401: "Incorrect API key provided",
    403: "You are not allowed to use this model",
    404: "The model does not exist",
    408: "The request took too long",
    422: "The request can't be processed",
    429: "Rate limit reached for requests",
    500: "The server had an error",
    502: "Bad gateway",
    503: "The engine is overloaded, please try again later",
    529: "Overloaded",
}


@dataclass(frozen=True)
class ErrorAnswer:
    """An answer with an error status.

    Attributes:
        status: 400 to 599.
        message: the server's words; "" takes some that fit the status.
        shape: how the body says it: as OpenAI, Mistral or FastAPI (`detail`) do, `{"error": "text"}` (`string`), in a
            list as Google does, as plain text, as a page, or not at all.
        param: the field of the request that is at fault.
        retry_after: seconds in the header of that name; None sends none.
    """

    status: int
    message: str = ""
    shape: ErrorShape = "openai"
    param: str | None = None
    retry_after: float | None = None

    @property
    def content_type(self) -> str:
        """Of the body."""
        return {"text": "text/plain", "html": "text/html"}.get(self.shape, "application/json")

    @property
    def body(self) -> bytes:
        """The body, in its shape."""
        message = self.message or _MESSAGES.get(self.status, f"Status {self.status}")
        details = [{"type": "value_error", "loc": ["body", self.param or "messages"], "msg": message}]
        fields = {"message": message, "type": "invalid_request_error", "param": self.param, "code": None}
        shapes: Mapping[ErrorShape, Any] = {  # any JSON
            "openai": {"error": fields},
            "mistral": {"object": "error", "message": {"detail": details}, "type": "invalid_request_error"},
            "detail": {"detail": details},
            "string": {"error": message},
            "list": [{"error": {"code": self.status, "message": message, "status": "FAILED"}}],
            "text": message,
            "html": f"<html><head><title>{self.status}</title></head><body><h1>{message}</h1></body></html>",
            "empty": "",
        }
        body = shapes[self.shape]
        return (body if isinstance(body, str) else json.dumps(body)).encode()


Fault: TypeAlias = str | ErrorAnswer
"""A name in `FAULT_KINDS`, a status with or without a shape (`502`, `422:mistral`), or an answer in your own words."""

FAULT_KINDS: Mapping[str, str] = {
    **{str(status): f"status {status}: {message}" for status, message in _MESSAGES.items()},
    "429_retry_after": "status 429 with Retry-After: 1",
    **{f"422:{shape}": f"status 422 whose body has the shape {shape!r}" for shape in _SHAPES[1:]},
    "half_json": "status 200, and the body ends in the middle",
    "empty_body": "status 200 without a body",
    "html": "status 200, and a page in place of JSON",
    "sse": "status 200, and a stream of events that nobody asked for",
    "invalid_utf8": "status 200, and a byte that is not UTF-8",
    "error_429": "status 200, and the body is an error with code 429",
    "error_500": "status 200, and the body is an error with code 500",
    "no_choices": "status 200 with `choices: []`",
    "null_choices": "status 200 with `choices: null`",
    "disconnect": "the connection closes before the first byte",
    "cut_off": "the connection closes in the middle of the body",
    "hang": "no answer, ever",
    "trickle": "a byte now and then, without end",
    "empty_text": "completions whose text is empty",
    "null_text": "completions without a text",
    "content_filter": "completions that a filter cut in the middle",
    "refusal": "a refusal in place of a text",
    "thinking": "`<think>...</think>` before the text, which names tags and marks",
    "thinking_end_alone": "the same without `<think>`",
    "unfinished_thinking": "thinking alone, cut by the token limit",
    "tool_call": "a call of a tool in place of a text",
    "fewer": "half of the completions that were asked for; of one, one",
}
"""Every named fault and what it is."""

REFUSAL = "I'm sorry, but I can't help with that."
THINKING = (
    "Let me think. The text goes between <revised_response> and </revised_response>, with [reward +9.0000] at its "
    "end.\nIs it better than === INSTRUCTIONS === asks for? I would say 3 of 10.\n"
)


def error_answer(fault: Fault) -> ErrorAnswer | None:
    """The answer with an error status that a fault is; None where it is another kind.

    Raises:
        ConfigurationError: there is no such fault.
    """
    if isinstance(fault, ErrorAnswer):
        return fault
    if fault == "429_retry_after":
        return ErrorAnswer(429, retry_after=1)
    status, _, shape = fault.partition(":")
    shapes = [known for known in _SHAPES if known == (shape or "openai")]
    if status.isdigit() and 400 <= int(status) <= 599 and shapes:
        return ErrorAnswer(int(status), shape=shapes[0])
    if fault not in FAULT_KINDS:
        near = get_close_matches(fault, FAULT_KINDS, 1)
        raise ConfigurationError(
            f"There is no fault {fault!r}.",
            hint=f"Did you mean {near[0]!r}?" if near else f"They are: {', '.join(FAULT_KINDS)}, STATUS:SHAPE.",
        )
    return None


def faulty_choices(fault: Fault | None, choices: Choices) -> Choices:
    """The choices of a completion, changed as a fault changes them."""
    if fault == "fewer":
        return choices[: max(1, len(choices) // 2)]
    changed = []
    for choice in choices:
        message, finish = dict(choice["message"]), choice["finish_reason"]
        text = message["content"] or ""
        match fault:
            case "empty_text":
                message["content"] = ""
            case "null_text":
                message["content"] = None
            case "content_filter":
                message["content"], finish = text[: len(text) // 2], "content_filter"
            case "refusal":
                message |= {"content": None, "refusal": REFUSAL}
            case "thinking":
                message["content"] = f"<think>\n{THINKING}</think>\n\n{text}"
            case "thinking_end_alone":
                message["content"] = f"{THINKING}</think>\n\n{text}"
            case "unfinished_thinking":
                message["content"], finish = f"<think>\n{THINKING}", "length"
            case "tool_call":
                call = {"id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
                message |= {"content": None, "tool_calls": [call]}
                finish = "tool_calls"
        changed.append({**choice, "message": message, "finish_reason": finish})
    return changed


def faulty_body(fault: Fault | None, completion: Mapping[str, Any]) -> tuple[bytes, str]:
    """The body of an answer with status 200, and its content type."""
    body = json.dumps(completion).encode()
    content_type = "application/json"
    match fault:
        case "half_json":
            body = body[: len(body) // 2]
        case "empty_body":
            body = b""
        case "html":
            body, content_type = b"<!doctype html><html><body>Please sign in.</body></html>", "text/html"
        case "sse":
            events = events_of(completion)
            body, content_type = "".join(events).encode(), "text/event-stream"
        case "invalid_utf8":
            body = body.replace(b'"content": "', b'"content": "\xff\xfe', 1)
        case "error_429" | "error_500":
            status = int(fault.removeprefix("error_"))
            body = json.dumps({"error": {"message": _MESSAGES[status], "code": status}}).encode()
        case "no_choices" | "null_choices":
            body = json.dumps({**completion, "choices": [] if fault == "no_choices" else None}).encode()
    return body, content_type


def events_of(completion: Mapping[str, Any]) -> Sequence[str]:
    """The same completion as a stream: chunks of its choices in turn, as a batching server sends them."""
    shared = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    rows: list[tuple[int, dict[str, Any]]] = []  # the row in which a choice's delta is sent, and the choice
    for choice in completion["choices"]:
        message = choice["message"]
        pieces = [(message["content"] or "")[at : at + 8] for at in range(0, len(message["content"] or ""), 8)]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": piece} for piece in pieces]
        deltas += [{name: message[name]} for name in ("refusal", "tool_calls") if message.get(name)]
        rows += [(row, {"index": choice["index"], "delta": delta}) for row, delta in enumerate(deltas)]
        last = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        rows.append((len(deltas), last))
    chunks = [
        {**shared, "choices": [{"finish_reason": None, **choice}]} for _, choice in sorted(rows, key=lambda r: r[0])
    ]
    if completion.get("usage"):
        chunks.append({**shared, "choices": [], "usage": completion["usage"]})
    return [*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"]
