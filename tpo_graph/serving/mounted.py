"""The app made from environment variables, to be named as `http.app` in a langgraph.json or on uvicorn's command line.

`TPO_POLICY`, `TPO_REWARD`, `TPO_CRITIC`, `TPO_PROMPTS`, `TPO_VARIANT` and `TPO_API_KEY` mean the same as for
`tpo-graph serve`; blanks separate several policies (Studio takes the first) and several keys. Without any it serves the
embedded models. Without a key it answers only to the names of this machine.
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
    nodes=os.environ.get("TPO_VARIANT") or None,
    api_keys=_keys,
    models=shared_models,  # shared with the Studio graph of the same langgraph.json
)
if not _keys:
    allow_only_local_hosts(_served, "localhost")

# LangGraph applies an app's middleware and error handlers to its own paths as well: ours have to stay inside
app = Starlette(
    routes=[Route(route.path, _served, include_in_schema=False) for route in _served.routes if isinstance(route, Route)]
)
app.state.slots = _served.state.slots
