"""What a user prefers, kept in a LangGraph Store: it reaches the prompts and the judge of every run of that user."""

import inspect
from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from pydantic import Field

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.bridge import AsyncNode, NodeBody
from tpo_graph.graph.build import TPOStateGraph
from tpo_graph.graph.request import effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.settings import TPOSettings

USER_ID = "user_id"
"""The name under which a call tells whose run it is, in its context or as `{"configurable": {"user_id": "ada"}}`."""

# where LangGraph's server puts the user that it has authenticated; "" without authentication
_AUTHENTICATED = "langgraph_auth_user_id"

_NAMESPACE = ("tpo_graph", "preferences")
_LONGEST = 2000  # characters; it is in every prompt


class UserSettings(TPOSettings):
    """The context schema of a graph that remembers: `TPOSettings`, and whose run it is.

    Attributes:
        user_id: a name of the user; "" for nobody.
    """

    user_id: str = Field(
        default="",
        description="Whose run it is: the preference that is kept of this user counts. Empty is nobody.",
        json_schema_extra={"langgraph_nodes": ["score", "loss", "gradient", "update"]},
    )


async def read_preference(store: BaseStore, user_id: str) -> str:
    """What is kept of a user; "" for nothing."""
    found = await store.aget(_namespace(user_id), "preference")
    return str(found.value.get("text", "")) if found else ""


async def save_preference(store: BaseStore, user_id: str, text: str) -> None:
    """Keep a user's preference in place of what was kept before; an empty text forgets it.

    Raises:
        ConfigurationError: the text is too long to be put into every prompt.
    """
    text = text.strip()
    if len(text) > _LONGEST:
        raise ConfigurationError(f"A preference has {_LONGEST} characters at most; this one has {len(text)}.")
    if text:
        # found by its key alone, so nothing needs an index
        await store.aput(_namespace(user_id), "preference", {"text": text}, index=False)
    else:
        await store.adelete(_namespace(user_id), "preference")


def user_of(config: RunnableConfig | None, context: object = None) -> str:
    """The user id of a call; "" when it names none.

    It is the user whom LangGraph's server has authenticated; else `user_id` in the context, else in `configurable`.
    So nobody who had to log in reads the preference of somebody else.

    Raises:
        ConfigurationError: it is no text.
    """
    configurable = (config or {}).get("configurable") or {}
    told = context.get(USER_ID) if isinstance(context, Mapping) else getattr(context, USER_ID, None)
    user = configurable.get(_AUTHENTICATED) or told or configurable.get(USER_ID)
    if user is None:
        return ""
    if not isinstance(user, str):
        raise ConfigurationError(f"{USER_ID}={user!r} must be a text.")
    return user.strip()


def _namespace(user_id: str) -> tuple[str, ...]:
    """Where a user's preference is; stores part their keys at dots, and take none in a part."""
    return (*_NAMESPACE, user_id.replace("%", "%25").replace(".", "%2E"))


def remembering_nodes(graph: TPOStateGraph, *, settings: TPOSettings | None = None) -> Mapping[str, Any]:  # Any: nodes
    """The nodes of a graph, each of which also knows what is kept of the user.

    Example:
        >>> import asyncio
        >>> from langgraph.store.memory import InMemoryStore
        >>> from tpo_graph import build_tpo_graph, create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> models = ScriptedChatModel(["a", "b", "loss", "gradient"]), TableReward({"a": 1.0, "b": 0.0})
        >>> store = InMemoryStore()
        >>> asyncio.run(save_preference(store, "ada", "Short answers."))
        >>> graph = create_tpo_graph(*models, nodes=remembering_nodes(build_tpo_graph(*models)), store=store)
        >>> ada = {"configurable": {"user_id": "ada"}}
        >>> _ = graph.invoke({"query": "hi"}, ada, context={"n": 2, "depth": 1})
        >>> "Short answers." in models[0].requests[2][-1].text
        True

    The preference of a call, or the one given at build, follows what is kept. A call that names no user, and a graph
    without a store, run as they would without this.

    Args:
        graph: from `build_tpo_graph`. Of your own nodes in it, async functions that take `runtime` see the preference
            in its context; all others stay as they are.
        settings: as given to the graph.
    """
    defaults = TPOSettings.load() if settings is None else settings
    nodes: dict[str, Any] = {name: node.runnable for name, node in graph.nodes.items()}  # Any: as above
    for name, node in nodes.items():
        if isinstance(node, AsyncNode) and "runtime" in inspect.signature(node.body).parameters:
            nodes[name] = AsyncNode(remembering(node.body, defaults), name)
    return nodes


def remembering(body: NodeBody, defaults: TPOSettings) -> NodeBody:
    """A node's body that also knows what is kept of the user; it takes `(state, runtime, config)`.

    Args:
        body: takes `runtime`, and maybe `config`, `store` and `writer`.
        defaults: as given to the graph.
    """
    named = inspect.signature(body).parameters

    async def node(
        state: TPOState, runtime: Runtime[TPOSettings], config: RunnableConfig
    ) -> Mapping[str, Any] | None:  # Any: a partial state
        user = user_of(config, runtime.context)
        kept = await read_preference(runtime.store, user) if user and runtime.store is not None else ""
        if kept:
            chosen = effective_settings(defaults, runtime)
            both = "\n".join(text for text in (kept, chosen.preference) if text)
            runtime = runtime.override(context=chosen.overridden_by({"preference": both}))
        given = {"runtime": runtime, "config": config, "store": runtime.store, "writer": runtime.stream_writer}
        return await body(state, **{name: value for name, value in given.items() if name in named})

    return node
