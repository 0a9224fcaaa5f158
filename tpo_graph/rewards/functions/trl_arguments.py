"""The keyword arguments that TRL's trainers give to a reward function."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import RewardError
from tpo_graph.rewards.reference import query_columns

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["trl_arguments"]


def trl_arguments(
    function: Callable[..., Any],  # Any: a function of a user
    messages: "Sequence[BaseMessage]",
    responses: Sequence[str],
    *,
    chat: bool,
) -> dict[str, Any]:  # Any: columns hold any plain value
    """What the function takes of prompts, completions and the columns that travel with the query.

    Args:
        function: only the arguments that it names are given, or all if it has `**kwargs`.
        messages: the conversation.
        responses: the texts to score.
        chat: whether prompts and completions are lists of `{"role": ..., "content": ...}`; else they are texts, and a
            prompt is the last user message's.

    Returns:
        Keyword arguments; each is a list with one item a response.

    Raises:
        RewardError: the function needs a column that the query does not carry.
    """
    from langchain_core.messages import convert_to_openai_messages

    count = len(responses)
    offered: dict[str, Any] = {name: [value] * count for name, value in query_columns(messages).items()}
    if chat:
        turns = convert_to_openai_messages(list(messages))
        # a copy each: a function may put the completion at the end of its prompt
        offered["prompts"] = [list(turns) for _ in responses]
        offered["completions"] = [[{"role": "assistant", "content": response}] for response in responses]
    else:
        query = next((message.text for message in reversed(messages) if message.type == "human"), "")
        offered["prompts"] = [query] * count
        offered["completions"] = list(responses)
    parameters = inspect.signature(function).parameters
    missing = [name for name, each in parameters.items() if name not in offered and _is_needed(each)]
    if missing:
        raise RewardError(
            f"The reward function needs {', '.join(missing)}, which the query does not carry.",
            hint="Columns travel as additional_kwargs of the last user message.",
        )
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}


def _is_needed(parameter: inspect.Parameter) -> bool:
    by_name = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    return by_name and parameter.default is parameter.empty
