"""JSON read strictly, and schemas that are checked once and validate without fetching anything."""

import sys

import pytest

from tpo_graph._json_schema import JSONSchema, parse_json, require_jsonschema, strip_code_fence
from tpo_graph.errors import ConfigurationError, MissingDependencyError

pytest.importorskip("jsonschema")

NESTED = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}
# `definitions` is no keyword of the latest draft, and much used under it
OLD_WORD = {
    "definitions": {"a": {"$ref": "#/definitions/b"}, "b": {"type": "string"}},
    "items": {"$ref": "#/definitions/a"},
}
DRAFT_4 = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "id": "http://example.com/list",
    "definitions": {"a": {"type": "string"}},
    "items": {"$ref": "list#/definitions/a"},
    "maximum": 3,
    "exclusiveMaximum": True,
}


@pytest.mark.parametrize(
    ("schema", "value", "problem"),
    [
        (True, 5, None),
        ({"type": "object", "required": ["city"]}, {}, "'city' is a required property (at $)"),
        (NESTED, {"next": {"next": {}}}, None),
        (NESTED, {"next": {"next": 5}}, "5 is not of type 'object' (at $.next.next)"),
        (OLD_WORD, [1], "1 is not of type 'string' (at $[0])"),
        (DRAFT_4, ["a", 2], "2 is not of type 'string' (at $[1])"),
        (DRAFT_4, 3, "3 is greater than or equal to the maximum of 3 (at $)"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "object"}, None),
        ({"$schema": "http://example.com/unknown", "type": "string"}, "a", None),
        ({"const": {"$ref": "a value, not a reference"}}, {"$ref": "a value, not a reference"}, None),
    ],
)
def test_problems(schema, value, problem):
    assert JSONSchema(schema).problem(value) == problem


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strng"}, r"not valid at \$\.type: 'strng'"),
        ({"pattern": "("}, r"not valid at \$\.pattern"),
        ({"$schema": 5}, "not valid at"),
        ([1], "not valid at"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "'http://127.0.0.1:9/schema.json', which can't be resolved"),
        ({"items": {"$ref": "#/$defs/none"}}, "'#/\\$defs/none', which can't be resolved"),
        (
            {"definitions": {"a": {"$ref": "#nowhere"}}, "$ref": "#/definitions/a"},
            "'#nowhere', which can't be resolved",
        ),
    ],
)
def test_schemas_that_are_refused(schema, message):
    with pytest.raises(ConfigurationError, match=message):
        JSONSchema(schema)


def test_nesting_without_end_is_an_error_like_any_other():
    schema: dict = {}
    for _ in range(3000):
        schema = {"not": schema}
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        JSONSchema(schema)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("text", ["NaN", '{"a": -Infinity}', "", "{} {}"])
def test_what_is_not_json(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "bare"), [("```json\n{}\n```", "{}"), (" {} ", "{}"), ("```", "```"), ("```{}```", "```{}```")]
)
def test_code_fences(text, bare):
    assert strip_code_fence(text) == bare


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match="This needs the package jsonschema") as caught:
        require_jsonschema("This", alternative="do that")
    assert "pip install '.[verifiers]' in a clone" in caught.value.hint
    assert caught.value.hint.endswith(", or do that.")
