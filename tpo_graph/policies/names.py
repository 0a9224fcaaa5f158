"""Several policies, each by the id that people use for it."""

import re
from collections.abc import Iterable

from tpo_graph.errors import ConfigurationError

__all__ = ["policy_ids"]

_ALIAS = re.compile(r"(?P<alias>[A-Za-z0-9._-]+)=(?P<name>.+)", re.DOTALL)


def policy_ids(names: Iterable[str]) -> dict[str, str]:
    """Names of policies by the id that clients use.

    The id is the ALIAS of `ALIAS=NAME`, else the model's own name: what follows `#`, else what follows the scheme.

    Raises:
        ConfigurationError: two have the same id.
    """
    found: dict[str, str] = {}
    for each in names:
        given = _ALIAS.fullmatch(each)
        alias, name = (given["alias"], given["name"]) if given else (_own_name(each), each)
        if alias in found:
            raise ConfigurationError(
                f"Two policies are called {alias!r}: {found[alias]!r} and {name!r}.",
                hint=f"Give one another id, as in --policy other={name}.",
            )
        found[alias] = name
    return found


def _own_name(name: str) -> str:
    scheme, _, rest = name.partition(":")
    model = name.partition("#")[2] or ("" if "://" in rest else rest)
    return model or scheme
