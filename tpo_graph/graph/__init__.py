"""The TPO loop as a LangGraph workflow."""
