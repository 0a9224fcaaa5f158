"""A scripted chat model that can be given tools."""

from langchain_core.messages import AIMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from tests.tpo_script import reply
from tpo_graph.testing import ScriptedChatModel


class ToolPolicy(ScriptedChatModel):
    """Tools are in the `knobs` of a request, as all arguments are."""

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        told = [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in tools]
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=told, **chosen, **kwargs)


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

    return ToolPolicy(script)
