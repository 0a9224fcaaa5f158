"""What goes out: answers and errors in the shapes of OpenAI's API."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Literal
from uuid import uuid4

from langchain_core.messages import AIMessage
from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
)
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall
from openai.types.shared import ErrorObject
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
from tpo_graph.types import JSONObject

_log = logging.getLogger(__name__)
_INVALID = "invalid_request_error"
_SERVER = "server_error"
# the first kind that matches counts: a missing dependency is a configuration error as well
_KINDS: tuple[tuple[type[TPOError], int, str, str], ...] = (
    (MissingDependencyError, 500, _SERVER, "missing_dependency"),
    (ConfigurationError, 400, _INVALID, "invalid_configuration"),
    (PromptError, 400, _INVALID, "invalid_prompt"),
    (BudgetError, 400, _INVALID, "budget"),
    (PolicyError, 502, "policy_error", "policy_failed"),
    (RewardError, 502, "reward_error", "reward_failed"),
)


class RequestRefusedError(TPOError):
    """A request that is not served.

    Args:
        message: what is wrong.
        status: of the HTTP response.
        param: the field of the request that is at fault.
        code: OpenAI's word for what is wrong.
        hint: what to do next.
        headers: of the HTTP response.
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


def status_and_body(error: Exception) -> tuple[int, JSONObject]:
    """An error as HTTP status and in OpenAI's shape, with the hint as one more field.

    What is not an error of ours is a defect: it goes to the log, and the client sees nothing of it.
    """
    if not isinstance(error, TPOError):
        _log.error("A request failed.", exc_info=error)
        error = RequestRefusedError("The server failed.", status=500, hint="The details are in its log.")
    status, kind, code = _kind_of(error)
    param = error.param if isinstance(error, RequestRefusedError) else None
    body = ErrorObject(message=str(error), type=kind, param=param, code=code).to_dict()
    return status, {"error": {**body, "hint": error.hint} if error.hint else body}


def error_response(error: Exception) -> JSONResponse:
    """An error as an HTTP response."""
    status, body = status_and_body(error)
    headers = error.headers if isinstance(error, RequestRefusedError) else {}
    if status >= 500 and not headers:
        # OpenAI's clients retry after any 5xx, but a run that failed has been paid for
        headers = {"x-should-retry": "false"}
    return JSONResponse(body, status, headers=headers)


def _kind_of(error: TPOError) -> tuple[int, str, str | None]:
    """Status, type and code."""
    if isinstance(error, RequestRefusedError):
        types = {401: "authentication_error", 429: "rate_limit_error"}
        return error.status, types.get(error.status, _SERVER if error.status >= 500 else _INVALID), error.code
    # the request itself is at fault: too long a context, an image that the provider can't read
    cause = error.__cause__
    if isinstance(error, PolicyError) and cause is not None and ProviderFailure.of(cause).kind == "refused":
        return 400, _INVALID, "refused_by_policy"
    for kind, status, type_name, code in _KINDS:
        if isinstance(error, kind):
            return status, type_name, code
    return 500, _SERVER, None


def chat_completion(message: AIMessage, *, model: str) -> ChatCompletion:
    """The answer as one document.

    Args:
        message: the answer of a `ChatTPO`; the record of its run goes out as the field `tpo`.
        model: the model name that the client asked for.
    """
    tool_calls = [ChatCompletionMessageFunctionToolCall(**call) for call in _tool_calls(message)]
    content = message.text or (None if tool_calls else "")
    answer = ChatCompletionMessage(role="assistant", content=content, refusal=None)
    if tool_calls:
        answer.tool_calls = [*tool_calls]
    choice = Choice(index=0, message=answer, logprobs=None, finish_reason=_finish_reason(message))
    completion = ChatCompletion(
        id=_new_id(),
        object="chat.completion",
        created=int(time.time()),
        model=model,
        choices=[choice],
        **_run_record(message),
    )
    if (usage := _usage(message)) is not None:
        completion.usage = usage
    return completion


def chat_completion_chunks(
    message: AIMessage, *, model: str, include_usage: bool = False
) -> Iterator[ChatCompletionChunk]:
    """The answer in chunks; the one with the finish reason carries the record of the run as `tpo`.

    Args:
        message: the answer of a `ChatTPO`.
        model: the model name that the client asked for.
        include_usage: end with a chunk that has the usage and no choice.
    """
    completion_id, created = _new_id(), int(time.time())

    def chunk(*choices: ChunkChoice, **more: object) -> ChatCompletionChunk:
        fields: JSONObject = {**({"usage": None} if include_usage else {}), **more}
        return ChatCompletionChunk(
            id=completion_id,
            object="chat.completion.chunk",
            created=created,
            model=model,
            choices=list(choices),
            **fields,
        )

    def part(delta: ChoiceDelta) -> ChatCompletionChunk:
        return chunk(ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=None))

    yield part(ChoiceDelta(role="assistant", content=""))
    for piece in answer_chunks(message):
        if piece.text:
            yield part(ChoiceDelta(content=piece.text))
    for index, call in enumerate(_tool_calls(message)):
        yield part(ChoiceDelta(tool_calls=[ChoiceDeltaToolCall(index=index, **call)]))
    last = ChunkChoice(index=0, delta=ChoiceDelta(), logprobs=None, finish_reason=_finish_reason(message))
    yield chunk(last, **_run_record(message))
    if include_usage:
        yield chunk(usage=_usage(message))


def _new_id() -> str:
    return f"chatcmpl-{uuid4().hex}"


def _tool_calls(message: AIMessage) -> list[JSONObject]:
    """All tool calls, with those whose arguments are not JSON as the policy wrote them."""
    calls = [(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls]
    invalid = [(call["id"], call["name"], call["args"]) for call in message.invalid_tool_calls]
    return [
        {
            "id": call_id or f"call_{uuid4().hex}",
            "type": "function",
            "function": {"name": name or "", "arguments": arguments or ""},
        }
        for call_id, name, arguments in [*calls, *invalid]
    ]


def _finish_reason(message: AIMessage) -> Literal["stop", "length", "tool_calls"]:
    if message.tool_calls or message.invalid_tool_calls:
        return "tool_calls"
    return "length" if message.response_metadata.get("finish_reason") == "length" else "stop"


def _usage(message: AIMessage) -> CompletionUsage | None:
    """The sum of all requests behind the answer; None where the provider does not count."""
    usage = message.usage_metadata
    if usage is None:
        return None
    return CompletionUsage(
        prompt_tokens=usage["input_tokens"],
        completion_tokens=usage["output_tokens"],
        total_tokens=usage["total_tokens"],
    )


def _run_record(message: AIMessage) -> JSONObject:
    """The record of the run as a field; none for tool calls, which come before any run."""
    record = message.response_metadata.get("tpo")
    return {} if record is None else {"tpo": record}
