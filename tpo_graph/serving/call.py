"""What a chat request asks for: a recipe and a policy by the model name, and the arguments of one call."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from pydantic import ValidationError

from tpo_graph.errors import ConfigurationError, MissingDependencyError, PolicyError
from tpo_graph.langchain.schema import AnswerSchema
from tpo_graph.policies.providers import is_openai_compatible, models_inside, takes_knob
from tpo_graph.run_parts import LoadedParts
from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.limits import Limits
from tpo_graph.serving.requests import ChatRequest, PolicyFields
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import Mode, Options

_OPTION = re.compile(r"([dn]?)([0-9]{1,4})")
_LISTED = ("tpo", "tpo-d2-n5", "tpo-d5-n20", "revision", "revision-d2-n5", "bon", "bon-16")


@dataclass(frozen=True)
class ModelName:
    """The name of a model, `RECIPE` or `RECIPE/POLICY`.

    Attributes:
        policy: the id of the policy that it runs with.
        settings: those of the recipe: the mode, and D and N if it names them.
    """

    policy: str
    settings: Mapping[str, Options]

    @classmethod
    def parse(cls, name: str, policies: Sequence[str]) -> "ModelName":
        """Read a name.

        Args:
            name: as the client wrote it.
            policies: ids of all policies; the first is the one of a name without a policy.

        Raises:
            RequestRefusedError: there is no such model.
        """
        recipe, slash, policy = name.partition("/")
        mode, *options = recipe.split("-")
        # a bare number is N where nothing but N can be meant
        letters = {"n": "n", "": "n"} if mode == "bon" else {"n": "n", "d": "depth"}
        settings: dict[str, Options] = {"mode": mode}
        for option in options:
            match = _OPTION.fullmatch(option)
            setting = letters.get(match[1]) if match else None
            if match is None or setting is None or setting in settings:
                break
            settings[setting] = int(match[2])
        else:
            policy = policy if slash else policies[0]
            if mode in get_args(Mode) and settings.get("n") != 0 and policy in policies:
                return cls(policy, settings)
        raise RequestRefusedError(
            f"The model {name!r} does not exist.",
            status=404,
            param="model",
            code="model_not_found",
            hint="A name is a recipe, as in tpo, tpo-d2-n5, revision-d3-n4 or bon-16, or RECIPE/POLICY. "
            f"Policies here: {', '.join(policies)}.",
        )


def listed_names(policies: Sequence[str], limits: Limits) -> Iterator[str]:
    """The names for `/v1/models` within the limits; any other that can be parsed works as well."""
    recipes = []
    for recipe in _LISTED:
        settings = ModelName.parse(recipe, policies).settings
        if settings.get("n", 0) <= limits.max_n and settings.get("depth", 0) <= limits.max_depth:
            recipes.append(recipe)
    yield from recipes
    for policy in policies:
        yield from (f"{recipe}/{policy}" for recipe in recipes)


def call_arguments(chat: ChatRequest, name: ModelName, parts: LoadedParts, limits: Limits) -> dict[str, Options]:
    """The arguments of the call of a `ChatTPO` that a request asks for.

    Args:
        chat: the request.
        name: its model name.
        parts: what runs with that name's policy are made of.
        limits: of the server.

    Raises:
        RequestRefusedError: a value can't be used; `param` names its field.
    """
    schema = None
    if chat.response_format is not None:
        try:
            schema = AnswerSchema.of_response_format(chat.response_format.model_dump(by_alias=True, exclude_unset=True))
        except MissingDependencyError:
            raise
        except ConfigurationError as error:
            raise RequestRefusedError(
                f"response_format: {error.message}", param="response_format", code="invalid_value"
            ) from error
    settings = _settings_of(chat, name)
    chosen = parts.settings.overridden_by(settings)
    steps = 0 if chosen.mode == "bon" else chosen.depth
    bounds = [
        ("n", chosen.n, limits.max_n),
        ("depth", steps, limits.max_depth),
        # or clients could hold their slots for as long as they like
        ("timeout", chosen.timeout or math.inf, parts.settings.timeout or math.inf),
        ("max_retries", chosen.max_retries, parts.settings.max_retries),
    ]
    for setting, value, most in bounds:
        if value > most:
            raise RequestRefusedError(
                f"{setting}={value} is more than this server allows: {most}.",
                param=f"tpo.{setting}",
                code="invalid_value",
            )
    _check_policy(chat, parts)
    if parts.prompts.prompt("sample", chosen.mode) is not None:
        # then images and the like have no place in what the policy is shown
        for place, message in enumerate(chat.messages):
            for index, part in enumerate(message.content if isinstance(message.content, list) else []):
                if part["type"] != "text":
                    raise _not_passed_on(
                        f"messages[{place}].content[{index}]",
                        f"the prompt pack {parts.prompts.name!r} shows the policy texts alone",
                    )
    arguments: dict[str, Options] = {
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "max_tokens": chat.max_completion_tokens or chat.max_tokens,
        "stop": chat.stop or None,
        "answer_schema": schema,
        **{field: getattr(chat, field) for field in PolicyFields.model_fields},
    }
    if chat.tools:
        arguments |= {field: getattr(chat, field) for field in ("tools", "tool_choice", "parallel_tool_calls")}
    return {**settings, **{name: value for name, value in arguments.items() if value is not None}}


def check_answer(message: AIMessage, schema: AnswerSchema | None) -> None:
    """Check an answer before it goes out.

    Raises:
        PolicyError: a response format was asked for, and no candidate was valid for it.
    """
    if schema is None or message.tool_calls or message.invalid_tool_calls or schema.accepts(message.text):
        return
    raise PolicyError(
        "None of the candidates is valid for the response_format.",
        hint="A larger N (tpo.n) or a stronger policy helps, and so does a simpler schema.",
    )


def _settings_of(chat: ChatRequest, name: ModelName) -> dict[str, Options]:
    """The settings in the model name, in `seed` and in `tpo`."""
    outside = {**name.settings, **({} if chat.seed is None else {"seed": chat.seed})}
    for setting, value in outside.items():
        if setting in chat.tpo and chat.tpo[setting] != value:
            other = "seed" if setting == "seed" else f"the model {chat.model!r}"
            raise RequestRefusedError(
                f"tpo.{setting} is {chat.tpo[setting]!r}, but {other} asks for {value!r}.",
                param=f"tpo.{setting}",
                code="invalid_value",
                hint="Name it once.",
            )
    try:
        TPOSettings(**chat.tpo)
    except ConfigurationError as error:
        cause = error.__cause__
        place = cause.errors()[0]["loc"] if isinstance(cause, ValidationError) else ()
        param = f"tpo.{place[0]}" if place else "tpo"
        raise RequestRefusedError(error.message, param=param, code="invalid_value", hint=error.hint) from error
    return {**chat.tpo, **outside}


def _check_policy(chat: ChatRequest, parts: LoadedParts) -> None:
    """Refuse by the client's own name what would not reach the policy, before anything is paid for."""
    # the client's name for each knob that it names, the model that has to take it, and our name
    knobs = [(field, parts.policy, field) for field in ("temperature", "top_p", "seed")]
    knobs += [(field, parts.policy, "max_new_tokens") for field in ("max_tokens", "max_completion_tokens")]
    knobs = [knob for knob in knobs if getattr(chat, knob[0]) is not None]
    # a setting without a value may be written as a text
    named = {name for name, value in chat.tpo.items() if value not in (None, "none", "null")}
    if "seed" in named:
        knobs.append(("tpo.seed", parts.policy, "seed"))
    for phase in get_args(PolicyPhase):
        asked = (parts.critic or parts.policy) if phase in ("loss", "gradient") else parts.policy
        for knob in ("temperature", "top_p", "max_new_tokens"):
            if f"{phase}_{knob}" in named:
                knobs.append((f"tpo.{phase}_{knob}", asked, knob))
    for field, asked, knob in knobs:
        if not takes_knob(asked, knob):
            raise _not_passed_on(field, "the policy has no way to take it")
    for field in PolicyFields.model_fields:
        if getattr(chat, field) is not None and not is_openai_compatible(parts.policy):
            raise _not_passed_on(field, "the policy is not an OpenAI-compatible one")
    inside = models_inside(parts.policy)
    takes_tools = inside and all(type(chat_model).bind_tools is not BaseChatModel.bind_tools for chat_model in inside)
    if chat.tools and not takes_tools:
        raise _not_passed_on("tools", "the policy takes none")


def _not_passed_on(field: str, reason: str) -> RequestRefusedError:
    return RequestRefusedError(f"{field} can't be passed on: {reason}.", param=field, code="unsupported_parameter")
