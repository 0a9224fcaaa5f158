"""An OpenAI-compatible server over `ChatTPO`, as a Starlette app and as the command `tpo-graph serve`."""

from tpo_graph.serving.app import create_app
from tpo_graph.serving.limits import Limits

__all__ = ["Limits", "create_app"]
