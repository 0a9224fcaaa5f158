"""The knobs of a run, validated. `TPOSettings` is the graph's context schema.

A setting has one name everywhere: in Python, as a CLI flag (`--budget-requests`), as an environment variable
(`TPO_BUDGET_REQUESTS`), in TOML and in LangGraph Studio.
"""

import difflib
import json
import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tpo_graph._storable import storable_text
from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.types import JSONObject, Mode, Options

_log = logging.getLogger(__name__)

PolicyPhase: TypeAlias = Literal["sample", "loss", "gradient", "update"]
"""The phases in which the policy (or the critic) is asked."""

_SAMPLING_KNOBS = ("temperature", "top_p", "max_new_tokens", "stop")


@dataclass(frozen=True)
class Sampling:
    """How one phase samples. None leaves a knob to the provider.

    Attributes:
        temperature: 0 or more.
        top_p: nucleus mass in (0, 1].
        max_new_tokens: completion tokens at most.
        stop: texts at which the completion ends; they are not part of it.
        explicit: names of the knobs that a person has set, so that they are never dropped.
        thinking_tokens: added to the limit of completion tokens that is sent.
        keep_thinking: leave reasoning in front of an answer in its text.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    explicit: frozenset[str] = field(default_factory=frozenset)
    thinking_tokens: int = 0
    keep_thinking: bool = False


def _knob(default: Any, description: str, *nodes: str, **bounds: Any) -> Any:
    """A field that LangGraph Studio shows beside the nodes that it belongs to."""
    return Field(default, description=description, json_schema_extra={"langgraph_nodes": list(nodes)}, **bounds)


def _temperature(node: str) -> Any:
    text = f"Sampling temperature of the {node} phase; none leaves it to the provider."
    return _knob(0.7, text, node, ge=0, le=2)


def _top_p(node: str, default: float) -> Any:
    text = f"Nucleus sampling mass of the {node} phase; none leaves it to the provider."
    return _knob(default, text, node, gt=0, le=1)


def _max_new_tokens(node: str) -> Any:
    text = f"Completion tokens of the {node} phase at most; none leaves it to the provider."
    return _knob(2048, text, node, ge=1)


def _stop(node: str) -> Any:
    return _knob((), f"Texts at which a completion of the {node} phase ends.", node)


class TPOSettings(BaseModel):
    """Everything that a run lets you choose, with the TPO paper's D2-N5 as default.

    Given at build, these are the graph's defaults; given as the `context` of a call, only the fields that are
    named there override them.

    Raises:
        ConfigurationError: a value is out of range or a name is unknown; the message says what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    shown_prefix: ClassVar[str] = ""

    n: int = _knob(5, "N: how many candidates each sampling draws.", "sample", "update", ge=1, le=1024)
    depth: int = _knob(2, "D: how many steps of loss, gradient and update at most.", "select", ge=0, le=1000)
    mode: Mode = _knob(
        "tpo",
        "tpo: best against worst; revision: the best alone; bon: best of N, no steps.",
        "select",
        "loss",
        "gradient",
        "update",
    )
    preference: str = _knob(
        "",
        "What the answer is to satisfy, in words; it reaches loss, gradient and update.",
        "score",
        "loss",
        "gradient",
        "update",
    )
    seed: int | None = _knob(
        None,
        "Seed of the run; each request gets one that is derived from it.",
        "sample",
        "loss",
        "gradient",
        "update",
        ge=0,
    )
    tolerance: float = _knob(
        0.0, "Converged when the best reward gained less than this in each of the last steps; 0 is off.", "select", ge=0
    )
    patience: int = _knob(1, "How many such steps in a row end the run.", "select", ge=1)
    target_reward: float | None = _knob(None, "Stop as soon as the best reward is at least this.", "select")
    budget_requests: int | None = _knob(
        None,
        "No step begins that would take the requests of the run over this, a judge's included; a phase that turns out "
        "to need more ends with the completions it has.",
        "select",
        ge=1,
    )
    budget_tokens: int | None = _knob(
        None,
        "No step begins once the run has used this many tokens, prompts included, as the provider counts them.",
        "select",
        ge=1,
    )
    budget_seconds: float | None = _knob(
        None,
        "Once the run has worked this long, what it waits for is cancelled and it ends with the best so far.",
        "select",
        gt=0,
    )
    timeout: float | None = _knob(
        600.0,
        "Seconds that one try of a request may take as a whole, to the last byte of its answer; none waits for ever.",
        *("sample", "score", "loss", "gradient", "update"),
        gt=0,
    )
    max_retries: int = _knob(
        2,
        "How often a request is sent again after a failure that may pass.",
        *("sample", "score", "loss", "gradient", "update"),
        ge=0,
        le=100,
    )
    open_tag: str | None = _knob(None, "Text before a revised response; none takes the prompt pack's.", "update")
    close_tag: str | None = _knob(None, "Text after a revised response; none takes the prompt pack's.", "update")
    max_shown_tokens: int = _knob(
        2048, "Tokens of a response that a prompt shows at most; cache and answer keep all.", "loss", "update", ge=1
    )
    keep_truncated: bool = _knob(
        False, "Take a revision that was cut before its closing tag as a candidate all the same.", "update"
    )
    thinking_tokens: int = _knob(
        0,
        "Tokens for a model's reasoning: added to the limit that each phase sends, max_new_tokens or the model's own.",
        *("sample", "loss", "gradient", "update"),
        ge=0,
    )
    keep_thinking: bool = _knob(
        False,
        "Leave the reasoning that a policy writes in front of an answer, as in <think>...</think>, in candidates.",
        *("sample", "update"),
    )
    on_failure: Literal["stop", "raise"] = _knob(
        "stop",
        "When policy or reward model fail after the first candidates are scored: end with the best so far, at the "
        "second step in a row that is lost, or raise at once "
        "(a checkpointed run can then be resumed).",
        "select",
    )

    sample_temperature: float | None = _temperature("sample")
    sample_top_p: float | None = _top_p("sample", 0.95)
    sample_max_new_tokens: int | None = _max_new_tokens("sample")
    sample_stop: tuple[str, ...] = _stop("sample")
    loss_temperature: float | None = _temperature("loss")
    loss_top_p: float | None = _top_p("loss", 0.99)
    loss_max_new_tokens: int | None = _max_new_tokens("loss")
    loss_stop: tuple[str, ...] = _stop("loss")
    gradient_temperature: float | None = _temperature("gradient")
    gradient_top_p: float | None = _top_p("gradient", 0.99)
    gradient_max_new_tokens: int | None = _max_new_tokens("gradient")
    gradient_stop: tuple[str, ...] = _stop("gradient")
    update_temperature: float | None = _temperature("update")
    update_top_p: float | None = _top_p("update", 0.95)
    update_max_new_tokens: int | None = _max_new_tokens("update")
    update_stop: tuple[str, ...] = _stop("update")

    if not TYPE_CHECKING:  # type checkers keep the fields as the signature

        def __init__(self, **values) -> None:  # noqa: ANN003
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _explain(error, type(self)) from error

    @field_validator("preference")
    @classmethod
    def _clean_preference(cls, value: str) -> str:
        return storable_text(value.strip())

    @field_validator("open_tag", "close_tag")
    @classmethod
    def _tag_is_not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("a tag must have at least one character that is not white space")
        return value

    @field_validator("sample_stop", "loss_stop", "gradient_stop", "update_stop", mode="before")
    @classmethod
    def _stop_may_be_one_text(cls, value: Any) -> Any:
        """Take `END` and `["END", "STOP"]` where text is all there is."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value.lstrip().startswith("[") else (value,)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error

    @field_validator("sample_stop", "loss_stop", "gradient_stop", "update_stop")
    @classmethod
    def _stop_texts_are_not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a stop text must not be empty")
        return value

    @model_validator(mode="before")
    @classmethod
    def _none_as_a_word(cls, data: Any) -> Any:
        """Let `none` stand for None where text is all there is: flags, variables, Studio's fields."""
        if not isinstance(data, Mapping):
            return data
        fields = cls.model_fields
        optional = {name for name in fields if type(None) in getattr(fields[name].annotation, "__args__", ())}
        words = ("none", "null")
        is_none = {name for name in data if name in optional and str(data[name]).lower() in words}
        return {name: None if name in is_none else value for name, value in data.items()}

    @classmethod
    def load(cls, path: str | Path | None = None, **explicit: Options) -> Self:
        """Settings from all sources: `explicit` beats `TPO_*` variables, which beat the TOML file.

        A `TPO_*` variable that the package does not know is logged as a warning, once.

        Args:
            path: a TOML file with settings at its top level; None reads none.
            **explicit: settings by name.

        Raises:
            ConfigurationError: a value or a name that can't be used, or a file that can't be read.
        """
        merged: dict[str, Any] = {} if path is None else read_toml(Path(path), title="Settings file")
        merged |= _environment()().model_dump(exclude_unset=True)
        for name in os.environ:
            if name.upper().startswith("TPO_"):
                _warn_of_variable(name.upper())
        return cls(**(merged | explicit))

    def overridden_by(self, context: "TPOSettings | Mapping[str, Any] | None") -> "TPOSettings":
        """These settings with the fields that `context` names in place of their own.

        Raises:
            ConfigurationError: a value or a name in `context` that can't be used.
        """
        if context is None:
            return self
        if isinstance(context, TPOSettings):
            # a class of settings with more fields may be the context
            context = context.model_dump(exclude_unset=True, include=set(TPOSettings.model_fields))
        named = dict(context)
        if not named:
            return self
        return TPOSettings(**(self.model_dump(exclude_unset=True) | named))

    def sampling(self, phase: PolicyPhase, recommended: Mapping[str, Any] | None = None) -> Sampling:
        """How `phase` samples: what was set here, else what the prompt pack recommends, else the default."""
        recommended = recommended or {}
        explicit = frozenset(k for k in _SAMPLING_KNOBS if f"{phase}_{k}" in self.model_fields_set)
        values = {
            knob: getattr(self, f"{phase}_{knob}") if knob in explicit or knob not in recommended else recommended[knob]
            for knob in _SAMPLING_KNOBS
        }
        return Sampling(
            **values,
            explicit=explicit,
            thinking_tokens=self.thinking_tokens,
            # a revision is what stands in its tags, and reasoning may name them
            keep_thinking=self.keep_thinking and phase == "sample",
        )


class ContextOnly(TPOSettings):
    """A context to which nothing is added from the config of a graph around the run."""


OTHER_VARIABLES = frozenset(
    f"TPO_{name}"
    for name in ("API_KEY", "CRITIC", "POLICY", "POLICY_API_KEY", "PROMPTS", "REWARD", "SECOND_REWARD", "VARIANT")
)
"""Variables of the package that are no settings: what the command, the server and Studio are made of, and keys."""


@cache
def _warn_of_variable(name: str) -> None:
    known = [*OTHER_VARIABLES, *(f"TPO_{setting.upper()}" for setting in TPOSettings.model_fields)]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        _log.warning(f"The variable {name} is no setting and is ignored.{f' Is {close[0]} meant?' if close else ''}")


@cache
def _environment() -> type[TPOSettings]:
    """The same fields, read from `TPO_*` variables alone; its library is imported when it is needed."""
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Environment(BaseSettings, TPOSettings):
        model_config = SettingsConfigDict(
            env_prefix="TPO_", frozen=True, extra="ignore", env_ignore_empty=True, enable_decoding=False
        )
        shown_prefix: ClassVar[str] = "TPO_"

    return Environment


MOST_MIB = 16
MOST_BYTES = MOST_MIB * 2**20
"""The most that is read of a file of settings, prompts or a schema, of a question, and of one line of data."""


def read_text(path: Path, *, title: str, error: type[TPOError] = ConfigurationError) -> str:
    """The text of a file, which may be a device without an end.

    Args:
        path: the file.
        title: what the file is, to begin an error message with, as in "Settings file".
        error: the kind of error to raise.

    Raises:
        TPOError: the file can't be read, is too large, or is not UTF-8; of the kind `error`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise error(f"{title} {str(path)!r} has more than {MOST_MIB} MiB, the most that is read.")
        return data.decode()
    except OSError as problem:
        raise error(f"{title} {str(path)!r} can't be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{title} {str(path)!r} is not UTF-8: {problem}.") from problem


def read_toml(path: Path, *, title: str, error: type[TPOError] = ConfigurationError) -> JSONObject:
    """The tables of a TOML file; arguments and errors are those of `read_text`, and one for what is not TOML."""
    text = read_text(path, title=title, error=error)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{title} {str(path)!r} is not valid TOML: {problem}.") from problem
    except RecursionError as problem:
        raise error(f"{title} {str(path)!r} is nested too deep.") from problem


def _explain(error: ValidationError, cls: type[TPOSettings]) -> ConfigurationError:
    parts = []
    unknown = False
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        shown = cls.shown_prefix + name.upper() if cls.shown_prefix else name
        if problem["type"] == "extra_forbidden":
            unknown = True
            parts.append(f"Unknown setting {shown!r}.")
        else:
            where = f"Setting {shown}={problem['input']!r}: " if name else ""
            parts.append(f"{where}{problem['msg'].removeprefix('Value error, ')}.")
    hint = f"Settings are: {', '.join(cls.model_fields)}." if unknown else ""
    return ConfigurationError(" ".join(parts), hint=hint)
