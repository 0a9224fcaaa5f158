"""gradient: the critic turns the loss into advice on how to improve the best candidate."""

from typing import Any

from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.request import PhaseRequest, critique, effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.selection import step_was_lost
from tpo_graph.settings import TPOSettings


def gradient_node(critic: Sampler, prompts: PromptPack, settings: TPOSettings) -> NodeBody:
    """The node that writes the textual gradient (TPO paper, section 3), unless `loss` has written this step's."""

    async def gradient(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        request = PhaseRequest("gradient", state, effective_settings(settings, runtime), prompts)
        if step_was_lost(state.get("failures", []), request.step):
            return {"gradient": ""}
        if written := state.get("gradient"):
            # an empty update would hide the phase from who watches the run
            return {"gradient": written}
        text, usage, failures = await critique(critic, request)
        return {"gradient": text, "usage": {"gradient": usage}, "failures": failures}

    return gradient
