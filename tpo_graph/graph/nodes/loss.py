"""loss: the critic says in words why the best candidate beat the worst."""

import re
from typing import Any

from langgraph.runtime import Runtime

from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.request import PhaseRequest, critique, effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.selection import fits_budget
from tpo_graph.settings import TPOSettings

_GRADIENT_AND_UPDATE = 2  # requests, at the least


def loss_node(critic: Sampler, prompts: PromptPack, settings: TPOSettings) -> NodeBody:
    """The node that writes the textual loss (TPO paper, section 3); in mode `revision` the worst is not shown.

    With `fuse_critique` the same request asks for the gradient too. That is 5 requests instead of 7 at D2, and two of
    the three waits of a step instead of three. A completion without the pack's divider is all loss, and the node
    `gradient` then asks for the rest; where the budget leaves no request for that, it is taken for the gradient too.
    """

    async def loss(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        request = PhaseRequest("loss", state, effective_settings(settings, runtime), prompts)
        text, usage, failures = await critique(critic, request)
        advice = ""
        if request.is_fused:
            text, advice = _in_two(text, prompts.critique_divider)
            if not advice and not fits_budget(request.settings, request.usage(usage), _GRADIENT_AND_UPDATE):
                advice = text
        return {"loss": text, "gradient": advice, "usage": {"loss": usage}, "failures": failures}

    return loss


def _in_two(text: str, divider: str) -> tuple[str, str]:
    """The loss and the gradient of a fused critique; all of it is loss where one of them is missing.

    A divider on a line of its own, maybe in Markdown's marks, counts before one inside a line: a critic may quote it.
    """
    quoted = re.escape(divider)
    found = re.search(rf"^[ \t*#_]*{quoted}[ \t*:_]*$", text, re.MULTILINE) or re.search(quoted, text)
    if found is None:
        return text, ""
    loss, gradient = text[: found.start()].strip(), text[found.end() :].strip()
    return (loss, gradient) if loss and gradient else (text, "")
