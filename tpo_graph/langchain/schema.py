"""Structured output: what an answer has to be valid for, and how the policy is told."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from tpo_graph._json_schema import JSONSchema, parse_json, require_jsonschema, strip_code_fence
from tpo_graph.errors import ConfigurationError
from tpo_graph.policies.providers import is_openai_compatible

StructuredMethod: TypeAlias = Literal["json_schema", "json_mode", "function_calling"]

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64
_TOLD = "Answer with JSON alone, no other text. The JSON has to be valid for this schema:"


@dataclass(frozen=True)
class AnswerSchema:
    """What an answer has to be valid for.

    Attributes:
        json_schema: what the policy is told; empty for any JSON object.
        name: of the schema, as providers take it.
        description: beside the name; "" where the schema says it itself.
        kind: a pydantic class that answers become; None leaves them the JSON value.
        method: how the policy is told, besides in words; None asks for a JSON schema where the policy is an
            OpenAI-compatible one.
        strict: whether the provider is to enforce the schema to the letter; None leaves it to the provider.
    """

    json_schema: Mapping[str, Any]  # Any: JSON
    name: str = "answer"
    description: str = ""
    kind: Any = None  # Any: pydantic's classes, of version 1 too
    method: StructuredMethod | None = None
    strict: bool | None = None
    _checked: JSONSchema | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind is None and self.json_schema:
            require_jsonschema("Structured output by a TypedDict or a JSON schema", alternative="give a pydantic class")
            object.__setattr__(self, "_checked", JSONSchema(self.json_schema))

    @classmethod
    def of(
        cls, schema: Any, *, method: StructuredMethod | None = None, strict: bool | None = None
    ) -> "AnswerSchema":  # Any: whatever LangChain takes as a schema
        """From a pydantic class, a TypedDict, a JSON schema or a tool in any format that LangChain takes.

        Raises:
            ConfigurationError: `schema` is none of these or not valid itself, or the method is unknown.
            MissingDependencyError: jsonschema is not installed, and `schema` is not a pydantic class.
        """
        if method not in (None, "json_schema", "json_mode", "function_calling"):
            raise ConfigurationError(
                f"Unknown method {method!r}; allowed: 'json_schema', 'json_mode', 'function_calling', None."
            )
        kind = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
        told = _json_schema(schema)
        # a title may have blanks, which providers don't take in a name
        name = _NO_NAME.sub("_", str(told.get("title", "answer")))[:_LONGEST_NAME]
        return cls(json_schema=told, name=name, kind=kind, method=method, strict=strict)

    @classmethod
    def of_response_format(cls, response_format: Any) -> "AnswerSchema | None":  # Any: OpenAI's dict, or a class
        """From a `response_format` as OpenAI takes it; None for plain text.

        Raises:
            ConfigurationError: it is none that is known, or its schema is not valid.
            MissingDependencyError: jsonschema is not installed, and the format has a schema.
        """
        if not isinstance(response_format, Mapping):
            return cls.of(response_format, method="json_schema")
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return cls(json_schema={}, method="json_mode")
        told = response_format.get("json_schema")
        if kind != "json_schema" or not isinstance(told, Mapping) or not isinstance(told.get("schema"), Mapping):
            raise ConfigurationError(f"Unknown response_format {dict(response_format)!r}.")
        name, description = told.get("name") or "answer", told.get("description") or ""
        # the words that the policy is told are the schema alone
        shown = {"title": name, **({"description": description} if description else {}), **told["schema"]}
        return cls(
            json_schema=shown, name=name, description=description, method="json_schema", strict=told.get("strict")
        )

    def parse(self, text: str) -> Any:  # Any: an instance of the class, or the JSON value
        """The answer's value.

        Raises:
            OutputParserException: the text is not JSON, or not valid for the schema.
        """
        bare = strip_code_fence(text)
        try:
            if self.kind is not None and issubclass(self.kind, BaseModel):
                return self.kind.model_validate_json(bare)
            value = parse_json(bare)
            if self.kind is not None:
                return self.kind.parse_obj(value)
            self._validate(value)
        except (ValueError, RecursionError) as error:  # json's and pydantic's errors are ValueErrors
            raise OutputParserException(f"The answer is not valid: {error}", llm_output=text) from error
        return value

    def accepts(self, text: str) -> bool:
        """Whether the text is a valid answer."""
        try:
            self.parse(text)
        except OutputParserException:
            return False
        return True

    def wire(self, policy: object) -> dict[str, Any]:  # Any: JSON
        """Arguments that make the policy itself keep to the schema; none where it has no way to."""
        if self.method == "json_mode":
            return {"response_format": {"type": "json_object"}}
        if self.method == "function_calling" or (self.method is None and not is_openai_compatible(policy)):
            return {}
        told: dict[str, Any] = {"name": self.name, "schema": dict(self.json_schema)}
        if self.description:
            told["description"] = self.description
        if self.strict is not None:
            told["strict"] = self.strict
        return {"response_format": {"type": "json_schema", "json_schema": told}}

    def instruct(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The conversation with the schema told in its last user message, from where it reaches every prompt."""
        schema = json.dumps(self.json_schema or {"type": "object"}, ensure_ascii=False)
        told = f"{_TOLD}\n{schema}"
        result = list(messages)
        for place in range(len(result) - 1, -1, -1):
            message = result[place]
            if message.type == "human":
                content: str | list[Any] = (  # Any: content blocks
                    f"{message.content}\n\n{told}"
                    if isinstance(message.content, str)
                    else [*message.content, {"type": "text", "text": told}]
                )
                result[place] = message.model_copy(update={"content": content})
                return result
        return [*result, HumanMessage(told)]

    def _validate(self, value: Any) -> None:  # Any: JSON
        if self._checked is None:
            if not isinstance(value, dict):
                raise ValueError(f"a JSON object is wanted, and this is {json.dumps(value)[:80]}")
            return
        if (problem := self._checked.problem(value)) is not None:
            raise ValueError(problem)


def _json_schema(schema: Any) -> dict[str, Any]:  # Any: as for `AnswerSchema.of`
    if isinstance(schema, Mapping) and {"type", "properties"} & schema.keys() and schema.get("type") != "function":
        # LangChain takes a schema only with a title, and keeps nothing of one without properties
        return {"title": "answer", **schema}
    try:
        return convert_to_json_schema(schema)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{schema!r} is no schema: {error}",
            hint="Give a pydantic class, a TypedDict, a JSON schema, or a tool.",
        ) from error
