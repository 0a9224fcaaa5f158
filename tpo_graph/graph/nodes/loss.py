"""loss: the critic says in words why the best candidate beat the worst."""

from typing import Any

from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.phase import PhaseRequest, critique, effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.prompt_store import PromptPack
from tpo_graph.sampling import Sampler
from tpo_graph.settings import TPOSettings

__all__ = ["loss_node"]


def loss_node(critic: Sampler, prompts: PromptPack, settings: TPOSettings) -> NodeBody:
    """The node that writes the textual loss (TPO paper, section 3); in mode `revision` the worst is not shown."""

    async def loss(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        request = PhaseRequest("loss", state, effective_settings(settings, runtime), prompts)
        text, usage, failures = await critique(critic, request)
        return {"loss": text, "gradient": "", "usage": {"loss": usage}, "failures": failures}

    return loss
