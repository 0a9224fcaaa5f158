"""What tells one run from another, for reward models that remember something of each."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["run_key"]


def run_key(messages: "Sequence[BaseMessage]", anchors: Iterable[str] | None) -> bytes:
    """What tells one run from another.

    With `anchors` it is them and the conversation. Without, it is the conversation with the ids of its messages:
    LangGraph gives a message without an id a new one in every run, so that runs of the same query are apart.
    """
    ids = anchors is None
    told = [[each.type, each.id if ids else "", each.content, each.additional_kwargs] for each in messages]
    data = json.dumps([told, sorted(set(anchors or ()))], default=str, sort_keys=True)
    return hashlib.sha256(data.encode()).digest()
