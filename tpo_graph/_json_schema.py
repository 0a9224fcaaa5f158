"""JSON and JSON Schema: read a model's text strictly, check a schema once, validate values against it.

The only module that imports jsonschema; the package is optional and imported when the first schema is checked.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import ConfigurationError, MissingDependencyError, install_hint
from tpo_graph.types import JSON

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_FENCE = "```"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
"""Decodes JSON alone: NaN and Infinity, which Python's own decoder takes, are errors."""


def parse_json(text: str) -> JSON:
    """Decode a text that is one JSON value, with nothing around it but white space.

    Args:
        text: the JSON text.

    Returns:
        The value.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply to be read.
    """
    try:
        return STRICT_JSON.decode(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def strip_code_fence(text: str) -> str:
    """Remove the Markdown code fence around a whole text, if there is one, and the white space around it.

    Args:
        text: for example an answer that consists of a "json" code block.

    Returns:
        What stands between the fences, or the stripped text.
    """
    text = text.strip()
    if text.startswith(_FENCE) and text.endswith(_FENCE) and "\n" in text:
        return text[text.index("\n") : -len(_FENCE)].strip()
    return text


def require_jsonschema(purpose: str, *, alternative: str = "") -> None:
    """Check that the package jsonschema is installed, without importing it.

    Args:
        purpose: what needs it; the subject of the error message.
        alternative: what to do instead of installing it, in the imperative; "" where there is nothing.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("jsonschema") is None:
        install = install_hint("verifiers")
        raise MissingDependencyError(
            f"{purpose} needs the package jsonschema.",
            hint=f"{install}, or {alternative}." if alternative else f"{install}.",
        )


class JSONSchema:
    """A JSON Schema that was found valid, and the check of values against it.

    The draft is the one that `$schema` names, else the latest. References are resolved within the schema and to the
    drafts' own meta-schemas; nothing is ever fetched.

    Args:
        schema: the schema, a JSON object or a boolean.

    Raises:
        ConfigurationError: the schema is not valid itself, or has a reference that leads nowhere.
    """

    def __init__(self, schema: JSON) -> None:
        import jsonschema
        from jsonschema.validators import validator_for
        from referencing import Registry

        if isinstance(schema, Mapping):
            schema = dict(schema)
        draft: type[Validator] = jsonschema.Draft202012Validator
        if isinstance(schema, dict) and isinstance(schema.get("$schema"), str):
            draft = validator_for(schema, default=draft)
        try:
            draft.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ConfigurationError(f"The JSON schema is not valid at {error.json_path}: {error.message}.") from error
        except RecursionError as error:
            raise ConfigurationError("The JSON schema is nested too deeply.") from error
        _check_references(schema, draft)
        # an empty registry: without one the library would fetch what a schema refers to
        registry: Registry[Any] = Registry()
        self._validator: Validator = draft(schema, registry=registry)

    def problem(self, value: JSON) -> str | None:
        """What is wrong with a value, and where; None for a valid one.

        Args:
            value: as `parse_json` returns it.
        """
        error = next(self._validator.iter_errors(value), None)
        return None if error is None else f"{error.message} (at {error.json_path})"


def _check_references(schema: JSON, draft: "type[Validator]") -> None:
    """Follow every reference that can be reached, so that none fails in the middle of a run."""
    from referencing import Registry, Resource, Specification
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    dialect = specification_with(draft.META_SCHEMA.get("$id") or draft.META_SCHEMA["id"])
    registry: Registry[Any] = Registry()
    root: Resource[Any] = dialect.create_resource(schema)
    to_visit = [(root, registry.resolver_with_root(root))]
    visited: set[int] = set()
    while to_visit:
        resource, resolver = to_visit.pop()
        if id(resource.contents) in visited or not isinstance(resource.contents, dict):
            continue
        visited.add(id(resource.contents))
        to_visit += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]
        for reference in map(resource.contents.get, ("$ref", "$dynamicRef", "$recursiveRef")):
            # a number or an object there is no reference; the drafts' own meta-schemas are known to the library
            if not isinstance(reference, str) or specification_with(reference, Specification.OPAQUE).name != "opaque":
                continue
            try:
                target = resolver.lookup(reference)
            except Unresolvable as error:
                raise ConfigurationError(
                    f"The JSON schema refers to {reference!r}, which can't be resolved.",
                    hint="Put it into the schema itself, under $defs; other addresses are not fetched.",
                ) from error
            to_visit.append((dialect.create_resource(target.contents), target.resolver))
