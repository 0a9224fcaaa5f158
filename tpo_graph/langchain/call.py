"""What one call of a `ChatTPO` asks for: settings of the run, what is meant for the policy, and what an answer must be.

Stop texts and validity are checked on candidates, not left to the provider: a stop text sent with `update` would cut a
revision before its closing tag, and nodes of a person's own would not send it at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, Overwrite

from tpo_graph.accounting import total
from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.graph.bridge import AsyncNode, as_runnable
from tpo_graph.graph.events import written
from tpo_graph.graph.request import failure
from tpo_graph.graph.state import TPOState
from tpo_graph.langchain.schema import AnswerSchema
from tpo_graph.policies.providers import Policy, change_models, models_inside
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import Candidate, FailureRecord, Node, Options, PhaseUsage

STANDARD_KNOBS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
}
"""LangChain's standard arguments of a chat model, and the knobs of the phases that write answers."""

# they mean something only beside tools, and providers refuse them without
_TOOL_OPTIONS = ("tool_choice", "strict", "parallel_tool_calls")


class NoAnswerError(PolicyError):
    """None of the first candidates is an answer as the call wants it.

    Attributes:
        invalid: the texts that are not valid for the schema.
    """

    def __init__(self, message: str, *, invalid: Sequence[str], usage: PhaseUsage) -> None:
        super().__init__(message, usage=usage)
        self.invalid = list(invalid)


@dataclass(frozen=True)
class CallOptions:
    """The arguments of one call, sorted.

    Attributes:
        settings: the settings that the call names; all others are the model's own.
        stop: texts at which the answer ends.
        tools: what the policy may call, with the options of tool calling.
        schema: what the answer has to be valid for.
        draft: an answer that exists already.
        policy: arguments for the policy itself.
    """

    settings: TPOSettings
    stop: tuple[str, ...] = ()
    tools: dict[str, Options] = field(default_factory=dict)
    schema: AnswerSchema | None = None
    draft: AIMessage | None = None
    policy: dict[str, Options] = field(default_factory=dict)

    @classmethod
    def of_call(cls, arguments: Mapping[str, Options], stop: Sequence[str] | None) -> "CallOptions":
        """Sort the arguments of a call: names of settings are for the run, all others go to the policy.

        Args:
            arguments: the keyword arguments of the call.
            stop: texts at which the answer ends.

        Raises:
            ConfigurationError: a value that can't be used.
        """
        rest = dict(arguments)
        rest.pop("stream", None)  # LangChain's way to ask for `_stream`
        settings = TPOSettings(**pop_settings(rest))
        draft = rest.pop("draft", None)
        if draft is not None and not isinstance(draft, AIMessage):
            raise ConfigurationError(f"The draft must be an AIMessage, not {type(draft).__name__!r}.")
        schema, response_format = rest.pop("answer_schema", None), rest.pop("response_format", None)
        if schema is None and response_format is not None:
            schema = AnswerSchema.of_response_format(response_format)
        tools = {name: rest.pop(name) for name in ("tools", *_TOOL_OPTIONS) if name in rest}
        return cls(
            settings=settings,
            stop=tuple(text for text in stop or () if text),
            tools=tools if tools.get("tools") else {},
            schema=schema,
            draft=draft,
            policy=rest,
        )

    def graph_key(self) -> str:
        """Equal for calls that can share a compiled graph."""
        # a class that is defined again may look the same and check something else
        model = id(self.schema.model) if self.schema else None
        return repr((self.stop, self.tools, self.schema, model, self.policy))

    def first_policy(self, policy: Policy) -> Policy:
        """The policy with everything that the call gives it: arguments, response format and tools.

        Tools are bound to the models inside it, so that bindings and retries around them stay.

        Args:
            policy: as the chat model was given it.

        Raises:
            ConfigurationError: the policy can't take tools.
        """
        arguments = {**self.policy, **(self.schema.policy_arguments(policy) if self.schema else {})}
        if not self.tools:
            return policy.bind(**arguments) if arguments else policy

        def with_tools(model: BaseChatModel) -> Policy:
            try:
                return model.bind_tools(**self.tools, **arguments)
            except NotImplementedError as error:
                raise ConfigurationError(
                    f"The policy {type(model).__name__!r} can't be given tools.", hint="Its class has no bind_tools."
                ) from error

        if not models_inside(policy):
            raise ConfigurationError(
                f"The policy {type(policy).__name__!r} can't be given tools.",
                hint="There is no chat model to be seen in it.",
            )
        return change_models(policy, with_tools)

    def check_candidates(self, phase: PolicyPhase, node: Node) -> Node:
        """A node around `sample` or `update` that cuts candidates at the stop texts and drops those that are not valid.

        Args:
            phase: which of the two.
            node: the node itself.

        Returns:
            A node that raises NoAnswerError when the first sampling leaves no candidate.
        """
        runnable = as_runnable(node, phase)

        async def checked(state: TPOState, config: RunnableConfig) -> Any:
            result = await runnable.ainvoke(state, config)
            update = result.update if isinstance(result, Command) else result
            if not isinstance(update, dict) or not update.get("pending"):
                return result
            usable: list[Candidate] = []
            unusable: list[FailureRecord] = []
            pending: list[Candidate] = update["pending"]
            for candidate in pending:
                text, step = candidate["text"], candidate["step"]
                if self.stop:
                    text = text[: min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=len(text))]
                    text = text.rstrip()
                if not text:
                    unusable.append(failure(phase, step, "empty", text=candidate["text"]))
                elif self.schema is not None and not self.schema.accepts(text):
                    unusable.append(failure(phase, step, "invalid", text=text))
                else:
                    usable.append({**candidate, "text": text})
            if not usable and phase == "sample":
                invalid = [record["text"] for record in unusable if record["reason"] == "invalid"]
                message = f"Every completion of the policy begins with one of the stop texts {list(self.stop)}."
                if invalid:
                    message = f"None of the first {len(unusable)} candidates is valid for the schema."
                raise NoAnswerError(message, invalid=invalid, usage=total(written(update.get("usage", {}))))
            failures = update.get("failures", [])
            all_failures = [*written(failures), *unusable]
            # `sample` writes over the failures of the run before
            failures = Overwrite(all_failures) if isinstance(failures, Overwrite) else all_failures
            changed = {**update, "pending": usable, "failures": failures}
            return replace(result, update=changed) if isinstance(result, Command) else changed

        return AsyncNode(checked, phase)


def pop_settings(arguments: dict[str, Options]) -> dict[str, Options]:
    """Take the names of settings out of `arguments`, LangChain's standard ones included."""
    named = {name: arguments.pop(name) for name in list(arguments) if name in TPOSettings.model_fields}
    for name, knob in STANDARD_KNOBS.items():
        if name in arguments:
            value = arguments.pop(name)
            # a name with the phase in it is the more precise one
            named = {f"sample_{knob}": value, f"update_{knob}": value} | named
    return named
