"""`response_format`: checked before the policy is paid for an answer, and as `ChatTPO` takes it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tpo_graph.errors import ConfigurationError, MissingDependencyError
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.langchain.schema import AnswerSchema
from tpo_graph.policies.providers import is_openai_compatible, models_inside, takes_knob
from tpo_graph.serving.responses import RequestRefusedError
from tpo_graph.settings import PolicyPhase
from tpo_graph.types import Mode

# The messages of a chat request, and as LangChain has them.

# type of a content part, the field that holds it, and the type of that field
_PARTS: Mapping[str, tuple[str, type]] = {
    "text": ("text", str),
    "image_url": ("image_url", dict),
    "input_audio": ("input_audio", dict),
    "file": ("file", dict),
}
_PARTS_OF_USERS = frozenset(_PARTS)
_ONLY_TEXT = frozenset({"text"})


class WireMessage(BaseModel):
    """One message. Fields that would not reach the policy are refused, save where they say nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = None  # Any: a text or parts, checked below so that errors name the message
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None  # Any: JSON
    tool_call_id: str | None = None
    # clients send an answer back as they got it, with these empty
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[None] | None = None
    tpo: Any = None  # Any: what this server said of an answer; it is not part of the conversation

    @model_validator(mode="after")
    def _has_what_its_role_has(self) -> Self:
        allowed = _PARTS_OF_USERS if self.role == "user" else _ONLY_TEXT
        if self.content is None:
            if self.role != "assistant" or not self.tool_calls:
                raise ValueError("content is missing")
        elif isinstance(self.content, list):
            for place, part in enumerate(self.content):
                _check_part(part, f"content[{place}]", allowed)
        elif not isinstance(self.content, str):
            raise ValueError(f"content is neither a text nor a list of parts: {self.content!r}")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are an assistant's")
        for place, call in enumerate(self.tool_calls or []):
            _check_call(call, f"tool_calls[{place}]")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id is what a message of the role tool has, and no other")
        if self.name is not None and self.role == "tool":
            raise ValueError("name is not what a message of the role tool has")
        return self

    def to_langchain(self) -> BaseMessage:
        """The message as LangChain has it."""
        if self.role == "assistant":
            return self._answer()
        if self.role == "tool":
            return ToolMessage(self.content, tool_call_id=self.tool_call_id)
        if self.role == "user":
            return HumanMessage(self.content, name=self.name)
        # LangChain's own mark of a system message that goes out as the role developer
        told = {"__openai_role__": "developer"} if self.role == "developer" else {}
        return SystemMessage(self.content, name=self.name, additional_kwargs=told)

    def _answer(self) -> AIMessage:
        calls, wrong = [], []
        for call in self.tool_calls or []:
            try:
                parsed = parse_tool_call(call)
            except OutputParserException as error:
                # the policy wrote no JSON, and is now told so: that message goes back as it was
                wrong.append(make_invalid_tool_call(call, str(error)))
                continue
            if parsed is not None:
                calls.append(parsed)
        content = "" if self.content is None else self.content
        return AIMessage(content, name=self.name, tool_calls=calls, invalid_tool_calls=wrong)


def _check_part(part: Any, place: str, allowed: frozenset[str]) -> None:  # Any: JSON
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in allowed:
        raise ValueError(f"{place} has the type {kind!r}; allowed here: {', '.join(sorted(allowed))}")
    name, held = _PARTS[kind]
    if not isinstance(part.get(name), held):
        raise ValueError(f"{place} has no {name}")


def _check_call(call: Mapping[str, Any], place: str) -> None:  # Any: JSON
    function = call.get("function")
    texts = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
    if not all(isinstance(text, str) for text in (*texts, call.get("id"))):
        raise ValueError(f'{place} is not {{"id": ..., "function": {{"name": ..., "arguments": "..."}}}}')


# A chat request as it comes over the wire, checked field by field: what can't be served is refused by name.

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


# What a request wants of the policy: refused by the client's own name where it would not reach it.

_KNOBS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "seed": "seed",
}
_CRITICS: tuple[PolicyPhase, ...] = ("loss", "gradient")


def check_policy(chat: ChatRequest, mode: Mode, model: ChatTPO) -> None:
    """Look at everything in a request that is meant for the policy.

    Raises:
        RequestRefusedError: the policy can't take it; `param` names the field.
    """
    for field, policy, knob in _knobs(chat, model):
        if not takes_knob(policy, knob):
            raise _refused_policy_fields(field, "the policy has no way to take it")
    for field in POLICY_FIELDS:
        if getattr(chat, field) is not None and not is_openai_compatible(model.policy):
            raise _refused_policy_fields(field, "the policy is not an OpenAI-compatible one")
    if chat.tools and not _takes_tools(model.policy):
        raise _refused_policy_fields("tools", "the policy takes none")
    _check_parts(chat, mode, model)


def _knobs(chat: ChatRequest, model: ChatTPO) -> Iterator[tuple[str, Any, str]]:  # Any: a policy
    """The knobs that a request names: the client's name, who is to take it, and our name."""
    for field, knob in _KNOBS.items():
        if getattr(chat, field) is not None:
            yield field, model.policy, knob
    critic = model.policy if model.critic is None else model.critic
    named = {name for name, value in chat.tpo.items() if value not in (None, "none", "null")}
    if "seed" in named:
        yield "tpo.seed", model.policy, "seed"
    for phase in get_args(PolicyPhase):
        for knob in ("temperature", "top_p", "max_new_tokens"):
            if f"{phase}_{knob}" in named:
                yield f"tpo.{phase}_{knob}", critic if phase in _CRITICS else model.policy, knob


def _check_parts(chat: ChatRequest, mode: Mode, model: ChatTPO) -> None:
    """Refuse images and the like where a prompt of the pack shows the policy the text alone."""
    if model.prompts.prompt("sample", mode) is None:
        return
    for place, message in enumerate(chat.messages):
        for at, part in enumerate(message.content if isinstance(message.content, list) else []):
            if part["type"] != "text":
                why = f"the prompt pack {model.prompts.name!r} shows the policy texts alone"
                raise _refused_policy_fields(f"messages[{place}].content[{at}]", why)


def _takes_tools(policy: Any) -> bool:  # Any: a policy
    models = models_inside(policy)
    return bool(models) and all(type(model).bind_tools is not BaseChatModel.bind_tools for model in models)


def _refused_policy_fields(field: str, why: str) -> RequestRefusedError:
    return RequestRefusedError(f"{field} can't be passed on: {why}.", param=field, code="unsupported_parameter")


_FORMAT_KEYS = frozenset({"type", "json_schema"})
_SCHEMA_KEYS = frozenset({"name", "description", "schema", "strict"})


def checked_format(given: dict[str, Any] | None) -> dict[str, Any] | None:  # Any: JSON
    """The format, all of which reaches the policy.

    Raises:
        RequestRefusedError: it has something that would not reach the policy.
    """
    if given is None:
        return None
    _refuse_others(given, _FORMAT_KEYS, "response_format")
    told = given.get("json_schema")
    if given.get("type") != "json_schema" or not isinstance(told, Mapping):
        if told is not None:
            raise _bad("json_schema belongs to the type 'json_schema'")
        return given
    _refuse_others(told, _SCHEMA_KEYS, "response_format.json_schema")
    name, schema = told.get("name"), told.get("schema")
    if not isinstance(name, str) or not name or not isinstance(schema, Mapping):
        raise _bad("json_schema has no name or no schema")
    if not isinstance(told.get("description", ""), str | None):
        raise _bad(f"its description is no text: {told['description']!r}")
    return given


def answer_schema(response_format: dict[str, Any] | None) -> AnswerSchema | None:  # Any: JSON
    """What answers have to be valid for; None for any text.

    Raises:
        RequestRefusedError: the format is none.
    """
    if response_format is None:
        return None
    try:
        return AnswerSchema.of_response_format(response_format)
    except MissingDependencyError:
        raise
    except ConfigurationError as error:
        raise _bad(error.message) from error


def _refuse_others(given: Mapping[str, Any], known: frozenset[str], where: str) -> None:  # Any: JSON
    for name in given:
        if name not in known:
            raise RequestRefusedError(
                f"{where}.{name} is not a field that this server knows.",
                param=f"{where}.{name}",
                code="unknown_parameter",
            )


def _bad(why: str) -> RequestRefusedError:
    return RequestRefusedError(f"response_format: {why}", param="response_format", code="invalid_value")
