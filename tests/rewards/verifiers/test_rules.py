import json
import math
import sys

import pytest

from tpo_graph import ConfigurationError, MissingDependencyError, load_reward
from tpo_graph.rewards.verifiers import JSONSchemaVerifier, LengthVerifier, RegexVerifier
from tpo_graph.rewards.verifiers.rules import parse_length

SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
OSLO = '{"city": "Oslo"}'


@pytest.mark.parametrize(
    ("arguments", "text", "reward"),
    [
        ({"shortest": 2, "longest": 3}, "a b", 1.0),
        ({"shortest": 2, "longest": 3}, "a b c", 1.0),
        ({"shortest": 2, "longest": 3, "falloff": 1}, "a b c d", 0.5),
        ({"shortest": 2, "longest": 3, "falloff": 1}, "", 0.2),
        ({"shortest": 100, "longest": 100}, "a " * 125, 0.5),
        ({"shortest": 2}, "a " * 1000, 1.0),
        ({"longest": 4, "unit": "characters"}, "日本語だ", 1.0),
        ({"longest": 2, "unit": "tokens", "falloff": 1}, "abcdefghijkl", 0.5),
        ({"longest": 3, "unit": "tokens", "tokenize": list}, "abc", 1.0),
    ],
)
async def test_lengths(arguments, text, reward):
    assert await LengthVerifier(**arguments).score([], [text]) == [reward]


async def test_the_reward_of_a_length_falls_all_the_way_and_never_to_zero():
    rewards = await LengthVerifier(1, 10).score([], ["a " * length for length in (10, 11, 20, 1000, 100_000)])
    assert rewards == sorted(set(rewards), reverse=True)
    assert rewards[-1] > 0


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("150", (150, 150, "words")),
        ("100-200", (100, 200, "words")),
        ("-200 characters", (0, 200, "characters")),
        ("100- tokens", (100, None, "tokens")),
        ("100words", (100, 100, "words")),
    ],
)
def test_ranges_of_lengths(text, parsed):
    assert parse_length(text) == parsed


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("pattern", "arguments", "response", "reward"),
    [
        ("(?i)CAT", {}, "a cat", 1.0),
        ("cat", {}, "a dog", 0.0),
        ("cat", {"where": "whole"}, "  cat\n", 1.0),
        ("cat", {"where": "whole"}, "a cat", 0.0),
        ("cat", {"at_least": 0, "at_most": 0}, "a dog", 1.0),
        ("cat", {"at_least": 0, "at_most": 0}, "a cat", 0.0),
        ("(?m)^- ", {"at_least": 2, "at_most": 3}, "- a\n- b", 1.0),
        ("(?m)^- ", {"at_least": 2, "at_most": 3}, "- a\n- b\n- c\n- d", 0.0),
    ],
)
async def test_patterns(pattern, arguments, response, reward):
    assert await RegexVerifier(pattern, **arguments).score([], [response]) == [reward]


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("where", "response", "reward"),
    [
        ("whole", f"  \n{OSLO}\n", 1.0),
        ("whole", f"```json\n{OSLO}\n```", 1.0),
        ("whole", f"Here: {OSLO}", 0.0),
        ("whole", '{"city": 3}', 0.0),
        ("whole", "", 0.0),
        ("anywhere", f"Here: {OSLO}, as you asked.", 1.0),
        ("anywhere", f"```json\n{OSLO}\n```", 1.0),
        ("anywhere", f'{{"town": 1}} or rather {OSLO}', 1.0),
        ("anywhere", f"a set {{x}} and [1] and {OSLO}", 1.0),
        ("anywhere", f'{{"inner": {OSLO}}}', 0.0),
        ("anywhere", '{"city": NaN}', 0.0),
        ("anywhere", "[" * 100_000, 0.0),
        ("anywhere", "{" * 100_000, 0.0),
        ("anywhere", "nothing", 0.0),
    ],
)
async def test_json(where, response, reward):
    assert await JSONSchemaVerifier(SCHEMA, where=where).score([], [response]) == [reward]


@pytest.mark.subprocess
async def test_a_pattern_without_end_leaves_the_response_without_a_score(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "array", "items": {"pattern": "(a+)+$"}}))
    for verifier in (RegexVerifier("(a+)+.?]$", seconds=0.5), JSONSchemaVerifier(file, seconds=0.5)):
        killed, right = await verifier.score([], [json.dumps(["a" * 60 + "b"]), '["aa"]'])
        assert (math.isnan(killed), right) == (True, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_length(""), "'' is not a length"),
        (lambda: parse_length("-"), "'-' is not a length"),
        (lambda: parse_length("many"), "'many' is not a length"),
        (lambda: parse_length("10 lines"), "Unknown unit of length 'lines'"),
        (lambda: load_reward("length:200-100"), "No length is at least 200 and at most 100"),
        (lambda: LengthVerifier(-1), "No length is at least -1"),
        (lambda: LengthVerifier(1, falloff=0), "falloff must be a number above 0"),
        (lambda: LengthVerifier(1, unit="lines"), "allowed: words, characters, tokens"),
        (lambda: LengthVerifier(1, tokenize=list), "the unit is 'words'"),
        (lambda: load_reward("regex:"), "names no pattern"),
        (lambda: RegexVerifier("("), "not a regular expression"),
        (lambda: RegexVerifier("a", where="start"), "allowed: 'anywhere', 'whole'"),
        (lambda: RegexVerifier("a", at_least=-1), "No number of matches is at least -1"),
        (lambda: RegexVerifier("a", at_most=0), "No number of matches is at least 1 and at most 0"),
        (lambda: RegexVerifier("a", seconds=0), "above 0 seconds"),
        (lambda: load_reward("json_schema:"), "names no file"),
        (lambda: JSONSchemaVerifier({"type": "strng"}), r"not valid at \$\.type"),
        (lambda: JSONSchemaVerifier("no/such/file.json"), "can't be read"),
        (lambda: JSONSchemaVerifier(__file__), "not valid JSON"),
        (lambda: JSONSchemaVerifier({"$ref": "http://127.0.0.1:9/schema.json"}), "can't be resolved"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.subprocess
async def test_verifiers_by_name(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert await load_reward("regex:a.c", where="whole").score([], ["abc", "abcd"]) == [1.0, 0.0]
    assert await load_reward("length:2", falloff=1).score([], ["a b c"]) == [0.5]
    assert await load_reward(f"json_schema:{tmp_path}/schema.json").score([], [OSLO]) == [1.0]
    assert await load_reward("math:42").score([], ["42"]) == [1.0]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match="jsonschema"):
        JSONSchemaVerifier(SCHEMA)
