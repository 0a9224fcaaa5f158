"""JSON that is valid for a schema."""

import asyncio
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tpo_graph.errors import ConfigurationError, MissingDependencyError
from tpo_graph.rewards.verifiers.checkers import Checkers, shared_checkers
from tpo_graph.rewards.verifiers.child_process import CheckKilledError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

Where: TypeAlias = Literal["anywhere", "whole"]

_FENCE = "```"
# a bracket that JSON can follow: an error at each one that is none takes time that grows with the text
_OPENING = re.compile(r'\{(?=\s*["}])|\[(?=\s*["{}\[\]\d\-tfn])')


class JSONSchemaVerifier:
    """1.0 for a response with JSON that is valid for the schema, else 0.0.

    Runs in a child process, for a schema may hold patterns that never end. A response for which the time limit is not
    enough has no score (NaN).

    Args:
        schema: a JSON Schema of any draft, or a file with one. References to other addresses are not fetched.
        where: `anywhere` takes the first object or list in the response that is valid, in a code block or in running
            text; `whole` wants nothing but JSON, one code fence around it allowed.
        seconds: time limit for one response.
        checkers: the processes to run in; None takes the shared ones.

    Raises:
        ConfigurationError: the schema can't be read or is not valid itself.
        MissingDependencyError: jsonschema is not installed.
    """

    def __init__(
        self,
        schema: Mapping[str, Any] | bool | str | Path,  # Any: JSON
        *,
        where: Where = "anywhere",
        seconds: float = 2.0,
        checkers: Checkers | None = None,
    ) -> None:
        if find_spec("jsonschema") is None:
            raise MissingDependencyError(
                "Checking against a JSON schema needs the package jsonschema.",
                hint='Install it with: pip install "tpo-graph[verifiers]".',
            )
        if where not in ("anywhere", "whole"):
            raise ConfigurationError(f"where={where!r}; allowed: 'anywhere', 'whole'.")
        if not seconds > 0:
            raise ConfigurationError(f"The time limit must be above 0 seconds; it is {seconds!r}.")
        self._schema = json.dumps(_checked_schema(schema))
        self._where = where
        self._seconds = seconds
        self._checkers = checkers or shared_checkers()

    async def score(
        self,
        messages: "Sequence[BaseMessage]",  # noqa: ARG002  # a schema looks at the response alone
        responses: Sequence[str],
    ) -> list[float]:
        """Check every response; see `RewardModel`.

        Raises:
            RewardError: the schema refers to something that can't be resolved.
        """
        return list(await asyncio.gather(*map(self._check, responses)))

    async def _check(self, response: str) -> float:
        arguments = {"schema": self._schema, "where": self._where, "text": response}
        try:
            valid = await self._checkers.check(f"{__name__}:holds_valid_json", arguments, seconds=self._seconds)
        except CheckKilledError:
            return math.nan
        return 1.0 if valid else 0.0


def _checked_schema(schema: Any) -> Any:  # Any: JSON
    import jsonschema
    from jsonschema.validators import validator_for

    if isinstance(schema, str | Path):
        path = Path(schema)
        try:
            schema = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"The schema file {str(path)!r} can't be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConfigurationError(f"The schema file {str(path)!r} is not valid JSON: {error}.") from error
    try:
        validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        where = error.json_path
        raise ConfigurationError(f"The JSON schema is not valid at {where}: {error.message}.") from error
    return schema


def warm_up() -> None:
    """Import the library in the child process."""
    import jsonschema  # noqa: F401  # what takes the time is the import


def holds_valid_json(*, schema: str, where: Where, text: str) -> bool:
    """Whether the text is, or holds, JSON that is valid for the schema; in the child process."""
    validator = _validator(schema)
    values = _whole(text) if where == "whole" else _anywhere(text)
    return any(validator.is_valid(value) for value in values)


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:  # Any: one of the library's classes, made at run time
    from jsonschema.validators import validator_for
    from referencing import Registry

    parsed = json.loads(schema)
    # an empty registry: without one the library would fetch what a schema refers to
    registry: Registry[Any] = Registry()
    return validator_for(parsed)(parsed, registry=registry)


def _whole(text: str) -> Iterator[Any]:
    text = text.strip()
    if text.startswith(_FENCE) and text.endswith(_FENCE) and "\n" in text:
        text = text[text.index("\n") : -len(_FENCE)]
    try:
        yield json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return


def _anywhere(text: str) -> Iterator[Any]:
    """Every object and list in the text that is not inside another one."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    at = 0
    while (start := _OPENING.search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, start.start())
        except ValueError:
            at = start.start() + 1
        except RecursionError:
            return  # nested without an end; the same would happen at the next bracket
        else:
            yield value


def _refuse(name: str) -> None:
    """NaN and Infinity are Python's own; JSON does not have them."""
    raise ValueError(f"{name} is no JSON")
