"""What comes in: the body of a chat request, checked field by field so that what can't be served is refused by name.

The request types of `openai.types` are not used here, because they would drop fields that they don't know.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tpo_graph._json_schema import parse_json
from tpo_graph._storable import storable
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.types import JSON, JSONObject

# type of a content part, which is also the field that holds its content, and the type of that field
_PARTS: Mapping[str, type] = {"text": str, "image_url": dict, "input_audio": dict, "file": dict}
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD]")
_NO_LOGPROBS = "an answer is the best of several candidates, and their probabilities are not kept"
_USE_TOOLS = "use tools and tool_choice"
# a field, the values that ask for nothing, and why no other value is served
_NOT_SERVED: Mapping[str, tuple[tuple[JSON, ...], str]] = {
    "n": (
        (1,),
        "the answer is the best candidate, and the only choice; how many are drawn is in the model name, as in "
        "tpo-d2-n8, or in tpo.n",
    ),
    "logprobs": ((False,), _NO_LOGPROBS),
    "top_logprobs": ((0,), _NO_LOGPROBS),
    "modalities": ((["text"],), "answers are texts"),
    "audio": ((), "answers are texts"),
    "prediction": ((), "the policy is asked several times, and the prediction would fit none of them"),
    "web_search_options": ((), "answers are scored without a search; give the policy a tool"),
    "metadata": ((), "LangChain uses the name for metadata of its own"),
    "functions": ((), _USE_TOOLS),
    "function_call": ((), _USE_TOOLS),
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RequestMessage(_Body):
    """One message. Fields that would not reach the policy are refused unless they are empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: JSON = None  # a text or parts, checked below so that errors name the message
    name: str | None = None
    tool_calls: list[JSONObject] | None = None
    tool_call_id: str | None = None
    # clients send an answer back as they got it, with these empty
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[None] | None = None
    tpo: JSON = None  # this server's own record of an answer, which is not part of the conversation

    @model_validator(mode="after")
    def _matches_its_role(self) -> Self:
        if self.content is None:
            if self.role != "assistant" or not self.tool_calls:
                raise ValueError("content is missing")
        elif not isinstance(self.content, str | list):
            raise ValueError(f"content is neither a text nor a list of parts: {self.content!r}")
        allowed = list(_PARTS) if self.role == "user" else ["text"]
        for index, part in enumerate(self.content if isinstance(self.content, list) else []):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in allowed:
                raise ValueError(f"content[{index}] has the type {kind!r}; allowed here: {', '.join(allowed)}")
            if not isinstance(part.get(kind), _PARTS[kind]):
                raise ValueError(f"content[{index}] has no {kind}")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only messages of the role assistant have tool_calls")
        for index, call in enumerate(self.tool_calls or []):
            function = call.get("function")
            texts = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None,)
            if not all(isinstance(text, str) for text in (*texts, call.get("id"))):
                raise ValueError(
                    f'tool_calls[{index}] is not {{"id": ..., "function": {{"name": ..., "arguments": "..."}}}}'
                )
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("messages of the role tool have a tool_call_id, and no others")
        if self.name is not None and self.role == "tool":
            raise ValueError("messages of the role tool have no name")
        return self

    def to_langchain(self) -> BaseMessage:
        """The message as LangChain has it."""
        if self.role != "assistant":
            fields = {"role", "content", "name", "tool_call_id"}
            return convert_to_messages([self.model_dump(include=fields, exclude_none=True)])[0]
        calls, invalid = [], []
        for call in self.tool_calls or []:
            try:
                parsed = parse_tool_call(call)
            except OutputParserException as error:
                # the policy wrote no JSON, and the conversation goes on about that: the call goes back unchanged
                invalid.append(make_invalid_tool_call(call, str(error)))
                continue
            if parsed is not None:
                calls.append(parsed)
        return AIMessage(self.content or "", name=self.name, tool_calls=calls, invalid_tool_calls=invalid)


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class NamedSchema(_Body):
    """`response_format.json_schema`."""

    name: Annotated[str, Field(min_length=1)]
    json_schema: Annotated[JSONObject, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema_if_its_type_has(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema belongs to the type 'json_schema', and to no other")
        return self


class PolicyFields(_Body):
    """Fields that go to an OpenAI-compatible policy as they are."""

    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    prompt_cache_key: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    verbosity: str | None = None


class ChatRequest(PolicyFields):
    """The body of `/v1/chat/completions`. Null means the same as leaving a field out."""

    model: str
    messages: Annotated[list[RequestMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[JSONObject] | None = None  # the provider checks the parameters
    tool_choice: str | JSONObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    tpo: JSONObject = {}  # settings of the run

    @classmethod
    def parse(cls, body: bytes) -> "ChatRequest":
        """Read a request.

        Args:
            body: of the HTTP request.

        Raises:
            RequestRefusedError: the request can't be served; `param` names the field.
        """
        try:
            data = parse_json(body.decode("utf-8-sig"))
            if _ESCAPED_SURROGATE.search(body):
                # half of a surrogate pair is JSON, but no text that could be sent on
                data = storable(data)
        except (ValueError, RecursionError) as error:
            raise RequestRefusedError(f"The body of the request is not JSON: {error}", code="invalid_json") from error
        if not isinstance(data, dict):
            raise RequestRefusedError("The body of the request is not a JSON object.", code="invalid_json")
        data = {name: value for name, value in data.items() if value is not None}
        for name, (neutral, reason) in _NOT_SERVED.items():
            value = data.pop(name, None)
            # True == 1 and 0 == False
            if value is not None and not any(value == other and type(value) is type(other) for other in neutral):
                raise RequestRefusedError(
                    f"{name}={value!r} is not served: {reason}.", param=name, code="unsupported_value"
                )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _refusal_of(error) from error

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _refusal("stream_options", "it is allowed only when stream is true")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise _refusal("max_completion_tokens", f"{both[1]} contradicts max_tokens, which is {both[0]}")
        if not self.tools:
            for name in ("tool_choice", "parallel_tool_calls"):
                # "none" asks for nothing
                if getattr(self, name) not in (None, "none"):
                    raise _refusal(name, "it is allowed only beside tools")
            return self
        names = [_function_name(tool) for tool in self.tools]
        if None in names:
            index = names.index(None)
            raise _refusal(f"tools[{index}]", 'a tool is {"type": "function", "function": {"name": ..., ...}}')
        if isinstance(self.tool_choice, str) and self.tool_choice not in ("none", "auto", "required"):
            raise _refusal("tool_choice", f"{self.tool_choice!r}; allowed: 'none', 'auto', 'required', or a function")
        if isinstance(self.tool_choice, dict) and _function_name(self.tool_choice) not in names:
            raise _refusal("tool_choice", f"{self.tool_choice!r} names none of the tools {names}")
        return self


def _function_name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        return None
    name = function.get("name")
    return name if isinstance(name, str) and name else None


def _refusal(param: str, reason: str) -> RequestRefusedError:
    return RequestRefusedError(f"{param}: {reason}.", param=param, code="invalid_value")


def _refusal_of(error: ValidationError) -> RequestRefusedError:
    """The first problem, in OpenAI's terms."""
    problem = error.errors(include_url=False)[0]
    # as OpenAI writes it: messages[0].content; below tool_choice pydantic adds the types that it tried
    place = problem["loc"][:1] if problem["loc"][0] == "tool_choice" else problem["loc"]
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")
    if problem["type"] == "missing":
        return RequestRefusedError(f"{param} is missing.", param=param, code="missing_required_parameter")
    if problem["type"] == "extra_forbidden":
        return RequestRefusedError(
            f"{param} is not a field that this server knows.",
            param=param,
            code="unknown_parameter",
            hint="Settings of a run belong in the object tpo; what only one provider takes is set on the policy.",
        )
    return _refusal(param, problem["msg"].removeprefix("Value error, "))
