"""The app by environment variables, for what mounts an app by its place: `http.app` of a langgraph.json, uvicorn.

`TPO_POLICY` (several with a blank between them; Studio takes the first), `TPO_REWARD`, `TPO_CRITIC`, `TPO_PROMPTS` and
`TPO_API_KEY` (several likewise) are what the flags of `tpo-graph serve` are; without them it is the embedded models,
and no key. Without a key it answers only to the names of this machine.
"""

import os

from starlette.applications import Starlette
from starlette.routing import Route

from tpo_graph.policies.load import policy_ids
from tpo_graph.run_parts import shared_models
from tpo_graph.serving.app import allow_only_local_hosts, create_app

_keys = (os.environ.get("TPO_API_KEY") or "").split()
_served = create_app(
    policy_ids((os.environ.get("TPO_POLICY") or "local").split()),
    os.environ.get("TPO_REWARD") or "local",
    critic=os.environ.get("TPO_CRITIC") or None,
    prompts=os.environ.get("TPO_PROMPTS") or None,
    api_keys=_keys,
    models=shared_models,  # the Studio graph of the same langgraph.json has them from there too
)
if not _keys:
    allow_only_local_hosts(_served, "localhost")

# LangGraph gives an app's middleware and error handlers to all of its own paths as well, so that ours stay inside
app = Starlette(
    routes=[Route(route.path, _served, include_in_schema=False) for route in _served.routes if isinstance(route, Route)]
)
app.state.slots = _served.state.slots
