"""What travels with a query: the reference answer and other columns of a data set.

They are keys of `additional_kwargs` of the last user message, which LangChain does not send to the model:

    HumanMessage("What is 6 x 7?", additional_kwargs={"reference": "42"})
    {"role": "user", "content": "What is 6 x 7?", "reference": "42"}  # the same: unknown keys go there

A reference that an earlier turn carries belongs to that turn's question and is not used.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import RewardError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["query_columns", "query_references"]


def query_columns(messages: "Sequence[BaseMessage]") -> Mapping[str, Any]:  # Any: columns hold any plain value
    """Everything that travels with the last user message.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> query_columns([HumanMessage("6 x 7?", additional_kwargs={"reference": "42", "level": 1})])
        {'reference': '42', 'level': 1}
    """
    return next((message.additional_kwargs for message in reversed(messages) if message.type == "human"), {})


def query_references(messages: "Sequence[BaseMessage]") -> list[str]:
    """The reference answers of the query, any of which is right; none when the query has no reference.

    Raises:
        RewardError: the reference is neither a text, a number nor a list of these.
    """
    reference = query_columns(messages).get("reference")
    if reference is None:
        return []
    answers = reference if isinstance(reference, list | tuple) else [reference]
    for answer in answers:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise RewardError(
                f"The reference of the query is {answer!r}, of type {type(answer).__name__}.",
                hint="Allowed are a text, a number, or a list of these, any of which counts as right.",
            )
    return [str(answer) for answer in answers]
