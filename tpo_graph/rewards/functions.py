"""Any Python function as a reward model, and what `load_reward("python:...")` loads."""

import asyncio
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.runnables import Runnable

from tpo_graph.errors import ConfigurationError, RewardError, TPOError
from tpo_graph.prompts.template import last_query, role_of
from tpo_graph.rewards.base import (
    DetailedReward,
    RewardModel,
    RunContext,
    Scoring,
    call_in_thread,
    gather,
    query_columns,
)
from tpo_graph.types import Options

FunctionStyle: TypeAlias = Literal[
    "response",  # f(response) -> float
    "responses",  # f(responses) -> floats
    "query_response",  # f(query, response) -> float, the query being the last user message's text
    "query_responses",  # f(query, responses) -> floats
    "messages_response",  # f(messages, response) -> float
    "messages_responses",  # f(messages, responses) -> floats
    "trl",  # f(prompts, completions, **columns) -> floats, prompts and completions being texts
    "trl_chat",  # the same, prompts and completions being lists of {"role": ..., "content": ...}
]
"""What a reward function takes. The names are those of its arguments, one text or many."""

RewardFunction: TypeAlias = Callable[..., Any]
"""A function that rewards one response or many, sync or async, in one of the styles."""

STYLES: tuple[FunctionStyle, ...] = typing.get_args(FunctionStyle)

_ONE = {"response", "completion", "answer", "text", "candidate"}
_MANY = {"responses", "completions", "answers", "texts", "candidates"}
_MESSAGES = {"messages", "conversation"}
_QUERY = {"query", "question", "prompt", "instruction"}
_HINT = f"FunctionReward(function, style=...) says how; styles: {', '.join(STYLES)}."


class FunctionReward(DetailedReward):
    """A function, sync or async, that rewards one response or many.

    Examples:
        >>> import asyncio
        >>> def politeness(response: str) -> float:
        ...     return float("please" in response)
        >>> asyncio.run(FunctionReward(politeness).score([], ["Sit.", "Sit, please."]))
        [0.0, 1.0]

    A sync function runs in a thread, so that it never blocks the event loop. Where it returns None it does not apply
    to the response: a combination goes by its other parts, and alone it is not a score.

    Functions written for TRL's trainers get as `columns` what travels with the query, the `additional_kwargs` of the
    last user message, each value repeated for every completion. Of keyword arguments they get those that they name, or
    all if they take `**kwargs`. `prompts` is the last user message's text for `trl`, the whole conversation for
    `trl_chat`.

    Args:
        function: the function, or any object that can be called.
        style: how it is called; None finds out from its signature.
        max_concurrency: calls at once of an async function of one response.
        highest_reward: the most that it can return, 1.0 for a check of right and wrong: a run ends when a candidate has
            it. None where there is no such bound.

    Raises:
        ConfigurationError: it can't be called, the style is unknown, or the signature does not show it.
    """

    def __init__(
        self,
        function: RewardFunction,
        *,
        style: FunctionStyle | None = None,
        max_concurrency: int = 16,
        highest_reward: float | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"A reward function must be something to call; {function!r} is not.")
        if style is not None and style not in STYLES:
            raise ConfigurationError(f"Unknown style {style!r} of a reward function; allowed: {', '.join(STYLES)}.")
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1; it is {max_concurrency}.")
        self.style: FunctionStyle = style or find_style(function)
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.highest_reward = highest_reward
        self._function = function
        self._max_concurrency = max_concurrency
        call = getattr(type(function), "__call__", None)  # noqa: B004  # an object's own async method
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    async def score_in_detail(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        run: RunContext,  # noqa: ARG002  # what a function returns has its own scale
    ) -> Scoring:
        """Call the function.

        Args:
            messages: the conversation.
            responses: texts to score, at least one.
            run: makes no difference.

        Raises:
            RewardError: the function is one for TRL, and needs a column that the query does not carry.
        """
        conversation, texts = list(messages), list(responses)
        match self.style:
            case "response":
                scores = await self._call_for_each((text,) for text in texts)
            case "query_response":
                query = last_query(conversation)
                scores = await self._call_for_each((query, text) for text in texts)
            case "query_responses":
                scores = await self._call(last_query(conversation), texts)
            case "messages_response":
                scores = await self._call_for_each((conversation, text) for text in texts)
            case "responses":
                scores = await self._call(texts)
            case "messages_responses":
                scores = await self._call(conversation, texts)
            case "trl" | "trl_chat" as style:
                columns = trl_arguments(self._function, conversation, texts, chat=style == "trl_chat")
                scores = await self._call(**columns)
        return Scoring(list(scores))

    async def _call(self, *arguments: Any, **columns: Any) -> Any:
        if self._is_async:
            return await self._function(*arguments, **columns)
        return await call_in_thread(self._function, *arguments, **columns)

    async def _call_for_each(self, calls: Iterable[tuple[Any, ...]]) -> Sequence[Any]:
        if not self._is_async:
            # one thread for all of them: a hop for each would cost more than most functions do
            results = await call_in_thread(lambda: [self._function(*arguments) for arguments in calls])
            return [await result if inspect.isawaitable(result) else result for result in results]
        slots = asyncio.Semaphore(self._max_concurrency)

        async def call(arguments: tuple[Any, ...]) -> Any:
            async with slots:
                return await self._function(*arguments)

        return await gather(call(arguments) for arguments in calls)


def as_reward_model(model: RewardModel | RewardFunction) -> RewardModel:
    """A reward model itself, or the one that a function is.

    Raises:
        ConfigurationError: it is neither, or the function's signature does not show how it is called.
    """
    kind = f"class {model.__name__!r}" if isinstance(model, type) else repr(type(model).__name__)
    if callable(getattr(model, "score", None)) and not isinstance(model, type):
        return model  # type: ignore[return-value]  # a Callable may have any attribute
    if callable(model) and not isinstance(model, type | Runnable):
        return FunctionReward(model)
    raise ConfigurationError(
        f"A reward model has a method score(messages, responses), or is a function; {kind} is neither.",
        hint="Give an object of the class."
        if isinstance(model, type)
        else "JudgeReward(model) rewards with a chat model."
        if isinstance(model, Runnable)
        else 'load_reward("local") makes one.',
    )


def find_style(function: Callable[..., Any]) -> FunctionStyle:
    """The style of a function, by the names and the annotations of its arguments.

    Examples:
        >>> def brevity(response: str) -> float: ...
        >>> find_style(brevity)
        'response'

    Args:
        function: the function, or any object that can be called.

    Raises:
        ConfigurationError: the signature can be read in more than one way, or in none.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The reward function {name!r} shows no signature.", hint=_HINT) from error
    # an object's annotations are those of its method
    target = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004
    try:
        hints = typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # a name under or nothing that can have annotations
        hints = {}
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "completions" in parameters and ("prompts" in parameters or takes_more):
        items = typing.get_args(hints.get("completions"))
        if items and typing.get_origin(items[0]) in (list, Sequence):
            return "trl_chat"
        # without annotations, as TRL's documentation writes it: its data sets are of texts unless made of messages
        as_documented = "completions" not in hints and takes_more and [*parameters][:-1] == ["prompts", "completions"]
        if as_documented or (items and items[0] is str):
            return "trl"
        # TRL passes texts or lists of messages, as the data set has it; only an annotation can say which
        raise ConfigurationError(
            f"The reward function {name!r} has TRL's signature, and it isn't clear what a completion is to it.",
            hint='Give style="trl" if it is a text, style="trl_chat" if it is a list of messages.',
        )
    needed = [
        parameter.name
        for parameter in parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    takes_one = _takes_one(needed[-1], hints.get(needed[-1])) if needed else None
    if takes_one is not None and len(needed) == 1:
        return "response" if takes_one else "responses"
    if takes_one is not None and len(needed) == 2 and needed[0] in _MESSAGES:
        return "messages_response" if takes_one else "messages_responses"
    if takes_one is not None and len(needed) == 2 and needed[0] in _QUERY and hints.get(needed[0], str) is str:
        return "query_response" if takes_one else "query_responses"
    raise ConfigurationError(
        f"The arguments of the reward function {name!r} ({', '.join(parameters)}) don't show how to call it.",
        hint=_HINT,
    )


def _takes_one(name: str, hint: object) -> bool | None:
    """Whether an argument is one text or many; None when neither can be seen. A type counts before a name."""
    if hint is str:
        return True
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return False
    if hint is not None and not isinstance(hint, types.UnionType):
        return None
    return True if name in _ONE else False if name in _MANY else None


def trl_arguments(
    function: Callable[..., Any], messages: Sequence[BaseMessage], responses: Sequence[str], *, chat: bool
) -> dict[str, list[Any]]:
    """The keyword arguments that TRL's trainers give to a reward function: prompts, completions, and columns.

    Args:
        function: gets only the arguments that it names, or all if it has `**kwargs`.
        messages: the conversation.
        responses: the texts to score.
        chat: whether prompts and completions are lists of `{"role": ..., "content": ...}`; else they are texts, and a
            prompt is the last user message's.

    Returns:
        Lists with one item a response.

    Raises:
        RewardError: the function needs a column that the query does not carry.
    """
    count = len(responses)
    offered: dict[str, list[Any]] = {name: [value] * count for name, value in query_columns(messages).items()}
    if chat:
        turns = [{**convert_to_openai_messages(message), "role": role_of(message)} for message in messages]
        # copies: a function may put the completion at the end of its prompt
        offered["prompts"] = [list(turns) for _ in responses]
        offered["completions"] = [[{"role": "assistant", "content": response}] for response in responses]
    else:
        offered["prompts"] = [last_query(messages)] * count
        offered["completions"] = list(responses)
    parameters = inspect.signature(function).parameters
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in offered
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    if missing:
        raise RewardError(
            f"The reward function needs {', '.join(missing)}, which the query does not carry.",
            hint="Columns travel as additional_kwargs of the last user message.",
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offered
    return {name: values for name, values in offered.items() if name in parameters}


def load_function(name: str, **options: Options) -> RewardModel:
    """What `load_reward("python:MODULE:FUNCTION")` and `"python:FILE.py:FUNCTION"` call.

    This runs the module. The working directory counts as a place of modules, as it does for `python -m`.

    Args:
        name: module or file, a colon, and a function in it; or a reward model, or a class of one.
        **options: those of `FunctionReward`, or of the class.

    Raises:
        ConfigurationError: there is no such module or function, or the module raises when it is imported, or the class
            when it is made.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ConfigurationError(
            f"'python:{name}' names no function.", hint='Write "python:module:function" or "python:file.py:function".'
        )
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = getattr(module, attribute, None)
    if found is None:
        raise ConfigurationError(f"Module {place!r} has nothing named {attribute!r}.")
    if not hasattr(found, "score"):
        return FunctionReward(found, **options)
    model: RewardModel = found
    if isinstance(found, type):
        try:
            model = found(**options)
        except TPOError:
            raise
        except Exception as error:  # whatever a user's class may raise
            raise ConfigurationError(f"{name!r} can't be made: {type(error).__name__}: {error}".rstrip(": ")) from error
    elif options:
        raise ConfigurationError(f"{name!r} is a reward model already and takes no options: {', '.join(options)}.")
    return model


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"There is no module {name!r}, neither installed nor in {here!r}.") from error
        raise ConfigurationError(f"Module {name!r} can't be imported: {error}.") from error
    except Exception as error:  # whatever a user's module may raise
        raise ConfigurationError(f"Module {name!r} can't be imported: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"There is no file {str(path)!r}.")
    spec = importlib.util.spec_from_file_location(f"tpo_graph_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{str(path)!r} can't be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a class's module up by name
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        del sys.modules[spec.name]
        raise ConfigurationError(f"{str(path)!r} can't be imported: {type(error).__name__}: {error}") from error
    return module
