"""An answer as the OpenAI API tells it, whole or in chunks."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk
from starlette.responses import JSONResponse

from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
)
from tpo_graph.langchain.async_base import answer_chunks
from tpo_graph.policies.providers import ProviderFailure

# Errors as the OpenAI API tells them: a status, and an object that names the field at fault.

_INVALID = "invalid_request_error"
_SERVER = "server_error"


class RequestRefusedError(TPOError):
    """A request that is not served.

    Attributes:
        status: of the HTTP response.
        param: the field of the request that is at fault.
        code: OpenAI's word for what is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def unexpected() -> RequestRefusedError:
    """What a client is told about a defect; the log has the rest."""
    return RequestRefusedError("The server failed.", status=500, hint="Its log tells more.")


def status_for(error: TPOError) -> int:
    """The HTTP status of an error."""
    return _kind_of(error)[0]


def error_object(error: TPOError) -> dict[str, Any]:  # Any: JSON
    """The error as a JSON document in OpenAI's shape, with the hint as one more field."""
    _, kind, code = _kind_of(error)
    param = error.param if isinstance(error, RequestRefusedError) else None
    told = {"message": str(error), "type": kind, "param": param, "code": code}
    return {"error": {**told, "hint": error.hint} if error.hint else told}


def error_response(error: TPOError) -> JSONResponse:
    """The error as a response."""
    status = status_for(error)
    headers = error.headers if isinstance(error, RequestRefusedError) else {}
    if status >= 500 and not headers:
        # OpenAI's clients repeat what fails with 5xx; a run that failed has been paid for, and repeating is dear
        headers = {"x-should-retry": "false"}
    return JSONResponse(error_object(error), status, headers=headers)


def _kind_of(error: TPOError) -> tuple[int, str, str | None]:
    """Status, type and code."""
    if isinstance(error, RequestRefusedError):
        return error.status, _type_of(error.status), error.code
    # the request itself is at fault: too long a context, an image that the provider can't read
    cause = error.__cause__
    if isinstance(error, PolicyError) and cause is not None and ProviderFailure.of(cause).kind == "refused":
        return 400, _INVALID, "refused_by_policy"
    for kind, status, type_name, code in _KINDS:
        if isinstance(error, kind):
            return status, type_name, code
    return 500, _SERVER, None


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 401:
        return "authentication_error"
    return _SERVER if status >= 500 else _INVALID


_KINDS: tuple[tuple[type[TPOError], int, str, str], ...] = (
    (MissingDependencyError, 500, _SERVER, "missing_dependency"),
    (ConfigurationError, 400, _INVALID, "invalid_configuration"),
    (PromptError, 400, _INVALID, "invalid_prompt"),
    (BudgetError, 400, _INVALID, "budget"),
    (PolicyError, 502, "policy_error", "policy_failed"),
    (RewardError, 502, "reward_error", "reward_failed"),
)
"""The first kind that fits: a missing dependency is a configuration error as well."""


@dataclass(frozen=True)
class Completion:
    """The frame of one answer.

    Attributes:
        model: the name that the client asked for.
        id: of the answer.
        created: seconds since 1970.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, message: AIMessage) -> dict[str, Any]:  # Any: JSON
        """The answer as one document; `tpo` tells the reward, the stop reason and the trajectory."""
        calls = [
            _call(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls
        ]
        calls += [_call(call["id"], call["name"], call["args"]) for call in message.invalid_tool_calls]
        said = {"role": "assistant", "content": message.text or (None if calls else ""), "refusal": None}
        choice = {
            "index": 0,
            "message": {**said, "tool_calls": calls} if calls else said,
            "logprobs": None,
            "finish_reason": _finish_reason(message),
        }
        usage = _usage(message)
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            **({"usage": usage} if usage else {}),
            **_told(message),
        }

    def chunks(self, message: AIMessage, *, with_usage: bool) -> Iterator[dict[str, Any]]:  # Any: JSON
        """The answer in chunks; the one with the finish reason carries `tpo`.

        Args:
            message: the answer.
            with_usage: end with a chunk that has no choice and the usage.
        """
        no_usage = {"usage": None} if with_usage else {}
        head = self._head("chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:  # Any: JSON
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return {**head, "choices": [choice], **no_usage}

        yield chunk({"role": "assistant", "content": ""})
        for piece in answer_chunks(message):
            part = piece.message
            if part.text:
                yield chunk({"content": part.text})
            for call in part.tool_call_chunks if isinstance(part, AIMessageChunk) else []:
                told = _call(call["id"], call["name"], call["args"])
                yield chunk({"tool_calls": [{"index": call["index"], **told}]})
        yield {**chunk({}, _finish_reason(message)), **_told(message)}
        if with_usage:
            yield {**head, "choices": [], "usage": _usage(message)}

    def _head(self, kind: str) -> dict[str, Any]:  # Any: JSON
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _call(id_: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:  # Any: JSON
    return {
        "id": id_ or f"call_{uuid4().hex}",
        "type": "function",
        "function": {"name": name or "", "arguments": arguments or ""},
    }


def _finish_reason(message: AIMessage) -> str:
    if message.tool_calls or message.invalid_tool_calls:
        return "tool_calls"
    return str(message.response_metadata.get("finish_reason") or "stop")


def _usage(message: AIMessage) -> dict[str, int] | None:
    """The sum of all requests behind the answer; None where the provider does not count."""
    used = message.usage_metadata
    if used is None:
        return None
    return {
        "prompt_tokens": used["input_tokens"],
        "completion_tokens": used["output_tokens"],
        "total_tokens": used["total_tokens"],
    }


def _told(message: AIMessage) -> dict[str, Any]:  # Any: JSON
    """What there is to tell of the run; nothing for tool calls, before which there was none."""
    told = message.response_metadata.get("tpo")
    return {"tpo": told} if told is not None else {}
