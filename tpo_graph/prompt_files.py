"""The TOML files of a prompt pack, as they may be written."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_graph.errors import PromptError
from tpo_graph.template import Syntax

__all__ = ["ConversationTable", "PackFile", "PromptFile", "SamplingTable", "parse_table", "read_file"]

NotBlank = Annotated[str, Field(pattern=r"\S")]
Role = Literal["system", "user", "assistant", "tool"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SamplingTable(_Table):
    """What a pack recommends for a phase; names and bounds are those of the settings."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | None = None


class PromptFile(_Table):
    """A phase's file."""

    user: str
    system: str | None = None
    sampling: SamplingTable = SamplingTable()


class ConversationTable(_Table):
    """How the pack writes `$conversation`; None takes the default."""

    single: str | None = None
    turn: str | None = None
    separator: str = "\n\n"
    roles: dict[Role, str] = {}


class PackFile(_Table):
    """`pack.toml`; what is None comes from the pack that this one extends."""

    description: str | None = None
    extends: str | None = None
    syntax: Syntax | None = None
    open_tag: NotBlank | None = None
    close_tag: NotBlank | None = None
    critique_divider: NotBlank | None = None
    preference: str | None = None
    conversation: ConversationTable | None = None


Table = TypeVar("Table", bound=_Table)


def read_file(path: Path, kind: type[Table]) -> Table:
    """Read one file of a pack.

    Raises:
        PromptError: it can't be read, or a key or a value is not as it must be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PromptError(f"{path} can't be read: {error}.") from error
    return parse_table(table, kind, path.name)


def parse_table(table: dict[str, object], kind: type[Table], where: str) -> Table:
    """Check what a file of a pack holds.

    Raises:
        PromptError: a key or a value is not as it must be.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            inner: dict[str, type[_Table]] = {"sampling": SamplingTable, "conversation": ConversationTable}
            known = inner.get(str(problem["loc"][0]), kind)
            raise PromptError(f"{where}: unknown key {key!r}; allowed: {', '.join(known.model_fields)}.") from error
        if problem["type"] == "missing":
            raise PromptError(f"{where} has no {key!r}.") from error
        raise PromptError(f"{where}: {key} = {problem['input']!r}: {problem['msg']}.") from error
