"""JSON that is valid for a schema."""

import asyncio
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from tpo_graph._json_schema import STRICT_JSON, JSONSchema, parse_json, require_jsonschema, strip_code_fence
from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.verifiers.checkers import Checkers, shared_checkers
from tpo_graph.rewards.verifiers.child_process import CheckKilledError
from tpo_graph.types import JSON

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

Where: TypeAlias = Literal["anywhere", "whole"]

# a bracket that can begin JSON; to try every other one as well would take time that grows with the text's square
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
        ConfigurationError: the schema can't be read, is not valid itself, or has a reference that leads nowhere.
        MissingDependencyError: jsonschema is not installed.
    """

    def __init__(
        self,
        schema: Mapping[str, JSON] | bool | str | Path,
        *,
        where: Where = "anywhere",
        seconds: float = 2.0,
        checkers: Checkers | None = None,
    ) -> None:
        require_jsonschema("Checking against a JSON schema")
        if where not in ("anywhere", "whole"):
            raise ConfigurationError(f"where={where!r}; allowed: 'anywhere', 'whole'.")
        if not seconds > 0:
            raise ConfigurationError(f"The time limit must be above 0 seconds; it is {seconds!r}.")
        if isinstance(schema, str | Path):
            schema = _read_schema(Path(schema))
        JSONSchema(schema)
        self._schema = json.dumps(schema)
        self._where = where
        self._seconds = seconds
        self._checkers = checkers or shared_checkers()

    async def score(
        self,
        messages: "Sequence[BaseMessage]",  # noqa: ARG002  # a schema looks at the response alone
        responses: Sequence[str],
    ) -> list[float]:
        """Check every response; see `RewardModel`."""
        return list(await asyncio.gather(*map(self._check, responses)))

    async def _check(self, response: str) -> float:
        arguments = {"schema": self._schema, "where": self._where, "text": response}
        try:
            valid = await self._checkers.check(f"{__name__}:holds_valid_json", arguments, seconds=self._seconds)
        except CheckKilledError:
            return math.nan
        return 1.0 if valid else 0.0


def _read_schema(path: Path) -> JSON:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The schema file {str(path)!r} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"The schema file {str(path)!r} is not valid JSON: {error}.") from error


def warm_up() -> None:
    """Import the library in the child process."""
    import jsonschema  # noqa: F401  # what takes the time is the import


def holds_valid_json(*, schema: str, where: Where, text: str) -> bool:
    """Whether the text is, or holds, JSON that is valid for the schema; runs in the child process.

    Args:
        schema: the schema as JSON.
        where: as for `JSONSchemaVerifier`.
        text: the response.
    """
    checked = _checked(schema)
    if where == "anywhere":
        return any(checked.problem(value) is None for value in _objects_and_lists(text))
    try:
        return checked.problem(parse_json(strip_code_fence(text))) is None
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _checked(schema: str) -> JSONSchema:
    return JSONSchema(json.loads(schema))


def _objects_and_lists(text: str) -> Iterator[JSON]:
    """Every object and list in the text that is not inside another one."""
    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        try:
            value, position = STRICT_JSON.raw_decode(text, opening.start())
        except ValueError:
            position = opening.start() + 1
        except RecursionError:
            return  # nested without an end; the same would happen at the next bracket
        else:
            yield value
