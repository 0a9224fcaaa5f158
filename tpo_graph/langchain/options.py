"""What one call of a `ChatTPO` asks for: settings of the run, and what is meant for the policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage

from tpo_graph.errors import ConfigurationError
from tpo_graph.langchain.schema import AnswerSchema
from tpo_graph.settings import TPOSettings

STANDARD_KNOBS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
}
"""LangChain's standard arguments of a chat model, and the knobs of the phases that write answers."""

_ANSWERING = ("sample", "update")
# they mean something only beside tools, and providers refuse them without
_TOOL_OPTIONS = ("tool_choice", "strict", "parallel_tool_calls")


@dataclass(frozen=True)
class CallOptions:
    """The arguments of one call, sorted.

    Attributes:
        settings: the settings that the call names; all others are the model's own.
        stop: texts at which the answer ends.
        tools: what the policy may call, with the options of tool calling.
        schema: what the answer has to be valid for.
        draft: an answer that is there already.
        policy: arguments for the policy itself.
    """

    settings: TPOSettings
    stop: tuple[str, ...] = ()
    tools: dict[str, Any] = field(default_factory=dict)  # Any: the provider's own
    schema: AnswerSchema | None = None
    draft: AIMessage | None = None
    policy: dict[str, Any] = field(default_factory=dict)  # Any: the provider's own

    @classmethod
    def of_call(cls, arguments: Mapping[str, Any], stop: Sequence[str] | None) -> "CallOptions":
        """Sort the arguments of a call: names of settings are ours, all others go to the policy.

        Raises:
            ConfigurationError: a value that can't be used.
        """
        rest = dict(arguments)
        rest.pop("stream", None)  # LangChain's way to ask for `_stream`
        named = settings_named(rest)
        draft = rest.pop("draft", None)
        if draft is not None and not isinstance(draft, AIMessage):
            raise ConfigurationError(f"The draft must be an AIMessage, not {type(draft).__name__!r}.")
        schema = rest.pop("answer_schema", None)
        response_format = rest.pop("response_format", None)
        if schema is None and response_format is not None:
            schema = AnswerSchema.of_response_format(response_format)
        tools = {name: rest.pop(name) for name in ("tools", *_TOOL_OPTIONS) if name in rest}
        return cls(
            settings=TPOSettings(**named),
            stop=tuple(text for text in stop or () if text),
            tools=tools if tools.get("tools") else {},
            schema=schema,
            draft=draft,
            policy=rest,
        )

    def key(self) -> str:
        """Equal for calls that can share a compiled graph."""
        # a class that is defined again may look the same and check something else
        kind = id(self.schema.kind) if self.schema else None
        return repr((self.stop, self.tools, self.schema, kind, self.policy))


def settings_named(arguments: dict[str, Any]) -> dict[str, Any]:  # Any: values are what validation is for
    """Take the names of settings out of `arguments`, LangChain's standard ones included."""
    named = {name: arguments.pop(name) for name in list(arguments) if name in TPOSettings.model_fields}
    for name, knob in STANDARD_KNOBS.items():
        if name in arguments:
            value = arguments.pop(name)
            # what names the phase says it more precisely
            named = {f"{phase}_{knob}": value for phase in _ANSWERING} | named
    return named
