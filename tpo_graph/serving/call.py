"""What a chat request asks of a `ChatTPO`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import ValidationError

from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.langchain.answer_schema import AnswerSchema
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.formats import answer_schema, checked_format
from tpo_graph.serving.limits import Limits
from tpo_graph.serving.policy_fields import check_policy
from tpo_graph.serving.recipes import ModelName
from tpo_graph.serving.requests import POLICY_FIELDS, ChatRequest
from tpo_graph.settings import TPOSettings

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """One call of a `ChatTPO`.

    Attributes:
        model: the model to call.
        messages: the conversation.
        arguments: of the call.
        schema: what the answer has to be valid for.
    """

    model: ChatTPO
    messages: list[BaseMessage]
    arguments: dict[str, Any]  # Any: values of settings, and the provider's own
    schema: AnswerSchema | None

    @classmethod
    def of(cls, chat: ChatRequest, name: ModelName, model: ChatTPO, limits: Limits) -> "Call":
        """From a request.

        Raises:
            RequestRefusedError: a value can't be used; `param` names its field.
        """
        response_format = checked_format(chat.response_format)
        schema = answer_schema(response_format)
        named = _settings(chat, name)
        _check_settings(named, model.settings, limits)
        check_policy(chat, name.mode, model)
        arguments = {
            **named,
            **_given(temperature=chat.temperature, top_p=chat.top_p, max_tokens=chat.most_tokens),
            **_given(stop=chat.stop_texts or None, response_format=response_format),
            **_given(**{field: getattr(chat, field) for field in POLICY_FIELDS}),
        }
        if chat.tools:
            arguments |= {"tools": chat.tools, **_given(tool_choice=chat.tool_choice)}
            arguments |= _given(parallel_tool_calls=chat.parallel_tool_calls)
        if "max_tokens" in chat.tpo:
            # beside `tpo` the name means the tokens of an answer
            arguments["tpo"] = {"max_tokens": chat.tpo["max_tokens"]}
        return cls(
            model=model,
            messages=[message.to_langchain() for message in chat.messages],
            arguments=arguments,
            schema=schema,
        )

    def check(self, message: AIMessage) -> None:
        """Look at an answer before it goes out.

        Raises:
            PolicyError: a response format was asked for, and no candidate had it.
        """
        if self.schema is None or message.tool_calls or message.invalid_tool_calls:
            return
        if not self.schema.accepts(message.text):
            raise PolicyError(
                "None of the candidates is valid for the response_format.",
                hint="A larger N (tpo.n) or a stronger policy helps, and so does a simpler schema.",
            )


def _settings(chat: ChatRequest, name: ModelName) -> dict[str, Any]:  # Any: values of settings
    """The settings that model name, `seed` and `tpo` name; the budget of tokens is not among them."""
    outside = {**name.settings, **_given(seed=chat.seed)}
    for setting, value in outside.items():
        if setting in chat.tpo and chat.tpo[setting] != value:
            where = "seed" if setting == "seed" else f"the model {chat.model!r}"
            raise RequestRefusedError(
                f"tpo.{setting} says {chat.tpo[setting]!r} and {where} says {value!r}.",
                param=f"tpo.{setting}",
                code="invalid_value",
                hint="Say it once.",
            )
    _check_names(chat.tpo)
    return {**chat.tpo, **outside}


def _check_names(named: Mapping[str, Any]) -> None:  # Any: values of settings
    try:
        TPOSettings(**named)
    except ConfigurationError as error:
        cause = error.__cause__
        place = cause.errors()[0]["loc"] if isinstance(cause, ValidationError) else ()
        param = f"tpo.{place[0]}" if place else "tpo"
        raise RequestRefusedError(error.message, param=param, code="invalid_value", hint=error.hint) from error


def _check_settings(named: dict[str, Any], defaults: TPOSettings, limits: Limits) -> None:  # Any: values of settings
    named.pop("max_tokens", None)
    chosen = defaults.overridden_by(named)
    steps = 0 if chosen.mode == "bon" else chosen.depth
    for setting, value, most in (("n", chosen.n, limits.max_n), ("depth", steps, limits.max_depth)):
        if value > most:
            raise RequestRefusedError(
                f"{setting}={value} is more than this server allows: {most}.",
                param=f"tpo.{setting}",
                code="invalid_value",
            )


def _given(**values: Any) -> dict[str, Any]:  # Any: of any field
    return {name: value for name, value in values.items() if value is not None}
