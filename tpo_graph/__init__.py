"""Test-time Preference Optimization (TPO, arXiv 2501.12895) as a LangGraph workflow.

It aligns a language model's answer to a preference while it answers, with no training: candidates are drawn and
scored, the model says in words why the best beat the worst and how to improve it, and writes better ones.

    >>> from tpo_graph import create_tpo_graph, load_policy, load_reward
    >>> graph = create_tpo_graph(load_policy("local"), load_reward("local"))  # doctest: +SKIP
    >>> graph.invoke({"query": "Why does warmth make you feel tired?"})["answer"]  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
)

if TYPE_CHECKING:
    from tpo_graph.graph.build import build_tpo_graph, create_tpo_graph
    from tpo_graph.graph.state import TPOState, is_finished
    from tpo_graph.langchain.chat_model import ChatTPO
    from tpo_graph.langchain.middleware import TPOMiddleware
    from tpo_graph.notebook import watch
    from tpo_graph.policies.load import load_policy
    from tpo_graph.prompts.pack import PromptPack
    from tpo_graph.rewards.base import RewardModel
    from tpo_graph.rewards.load import load_reward
    from tpo_graph.settings import TPOSettings
    from tpo_graph.types import Candidate

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Candidate",
    "ChatTPO",
    "ConfigurationError",
    "MissingDependencyError",
    "PolicyError",
    "PromptError",
    "PromptPack",
    "RewardError",
    "RewardModel",
    "TPOError",
    "TPOMiddleware",
    "TPOSettings",
    "TPOState",
    "build_tpo_graph",
    "create_tpo_graph",
    "is_finished",
    "load_policy",
    "load_reward",
    "watch",
]

# imported when first used: LangGraph and LangChain take most of a second
_LAZY = {
    "Candidate": "tpo_graph.types",
    "ChatTPO": "tpo_graph.langchain.chat_model",
    "PromptPack": "tpo_graph.prompts.pack",
    "RewardModel": "tpo_graph.rewards.base",
    "TPOMiddleware": "tpo_graph.langchain.middleware",
    "TPOSettings": "tpo_graph.settings",
    "TPOState": "tpo_graph.graph.state",
    "build_tpo_graph": "tpo_graph.graph.build",
    "create_tpo_graph": "tpo_graph.graph.build",
    "is_finished": "tpo_graph.graph.state",
    "load_policy": "tpo_graph.policies.load",
    "load_reward": "tpo_graph.rewards.load",
    "watch": "tpo_graph.notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
