"""Verifiers by name: what `load_reward` calls for `math`, `regex:`, `length:` and `json_schema:`."""

from typing import Any

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.verifiers.json_schema import JSONSchemaVerifier
from tpo_graph.rewards.verifiers.math import MathVerifier
from tpo_graph.rewards.verifiers.rules import LengthVerifier, RegexVerifier, parse_length


def load_math(name: str, **options: Any) -> MathVerifier:  # Any: options are those of the class, as below
    """`math`, or `math:ANSWER` with a reference for queries that carry none."""
    return MathVerifier(name or None, **options)


def load_regex(name: str, **options: Any) -> RegexVerifier:
    """`regex:PATTERN`."""
    if not name:
        raise ConfigurationError("'regex:' names no pattern.", hint=r'For example "regex:(?i)\bin short\b".')
    return RegexVerifier(name, **options)


def load_length(name: str, **options: Any) -> LengthVerifier:
    """`length:150`, `length:100-200 words`, `length:-800 characters`, `length:100- tokens`."""
    shortest, longest, unit = parse_length(name)
    return LengthVerifier(shortest, longest, unit=unit, **options)


def load_json_schema(name: str, **options: Any) -> JSONSchemaVerifier:
    """`json_schema:FILE`."""
    if not name:
        raise ConfigurationError("'json_schema:' names no file.", hint='For example "json_schema:answer.schema.json".')
    return JSONSchemaVerifier(name, **options)
