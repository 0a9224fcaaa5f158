"""Policy, critic and reward model, loaded at the same time."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, TypeAlias

from tpo_graph.cli.events import Emit, ModelLoaded, ModelLoading, Part

__all__ = ["THREAD_NAME", "Load", "load_all", "load_by_name", "work_is_left"]

THREAD_NAME = "tpo-graph-command"
"""Of every thread that the command starts."""

_REWARDS: Collection[Part] = ("reward model", "second reward model")

Load: TypeAlias = Callable[[Part, str], Any]  # Any: a chat model or a reward model


def load_by_name(part: Part, name: str) -> Any:  # Any: as `Load`
    """`load_reward` for the reward models, `load_policy` for the others."""
    if part in _REWARDS:
        from tpo_graph.rewards.load import load_reward

        return load_reward(name)
    from tpo_graph.policies.load import load_policy

    return load_policy(name)


def load_all(models: Mapping[Part, str], load: Load, emit: Emit) -> dict[Part, Any]:  # Any: as `Load`
    """Load all parts, each in a thread of its own; a critic that is the policy's namesake is the policy.

    Raises:
        Exception: the first error of any part, at once. The other threads are left to themselves.
    """
    began = time.perf_counter()
    models = dict(models)
    if models.get("critic") == models["policy"]:
        del models["critic"]
    for part, name in models.items():
        emit(ModelLoading(part, name))
    # what all parts import, once: Python does not lock a cycle of modules as a whole, so two threads that enter
    # one at different places may see half of it
    import langchain_core.messages  # noqa: F401

    _start_embedded_servers([name for part, name in models.items() if part not in _REWARDS])
    done: SimpleQueue[tuple[Part, Any]] = SimpleQueue()

    def work(part: Part, name: str) -> None:
        try:
            done.put((part, load(part, name)))
        except BaseException as error:  # it is raised again in the thread that waits
            done.put((part, error))

    for part, name in models.items():
        threading.Thread(target=work, args=(part, name), name=THREAD_NAME, daemon=True).start()
    loaded: dict[Part, Any] = {}
    while len(loaded) < len(models):
        part, model = done.get()
        if isinstance(model, BaseException):
            raise model
        loaded[part] = model
        emit(ModelLoaded(part, models[part], time.perf_counter() - began))
    return loaded


def _start_embedded_servers(names: Sequence[str]) -> None:
    """Start llama.cpp before a reward model imports torch; `load_policy` then finds the server running.

    They share an OpenMP library. The one that loads it decides how long its threads spin while they wait, and
    llama.cpp is the one that needs short waits.
    """
    for scheme, _, file in (name.strip().partition(":") for name in names):
        if scheme == "local":
            from tpo_graph.policies.embedded import start_embedded_server

            start_embedded_server(file or None)


def work_is_left() -> bool:
    """Whether a thread of the command still works, after an interrupt or an error."""
    threads = [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]
    for thread in threads:
        thread.join(0.1)  # one that has said its last word needs no more
    return any(thread.is_alive() for thread in threads)
