"""Structured output: what an answer has to be valid for, and how the policy learns of it."""

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
from tpo_graph.prompts.template import role_of
from tpo_graph.types import JSON, JSONObject

StructuredMethod: TypeAlias = Literal["json_schema", "json_mode", "function_calling"]

_METHODS = ("json_schema", "json_mode", "function_calling", None)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64
_INSTRUCTION = "Answer with JSON alone, no other text. The JSON has to be valid for this schema:"


@dataclass(frozen=True)
class AnswerSchema:
    """What an answer has to be valid for.

    Attributes:
        json_schema: the schema as the policy is shown it; empty for any JSON object.
        name: name of the schema, as providers take it.
        description: sent beside the name; "" where the schema contains it.
        model: the pydantic class that answers become, of version 1 or 2; None leaves them JSON values.
        method: how the policy gets the schema, besides in words; None sends a JSON schema where the policy is
            OpenAI-compatible.
        strict: whether the provider is to enforce the schema to the letter; None leaves it to the provider.

    Raises:
        ConfigurationError: the JSON schema is not valid itself.
        MissingDependencyError: jsonschema is not installed, and there is no pydantic class.
    """

    json_schema: Mapping[str, JSON]
    name: str = "answer"
    description: str = ""
    model: Any = None
    method: StructuredMethod | None = None
    strict: bool | None = None
    _checked: JSONSchema | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model is None and self.json_schema:
            require_jsonschema("Structured output by a TypedDict or a JSON schema", alternative="give a pydantic class")
            object.__setattr__(self, "_checked", JSONSchema(self.json_schema))

    @classmethod
    def of(cls, schema: Any, *, method: StructuredMethod | None = None, strict: bool | None = None) -> "AnswerSchema":
        """A schema in any form that LangChain takes.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema, or a tool.
            method: how the policy gets the schema, besides in words; None sends a JSON schema where the policy is
                OpenAI-compatible.
            strict: whether the provider is to enforce the schema to the letter; None leaves it to the provider.

        Raises:
            ConfigurationError: `schema` is none of these or not valid itself, or the method is unknown.
            MissingDependencyError: jsonschema is not installed, and `schema` is not a pydantic class.
        """
        if method not in _METHODS:
            raise ConfigurationError(f"Unknown method {method!r}; allowed: {', '.join(map(repr, _METHODS))}.")
        if isinstance(schema, Mapping) and {"type", "properties"} & schema.keys() and schema.get("type") != "function":
            # LangChain takes a schema only with a title, and keeps nothing of one without properties
            json_schema = {"title": "answer", **schema}
        else:
            try:
                json_schema = convert_to_json_schema(schema)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"{schema!r} is not a schema: {error}",
                    hint="Give a pydantic class, a TypedDict, a JSON schema, or a tool.",
                ) from error
        return cls(
            json_schema=json_schema,
            # a title may contain blanks, which providers don't take in a name
            name=_NOT_IN_A_NAME.sub("_", str(json_schema.get("title", "answer")))[:_LONGEST_NAME],
            model=schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None,
            method=method,
            strict=strict,
        )

    @classmethod
    def of_response_format(cls, response_format: Any) -> "AnswerSchema | None":
        """The schema of a `response_format`; None for plain text.

        Args:
            response_format: as OpenAI takes it: a dict, or a pydantic class.

        Raises:
            ConfigurationError: the format is unknown, or its schema is not valid.
            MissingDependencyError: jsonschema is not installed, and the format has a schema.
        """
        if not isinstance(response_format, Mapping):
            return cls.of(response_format, method="json_schema")
        kind, details = response_format.get("type"), response_format.get("json_schema")
        if kind == "text":
            return None
        if kind == "json_object":
            return cls(json_schema={}, method="json_mode")
        if kind != "json_schema" or not isinstance(details, Mapping) or not isinstance(details.get("schema"), Mapping):
            raise ConfigurationError(f"Unknown response_format {dict(response_format)!r}.")
        name, description = details.get("name") or "answer", details.get("description") or ""
        # the policy is shown the schema alone
        shown = {"title": name, **({"description": description} if description else {}), **details["schema"]}
        return cls(shown, name, description, method="json_schema", strict=details.get("strict"))

    def parse(self, text: str) -> Any:
        """An answer's value: an instance of the pydantic class, or else the JSON value.

        Raises:
            OutputParserException: the text is not JSON, or not valid for the schema.
        """
        bare = strip_code_fence(text)
        try:
            if self.model is not None and issubclass(self.model, BaseModel):
                return self.model.model_validate_json(bare)
            value = parse_json(bare)
            if self.model is not None:
                return self.model.parse_obj(value)
            if self._checked is not None:
                problem = self._checked.problem(value)
            else:
                problem = None if isinstance(value, dict) else f"a JSON object is required, not {bare[:80]}"
        except (ValueError, RecursionError) as error:  # json's and pydantic's errors are ValueErrors
            raise OutputParserException(f"The answer is not valid: {error}", llm_output=text) from error
        if problem is not None:
            raise OutputParserException(f"The answer is not valid: {problem}", llm_output=text)
        return value

    def accepts(self, text: str) -> bool:
        """Whether the text is a valid answer."""
        try:
            self.parse(text)
        except OutputParserException:
            return False
        return True

    def policy_arguments(self, policy: object) -> JSONObject:
        """Arguments with which the policy itself keeps to the schema; none where it has no way to.

        Args:
            policy: a chat model, bound or wrapped or not.
        """
        if self.method == "json_mode":
            return {"response_format": {"type": "json_object"}}
        if self.method == "function_calling" or (self.method is None and not is_openai_compatible(policy)):
            return {}
        details: JSONObject = {"name": self.name, "schema": dict(self.json_schema)}
        if self.description:
            details["description"] = self.description
        if self.strict is not None:
            details["strict"] = self.strict
        return {"response_format": {"type": "json_schema", "json_schema": details}}

    def instruct(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The conversation with the schema in its last user message, from where it reaches every prompt.

        Args:
            messages: the conversation; one without a user message gets one.
        """
        schema = json.dumps(self.json_schema or {"type": "object"}, ensure_ascii=False)
        instruction = f"{_INSTRUCTION}\n{schema}"
        place = next((at for at in reversed(range(len(messages))) if role_of(messages[at]) == "user"), None)
        if place is None:
            return [*messages, HumanMessage(instruction)]
        content: str | list[Any] = messages[place].content
        if isinstance(content, str):
            content = f"{content}\n\n{instruction}"
        else:
            content = [*content, {"type": "text", "text": instruction}]
        changed = messages[place].model_copy(update={"content": content})
        return [*messages[:place], changed, *messages[place + 1 :]]
