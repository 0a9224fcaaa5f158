"""Loss and gradient from one request: 5 requests instead of 7 at D2, and two waits a step instead of three."""

import re
from pathlib import Path

from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import PromptedModel, critique
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.selection import fits_budget
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Node, PartialState

_PROMPT = "critique"


def fused_critique(
    critic: Policy | Sampler, *, prompts: PromptPack | str | Path | None = None, settings: TPOSettings | None = None
) -> dict[str, Node]:
    """A `loss` that asks the critic for the loss and the gradient at once, at some cost in depth.

    A completion without the pack's divider is all loss, and the node `gradient` then asks for the rest; where the
    budget leaves no request for that, the completion is taken for the gradient too.

    Examples:
        >>> from tpo_graph import create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> policy = ScriptedChatModel(["hello"])
        >>> graph = create_tpo_graph(policy, TableReward({"hello": 1.0}), nodes=fused_critique(policy))

    Args:
        critic: the policy, or the critic that the graph is given.
        prompts: as given to the graph; the pack must have a prompt `critique`, as `tpo` and `base` do.
        settings: as given to the graph.

    Returns:
        The node, by the name `loss`.

    Raises:
        PromptError: the pack has no prompt `critique`, or one that does not use the preference.
    """
    model = PromptedModel.of(critic, prompts, settings)
    model.prompts.check(model.settings, critique=_PROMPT)

    async def loss(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        request = model.request("loss", state, runtime, prompt=_PROMPT)
        model.prompts.check(request.settings, critique=_PROMPT)
        text, usage, failures = await critique(request, following=1)
        text, gradient = split_critique(text, model.prompts.critique_divider)
        if not gradient and not fits_budget(request.settings, request.usage(usage), 2):
            gradient = text  # gradient and update would be two requests
        return {"loss": text, "gradient": gradient, "usage": {"loss": usage}, "failures": failures}

    return {"loss": AsyncNode(loss)}


def split_critique(text: str, divider: str) -> tuple[str, str]:
    """The loss and the gradient of a fused critique; all of it is loss where one of them is missing.

    A divider on a line of its own, perhaps inside Markdown marks, counts before one inside a line: a critic may quote
    it. Small and capital letters are alike.
    """
    quoted = rf"(?i:{re.escape(divider)})"
    found = re.search(rf"^[ \t*#_`>]*{quoted}[ \t*:_`]*+$", text, re.MULTILINE) or re.search(quoted, text)
    if found is None:
        return text, ""
    loss, gradient = text[: found.start()].strip(), text[found.end() :].strip()
    return (loss, gradient) if loss and gradient else (text, "")
