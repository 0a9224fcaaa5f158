"""Rules about the form of a response: its length, a pattern, JSON that is valid for a schema."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tpo_graph._json_schema import JSONSchema, require_jsonschema
from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.verifiers.processes import Checkers, TimedCheck
from tpo_graph.settings import read_text
from tpo_graph.types import JSON, Options

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

LengthUnit: TypeAlias = Literal["words", "characters", "tokens"]
"""Words are what white space divides, so Chinese, Japanese and Thai are better counted in characters."""

Where: TypeAlias = Literal["anywhere", "whole"]

_BYTES_PER_TOKEN = 4
_RANGE = re.compile(r"(?P<low>\d*)(?P<dash>-?)(?P<high>\d*)(?: ?(?P<unit>[a-z]+))?")


class LengthVerifier:
    """1.0 for a response within the range, and less the further it is outside; always above 0 and never NaN.

    Outside the range the reward is 1 / (1 + (distance / falloff) ** 2): flat at the edge, one half at `falloff` units
    outside, and never quite 0, so that of two responses that are far too long the shorter one still wins.

    Examples:
        >>> import asyncio
        >>> asyncio.run(LengthVerifier(2, 4, falloff=2).score([], ["a b c", "a b c d e f"]))
        [1.0, 0.5]

    Args:
        shortest: fewest units that are right.
        longest: most units that are right; the same as `shortest` for a target, None for no upper limit.
        unit: `words`, `characters` or `tokens`.
        falloff: units outside the range at which the reward is one half, above 0; None takes a quarter of the nearer
            edge (1 at least).
        tokenize: text to tokens, for `tokens`; without it a token is taken to be four bytes of UTF-8.

    Raises:
        ConfigurationError: a range that holds nothing, a falloff that is not above 0, or an unknown unit.
    """

    highest_reward = 1.0

    def __init__(
        self,
        shortest: int = 0,
        longest: int | None = None,
        *,
        unit: LengthUnit = "words",
        falloff: float | None = None,
        tokenize: Callable[[str], Sequence[object]] | None = None,
    ) -> None:
        _require_unit(unit)
        if shortest < 0 or (longest is not None and longest < shortest):
            raise ConfigurationError(f"No length is at least {shortest} and at most {longest}.")
        if falloff is not None and not 0 < falloff < math.inf:
            raise ConfigurationError(f"The falloff must be a number above 0; it is {falloff!r}.")
        if tokenize is not None and unit != "tokens":
            raise ConfigurationError(f"A tokenizer counts tokens, and the unit is {unit!r}.")
        self._shortest = shortest
        self._longest = math.inf if longest is None else longest
        self._unit = unit
        self._falloff = falloff
        self._tokenize = tokenize

    async def score(
        self,
        messages: "Sequence[BaseMessage]",  # noqa: ARG002  # a length is that of the response alone
        responses: Sequence[str],
    ) -> list[float]:
        """Measure every response.

        Args:
            messages: the conversation, which does not matter.
            responses: the texts to measure.

        Returns:
            One float above 0 and at most 1 for each response.
        """
        if self._tokenize is None:
            return [self._reward(self._length(response)) for response in responses]
        # a tokenizer may take long enough to be felt
        lengths = await asyncio.to_thread(lambda: [self._length(response) for response in responses])
        return [self._reward(length) for length in lengths]

    def _length(self, text: str) -> int:
        if self._unit == "words":
            return len(text.split())
        if self._unit == "characters":
            return len(text)
        if self._tokenize is not None:
            return len(self._tokenize(text))
        return math.ceil(len(text.encode("utf-8", errors="surrogatepass")) / _BYTES_PER_TOKEN)

    def _reward(self, length: int) -> float:
        edge = min(max(length, self._shortest), self._longest)
        falloff = self._falloff or max(1.0, edge / 4)
        return 1.0 / (1.0 + ((length - edge) / falloff) ** 2)


def load_length(name: str, **options: Options) -> LengthVerifier:
    """Load `length:RANGE`, a range as `parse_length` reads it; the options are those of `LengthVerifier`."""
    shortest, longest, unit = parse_length(name)
    return LengthVerifier(shortest, longest, unit=unit, **options)


def parse_length(text: str) -> tuple[int, int | None, LengthUnit]:
    """Read a range of lengths.

    Examples:
        >>> parse_length("100-200 tokens")
        (100, 200, 'tokens')

    Args:
        text: `150`, `100-200`, `-200` or `100-`, with `words`, `characters` or `tokens` after it; without a unit it is
            in words.

    Returns:
        The shortest length, the longest one (None for no limit) and the unit.

    Raises:
        ConfigurationError: the text is not a range, or the unit is unknown.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match["low"] or match["high"]):
        raise ConfigurationError(
            f"{text!r} is not a length.",
            hint='Write "150", "100-200", "-200" or "100-", with a unit if need be: "150 words".',
        )
    unit = _require_unit(match["unit"] or "words")
    low = int(match["low"] or 0)
    high = int(match["high"]) if match["high"] else None if match["dash"] else low
    return low, high, unit


def _require_unit(unit: str) -> LengthUnit:
    for allowed in get_args(LengthUnit):
        if unit == allowed:
            return allowed  # type: ignore[no-any-return]  # get_args has no types
    raise ConfigurationError(f"Unknown unit of length {unit!r}; allowed: {', '.join(get_args(LengthUnit))}.")


class _TextVerifier:
    """1.0 or 0.0 by a check that runs in a child process and looks at nothing but the response.

    A response for which the time limit is not enough has no score (NaN).
    """

    highest_reward = 1.0

    def __init__(self, check: TimedCheck, *, where: Where, **arguments: JSON) -> None:
        if where not in ("anywhere", "whole"):
            raise ConfigurationError(f"where={where!r}; allowed: 'anywhere', 'whole'.")
        self._check = check
        self._arguments = {"whole": where == "whole", **arguments}

    async def score(
        self,
        messages: "Sequence[BaseMessage]",  # noqa: ARG002  # the response alone is checked
        responses: Sequence[str],
    ) -> list[float]:
        """Check every response.

        Args:
            messages: the conversation, which does not matter.
            responses: the texts to check.

        Returns:
            1.0, 0.0 or NaN for each response.
        """
        results = await self._check.run({**self._arguments, "text": response} for response in responses)
        return [math.nan if passed is None else float(passed) for passed in results]


class RegexVerifier(_TextVerifier):
    r"""1.0 for a response in which the pattern is found as often as it should be, else 0.0.

    It runs in a child process, because the time that a pattern takes can grow without bound (`(a+)+$`). A response for
    which the time limit is not enough has no score (NaN).

    Args:
        pattern: a regular expression of Python's `re`; flags go in front, as in `(?i)` and `(?s)`.
        where: `anywhere` counts matches that do not overlap; `whole` matches the entire response, white space around
            it left out.
        at_least: the fewest matches that are right, 0 or more.
        at_most: the most matches that are right; None for no limit, 0 with `at_least=0` to forbid the pattern.
        seconds: time limit for one response.
        checkers: the processes to run in; None takes those that all verifiers share.

    Raises:
        ConfigurationError: the pattern is not valid, or no count can satisfy the limits.
    """

    def __init__(
        self,
        pattern: str,
        *,
        where: Where = "anywhere",
        at_least: int = 1,
        at_most: int | None = None,
        seconds: float = 2.0,
        checkers: Checkers | None = None,
    ) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(f"The pattern {pattern!r} is not a regular expression: {error}.") from error
        if at_least < 0 or (at_most is not None and at_most < at_least):
            raise ConfigurationError(f"No number of matches is at least {at_least} and at most {at_most}.")
        check = TimedCheck("count_of_matches_is_right", seconds=seconds, checkers=checkers)
        super().__init__(check, where=where, pattern=pattern, at_least=at_least, at_most=at_most)


def load_regex(name: str, **options: Options) -> RegexVerifier:
    """Load `regex:PATTERN`; the options are those of `RegexVerifier`."""
    if not name:
        raise ConfigurationError("'regex:' names no pattern.", hint=r'For example "regex:(?i)\bin short\b".')
    return RegexVerifier(name, **options)


class JSONSchemaVerifier(_TextVerifier):
    """1.0 for a response with JSON that is valid for the schema, else 0.0.

    It runs in a child process, because a schema may hold patterns that never end. A response for which the time limit
    is not enough has no score (NaN).

    Args:
        schema: a JSON Schema of any draft, or a file with one. References to other addresses are not fetched.
        where: `anywhere` takes the first object or list in the response that is valid, in a code block or in running
            text; `whole` wants nothing but JSON, one code fence around it allowed.
        seconds: time limit for one response.
        checkers: the processes to run in; None takes those that all verifiers share.

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
        if isinstance(schema, str | Path):
            path = Path(schema)
            text = read_text(path, title="The schema file")
            try:
                schema = json.loads(text)
            except RecursionError as error:
                raise ConfigurationError(f"The schema file {str(path)!r} is nested too deep.") from error
            except ValueError as error:
                raise ConfigurationError(f"The schema file {str(path)!r} is not valid JSON: {error}.") from error
        JSONSchema(schema)
        warm_up = {"schema": "true", "whole": True, "text": ""}
        check = TimedCheck("holds_valid_json", warm_up=warm_up, seconds=seconds, checkers=checkers)
        super().__init__(check, where=where, schema=json.dumps(schema))


def load_json_schema(name: str, **options: Options) -> JSONSchemaVerifier:
    """Load `json_schema:FILE`; the options are those of `JSONSchemaVerifier`."""
    if not name:
        raise ConfigurationError("'json_schema:' names no file.", hint='For example "json_schema:answer.schema.json".')
    return JSONSchemaVerifier(name, **options)
