"""gradient: the critic turns the loss into advice on how to improve the best candidate."""

from pathlib import Path

from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import PromptedModel, critique
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.selection import critique_failed
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PartialState


def gradient_node(
    critic: Policy | Sampler, *, prompts: PromptPack | str | Path | None = None, settings: TPOSettings | None = None
) -> AsyncNode:
    """The node that writes the textual gradient (TPO paper, section 3), unless `loss` has written this step's.

    Args:
        critic: the model that writes it.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the model.
        settings: defaults for every run; None reads the `TPO_*` variables.
    """
    model = PromptedModel.of(critic, prompts, settings)

    async def gradient(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        request = model.request("gradient", state, runtime)
        if critique_failed(state.get("failures", []), request.step):
            return {"gradient": ""}
        if written := state.get("gradient"):
            # an empty update would hide the phase from whoever watches the run
            return {"gradient": written}
        text, usage, failures = await critique(request, following=1)
        return {"gradient": text, "usage": {"gradient": usage}, "failures": failures}

    return AsyncNode(gradient)
