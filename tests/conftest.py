"""What every test starts from: no settings in the environment, and a server where one is asked for."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_openai import ChatOpenAI

from tests.servers import ChatServer
from tests.tpo_script import server_reply


def pytest_configure() -> None:
    """Let Ctrl-C end what the tests start: a shell starts its background jobs deaf to it, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, key, proxy or tracing of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith(("TPO_", "OPENAI_", "LANGSMITH_", "LANGCHAIN_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_llm_cache() -> Iterator[None]:
    """A cache that a test sets is gone after it."""
    yield
    set_llm_cache(None)


@pytest.fixture
def chat_server() -> Iterator[Callable[..., ChatServer]]:
    """Starts servers that play the script of all four phases; they end with the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> ChatServer:
            return stack.enter_context(ChatServer(**{"answer": server_reply, **options}))

        yield start


@pytest.fixture
def chat_openai() -> Callable[..., ChatOpenAI]:
    """Makes a ChatOpenAI of a server, as a person would."""

    def make(server: ChatServer, **options: Any) -> ChatOpenAI:
        return ChatOpenAI(
            **{"model": "scripted", "base_url": server.url, "api_key": "key", "max_retries": 0, **options}
        )

    return make
