"""loss: the critic says in words why the best candidate beat the worst."""

from pathlib import Path

from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import PromptedModel, critique
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PartialState


def loss_node(
    critic: Policy | Sampler, *, prompts: PromptPack | str | Path | None = None, settings: TPOSettings | None = None
) -> AsyncNode:
    """The node that writes the textual loss (TPO paper, section 3); in mode `revision` the worst is not shown.

    Args:
        critic: the model that writes it.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the model.
        settings: defaults for every run; None reads the `TPO_*` variables.
    """
    model = PromptedModel.of(critic, prompts, settings)

    async def loss(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        text, usage, failures = await critique(model.request("loss", state, runtime), following=2)
        return {"loss": text, "gradient": "", "usage": {"loss": usage}, "failures": failures}

    return AsyncNode(loss)
