"""The app by environment variables, for what mounts an app by its place: `http.app` of a langgraph.json, uvicorn.

`TPO_POLICY` (several with a blank between them), `TPO_REWARD`, `TPO_CRITIC`, `TPO_PROMPTS` and `TPO_API_KEY` (several
likewise) are what the flags of `tpo-graph serve` are; without them it is the embedded models, and no key.
"""

import os

from tpo_graph.policies.names import policy_ids
from tpo_graph.serving.app import create_app

__all__ = ["app"]

app = create_app(
    policy_ids((os.environ.get("TPO_POLICY") or "local").split()),
    os.environ.get("TPO_REWARD") or "local",
    critic=os.environ.get("TPO_CRITIC") or None,
    prompts=os.environ.get("TPO_PROMPTS") or None,
    api_keys=(os.environ.get("TPO_API_KEY") or "").split(),
)
