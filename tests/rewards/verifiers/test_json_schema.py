import json
import math
import sys

import pytest

from tpo_graph import ConfigurationError, MissingDependencyError
from tpo_graph.rewards.verifiers import JSONSchemaVerifier

pytest.importorskip("jsonschema")

SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
GOOD = '{"city": "Oslo"}'


@pytest.mark.parametrize(
    ("where", "response", "reward"),
    [
        ("whole", GOOD, 1.0),
        ("whole", f"  \n{GOOD}\n", 1.0),
        ("whole", f"```json\n{GOOD}\n```", 1.0),
        ("whole", f"Here: {GOOD}", 0.0),
        ("whole", '{"city": 3}', 0.0),
        ("whole", "", 0.0),
        ("whole", "not json", 0.0),
        ("whole", "```", 0.0),
        ("anywhere", f"Here: {GOOD}, as you asked.", 1.0),
        ("anywhere", f"```json\n{GOOD}\n```", 1.0),
        ("anywhere", f'{{"town": 1}} or rather {GOOD}', 1.0),
        ("anywhere", f"a set {{x}} and [1] and {GOOD}", 1.0),
        ("anywhere", f'{{"inner": {GOOD}}}', 0.0),
        ("anywhere", '{"city": NaN}', 0.0),
        ("anywhere", "[" * 100_000, 0.0),
        ("anywhere", "{" * 100_000, 0.0),
        ("anywhere", "nothing", 0.0),
    ],
)
async def test_responses(where, response, reward):
    assert await JSONSchemaVerifier(SCHEMA, where=where).score([], [response]) == [reward]


async def test_nan_is_no_json():
    verifier = JSONSchemaVerifier(True, where="whole")
    assert await verifier.score([], ["NaN", '{"a": -Infinity}', "1"]) == [0.0, 0.0, 1.0]


async def test_a_schema_from_a_file_and_a_pattern_without_end(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "array", "items": {"pattern": "(a+)+$"}}))
    verifier = JSONSchemaVerifier(file, seconds=0.5)
    none, good = await verifier.score([], [json.dumps(["a" * 60 + "b"]), '["aa"]'])
    assert math.isnan(none)
    assert good == 1.0


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "strng"}, r"not valid at \$\.type"),
        ("no/such/file.json", "can't be read"),
        (__file__, "not valid JSON"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "can't be resolved"),
    ],
)
def test_bad_schemas(schema, told):
    with pytest.raises(ConfigurationError, match=told):
        JSONSchemaVerifier(schema)


@pytest.mark.parametrize("arguments", [{"where": "inside"}, {"seconds": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(ConfigurationError):
        JSONSchemaVerifier(SCHEMA, **arguments)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match="jsonschema"):
        JSONSchemaVerifier(SCHEMA)
