"""Verifiers: rewards that a rule decides and no model."""

from tpo_graph.rewards.verifiers.json_schema import JSONSchemaVerifier
from tpo_graph.rewards.verifiers.math import MathVerifier
from tpo_graph.rewards.verifiers.rules import LengthVerifier, RegexVerifier

__all__ = ["JSONSchemaVerifier", "LengthVerifier", "MathVerifier", "RegexVerifier"]
