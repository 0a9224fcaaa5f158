"""Verifiers: rewards that a rule decides and no model."""

from tpo_graph.rewards.verifiers.math import MathVerifier
from tpo_graph.rewards.verifiers.rules import JSONSchemaVerifier, LengthVerifier, RegexVerifier

__all__ = ["JSONSchemaVerifier", "LengthVerifier", "MathVerifier", "RegexVerifier"]
