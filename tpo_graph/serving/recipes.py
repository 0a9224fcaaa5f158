"""Model names: a recipe, and the policy that it runs with."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from tpo_graph.serving.errors import RequestRefusedError
from tpo_graph.serving.limits import Limits
from tpo_graph.types import Mode

__all__ = ["ModelName", "listed_names"]

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
