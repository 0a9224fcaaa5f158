"""Prompt packs, templates, conversations as text, and the tags of a revision."""
