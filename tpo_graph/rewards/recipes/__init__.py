"""Combinations of reward models from a TOML file."""

from tpo_graph.rewards.recipes.load import load_recipe

__all__ = ["load_recipe"]
