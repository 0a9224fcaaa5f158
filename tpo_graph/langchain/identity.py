"""Names the parts of a `ChatTPO` so that LangChain's cache never takes one for another."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from langchain_core.runnables.base import RunnableBindingBase

from tpo_graph.langchain.parts import chat_model_inside

__all__ = ["fingerprint"]


def fingerprint(parts: Iterable[object], *, token: str) -> str:
    """A digest that differs when any of the parts does.

    Args:
        parts: names, models, reward models, settings and the like.
        token: stands for objects that have no description which would survive the process; with it in the digest, a
            cache on disk can't take an object of this process for one of another.
    """
    return hashlib.sha256("\n".join(_describe(part, token) for part in parts).encode()).hexdigest()[:32]


def _describe(part: object, token: str) -> str:
    if part is None or isinstance(part, (str, int, float, Path)):
        return repr(part)
    if isinstance(part, RunnableBindingBase):
        return f"{_describe(part.bound, token)} {part.kwargs!r} {part.config!r}"
    model = chat_model_inside(part)
    if model is not None and (model.is_lc_serializable() or model._identifying_params):
        # what LangChain itself takes a chat model to be
        return model._get_llm_string()
    if isinstance(part, dict):
        return repr({name: _describe(value, token) for name, value in part.items()})
    return f"{type(part).__module__}.{type(part).__qualname__} {id(part)} {token}"
