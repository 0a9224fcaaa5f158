"""The graph of `langgraph.json`: the six nodes, with models and prompts chosen by name in the context.

Nothing is loaded until a run begins. `langgraph.json` names this module and not its file: of a file the server would
load a second copy.
"""

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.build import wire
from tpo_graph.graph.state import TPOInput, TPOState
from tpo_graph.graph.studio_parts import LoadedNodes
from tpo_graph.graph.studio_settings import StudioSettings
from tpo_graph.loaded_models import shared_models
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Phase

__all__ = ["create_studio_graph", "graph"]


def create_studio_graph(
    settings: TPOSettings | None = None,
) -> CompiledStateGraph[TPOState, StudioSettings, TPOInput, TPOState]:
    """The TPO loop whose models, prompts and knobs all come from the context of a call.

    Args:
        settings: defaults of the knobs; None reads the `TPO_*` variables.

    Raises:
        ConfigurationError: a variable has a value that can't be used.
    """
    loaded = LoadedNodes(TPOSettings.load() if settings is None else settings, shared_models)
    phases: tuple[Phase, ...] = ("sample", "score", "select", "loss", "gradient", "update")
    return wire({phase: _node(phase, loaded) for phase in phases}, context_schema=StudioSettings).compile(name="tpo")


def _node(phase: Phase, loaded: LoadedNodes) -> AsyncNode:
    """The node of a phase, whose body is found when it runs."""

    async def body(
        state: TPOState, runtime: Runtime[StudioSettings], config: RunnableConfig
    ) -> Mapping[str, Any] | None:  # Any: a partial state
        context: object = runtime.context
        chosen = context if isinstance(context, StudioSettings) else StudioSettings()
        bodies = await loaded.get(chosen)
        inner: Runtime[Any] = runtime  # Any: the six nodes know a context of another type
        return await bodies[phase](state, inner.override(context=chosen), config)

    return AsyncNode(body, phase)


graph = create_studio_graph()
