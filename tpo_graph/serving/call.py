"""What a chat request asks of a `ChatTPO`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import ValidationError

from tpo_graph.errors import ConfigurationError, PolicyError
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.langchain.schema import AnswerSchema
from tpo_graph.serving.limits import Limits
from tpo_graph.serving.requests import POLICY_FIELDS, ChatRequest, answer_schema, check_policy, checked_format
from tpo_graph.serving.responses import RequestRefusedError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Mode

# Model names: a recipe, and the policy that it runs with.

_MODES: tuple[Mode, ...] = get_args(Mode)
_OPTION = re.compile(r"(?:(?P<which>[dn]))?(?P<value>[0-9]{1,4})")
_LISTED = ("tpo", "tpo-d2-n5", "tpo-d5-n20", "revision", "revision-d2-n5", "bon", "bon-16")
_HOW = "A name is a recipe, as in tpo, tpo-d2-n5, revision-d3-n4 or bon-16, or RECIPE/POLICY."


@dataclass(frozen=True)
class ModelName:
    """A model name, understood.

    Attributes:
        mode: the first word of the recipe.
        policy: id of the policy.
        settings: what the recipe says: the mode, and D and N where they are named.
    """

    mode: Mode
    policy: str
    settings: Mapping[str, Any]  # Any: values of settings

    @classmethod
    def parse(cls, name: str, policies: Iterable[str]) -> "ModelName":
        """From `RECIPE` or `RECIPE/POLICY`; without a policy it is the first.

        Raises:
            RequestRefusedError: there is no such model.
        """
        known = list(policies)
        recipe, slash, policy = name.partition("/")
        if not slash:
            policy = known[0]
        mode = next((mode for mode in _MODES if mode == recipe.partition("-")[0]), None)
        settings = _options(recipe, mode) if mode is not None else None
        if mode is None or settings is None or policy not in known:
            raise RequestRefusedError(
                f"The model {name!r} does not exist.",
                status=404,
                param="model",
                code="model_not_found",
                hint=f"{_HOW} Policies here: {', '.join(known)}.",
            )
        return cls(mode=mode, policy=policy, settings={"mode": mode, **settings})


def listed_names(policies: Iterable[str], limits: Limits) -> Iterator[str]:
    """Names that `/v1/models` tells; others that can be understood work as well."""
    known = list(policies)
    recipes = [name for name in _LISTED if limits.allow(ModelName.parse(name, known).settings)]
    yield from recipes
    for policy in known:
        yield from (f"{recipe}/{policy}" for recipe in recipes)


def _options(recipe: str, mode: Mode) -> dict[str, int] | None:
    """D and N of a recipe; None where it can't be understood."""
    _, *parts = recipe.split("-")
    found: dict[str, int] = {}
    for part in parts:
        option = _OPTION.fullmatch(part)
        # a bare number is N where N is all there is to say
        which = (option["which"] or ("n" if mode == "bon" else None)) if option else None
        setting = {"d": "depth", "n": "n"}.get(which or "")
        if option is None or setting is None or setting in found or (mode == "bon" and setting == "depth"):
            return None
        found[setting] = int(option["value"])
    return None if found.get("n") == 0 else found


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
    """The settings that model name, `seed` and `tpo` name."""
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
