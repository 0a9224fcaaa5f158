"""Fakes with known answers, for the tests of this package and of yours.

A chat model that follows a script, a reward model that looks rewards up in a table, and an OpenAI-compatible server
that is strict about requests and goes wrong in the ways that real ones do.
"""

from tpo_graph.testing.fault_kinds import FAULT_KINDS, ErrorAnswer
from tpo_graph.testing.fault_server import FaultServer
from tpo_graph.testing.models import ScriptedChatModel, TableReward
from tpo_graph.testing.served_request import ServedRequest, marked_reward, marked_text

__all__ = [
    "FAULT_KINDS",
    "ErrorAnswer",
    "FaultServer",
    "ScriptedChatModel",
    "ServedRequest",
    "TableReward",
    "marked_reward",
    "marked_text",
]
