"""Scripts of a policy that calls tools. The tools that it is given are in the `knobs` of a request."""

from langchain_core.messages import AIMessage

from tests.tpo_script import reply
from tpo_graph.testing import ScriptedChatModel


def calling(name="look_up", **args):
    """A message that calls a tool."""
    return AIMessage(
        "",
        id="provider-id",
        tool_calls=[{"name": name, "args": args, "id": "call-1"}],
        usage_metadata={"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        response_metadata={"model_name": "inner", "finish_reason": "tool_calls"},
    )


def tool_policy(*first):
    """Gives the replies in `first`, then plays the script of all four phases."""

    def script(messages, number):
        return first[number] if number < len(first) else reply(messages[-1].text, number)

    return ScriptedChatModel(script)
