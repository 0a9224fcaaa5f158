"""Reward models: every way to score an answer."""
