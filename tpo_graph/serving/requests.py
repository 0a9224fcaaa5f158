"""A chat request as it comes over the wire, checked field by field: what can't be served is refused by name."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.messages import WireMessage

__all__ = ["POLICY_FIELDS", "ChatRequest", "StreamOptions"]

POLICY_FIELDS = (
    "frequency_penalty",
    "logit_bias",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
"""Fields of OpenAI's API that go to the policy as they are."""

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD]")
_NO_LOGPROBS = "an answer is the best of several candidates, and their probabilities are not kept"
_USE_TOOLS = "use tools and tool_choice"
# a field, the values that ask for nothing, and why no other is served
_NOT_SERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {  # Any: JSON
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


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Wire):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(_Wire):
    """The body of `/v1/chat/completions`. Null is the same as nothing."""

    model: str
    messages: Annotated[list[WireMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None  # Any: JSON; the provider checks the parameters
    tool_choice: str | dict[str, Any] | None = None  # Any: JSON
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None  # Any: JSON
    tpo: dict[str, Any] = {}  # Any: values of settings

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

    @classmethod
    def parse(cls, body: bytes) -> "ChatRequest":
        """From the bytes of a request.

        Raises:
            RequestRefusedError: it can't be served; `param` names the field.
        """
        try:
            data = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
            if _ESCAPED_SURROGATE.search(body):
                # a half of a pair is JSON, and no text that could be sent on
                json.dumps(data, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise RequestRefusedError(f"The body of the request is not JSON: {error}", code="invalid_json") from error
        if not isinstance(data, dict):
            raise RequestRefusedError("The body of the request is not a JSON object.", code="invalid_json")
        given = {name: value for name, value in data.items() if value is not None}
        for name, (neutral, why) in _NOT_SERVED.items():
            value = given.pop(name, None)
            if value is not None and not any(value == each and type(value) is type(each) for each in neutral):
                raise RequestRefusedError(
                    f"{name}={value!r} is not served: {why}.", param=name, code="unsupported_value"
                )
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _refused(error) from error

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _NamedError("stream_options", "it is allowed only when stream is true")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise _NamedError("max_completion_tokens", f"it says {both[1]} and max_tokens says {both[0]}")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        if not self.tools:
            for name in ("tool_choice", "parallel_tool_calls"):
                # without tools there is nothing to call
                if getattr(self, name) not in (None, "none"):
                    raise _NamedError(name, "it is allowed only beside tools")
            return
        names = [_function_name(tool) for tool in self.tools]
        if None in names:
            place = names.index(None)
            raise _NamedError(f"tools[{place}]", 'a tool is {"type": "function", "function": {"name": ..., ...}}')
        if isinstance(self.tool_choice, str) and self.tool_choice not in ("none", "auto", "required"):
            raise _NamedError("tool_choice", f"{self.tool_choice!r} is none of 'none', 'auto' and 'required'")
        if isinstance(self.tool_choice, dict) and _function_name(self.tool_choice) not in names:
            raise _NamedError("tool_choice", f"{self.tool_choice!r} names none of the tools {names}")

    @property
    def most_tokens(self) -> int | None:
        """Tokens of an answer at most, by either of the two names."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stop_texts(self) -> list[str]:
        """The stop texts as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class _NamedError(ValueError):
    """A value that does not fit to another, with the name of the field that is told."""

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"{param}: {why}")
        self.param = param


def _refused(error: ValidationError) -> RequestRefusedError:
    """The first problem, in OpenAI's terms."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, _NamedError):
        return RequestRefusedError(f"{cause}.", param=cause.param, code="invalid_value")
    param = _param(problem["loc"])
    if problem["type"] == "missing":
        return RequestRefusedError(f"{param} is missing.", param=param, code="missing_required_parameter")
    if problem["type"] == "extra_forbidden":
        return RequestRefusedError(
            f"{param} is not a field that this server knows.",
            param=param,
            code="unknown_parameter",
            hint="Settings of a run go into the object tpo; what only one provider takes is set on the policy.",
        )
    said = problem["msg"].removeprefix("Value error, ")
    return RequestRefusedError(f"{param}: {said}.", param=param, code="invalid_value")


def _param(place: Sequence[str | int]) -> str:
    """A place as OpenAI writes it, `messages[0].content`, without the members of unions that pydantic tells."""
    written = str(place[0]) if place else "body"
    for before, each in pairwise(place):
        if isinstance(each, int):
            written += f"[{each}]"
        elif isinstance(before, int) or before == "stream_options":
            written += f".{each}"
    return written


def _function_name(tool: Mapping[str, Any]) -> str | None:  # Any: JSON
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        return None
    name = function.get("name")
    return name if isinstance(name, str) and name else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
