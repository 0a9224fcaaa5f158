"""`response_format`: checked before the policy is paid for an answer, and as `ChatTPO` takes it."""

from collections.abc import Mapping
from typing import Any

from tpo_graph.errors import ConfigurationError, MissingDependencyError
from tpo_graph.langchain.answer_schema import AnswerSchema
from tpo_graph.serving.errors import RequestRefusedError

__all__ = ["answer_schema", "checked_format"]

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
        schema = AnswerSchema.of_response_format(response_format)
    except MissingDependencyError:
        raise
    except ConfigurationError as error:
        raise _bad(error.message) from error
    if schema is not None and schema.json_schema:
        _check_schema(schema.json_schema)
    return schema


def _check_schema(schema: Mapping[str, Any]) -> None:  # Any: JSON
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(dict(schema)).check_schema(dict(schema))
    except SchemaError as error:
        raise _bad(f"its schema is not a JSON schema: {error.message}") from error


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
