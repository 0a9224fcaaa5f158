"""What every test starts from: no settings in the environment, and a server where one is asked for."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_openai import ChatOpenAI

from tests.servers import ChatServer
from tests.tpo_script import server_reply

_HEAVY = re.compile(r"^(?:import|from) (?:torch|transformers)\b", re.MULTILINE)


def pytest_configure() -> None:
    """Prepare the process, before anything heavy is imported."""
    # a shell starts its background jobs with Ctrl-C ignored, and what the tests start would inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # tiny models are fastest on one thread, and with a pool of threads each, the workers would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare `make unit` the seconds that importing torch takes: reading a module is enough to leave it out."""
    leaves_torch_out = "not torch" in (config.getoption("markexpr") or "")
    if leaves_torch_out and collection_path.suffix == ".py" and _HEAVY.search(collection_path.read_text("utf-8")):
        return True
    return None


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


@pytest.fixture(scope="session")
def embedded_model() -> str:
    """The smallest embedded model, fetched once; what needs it is left out where it can't be had."""
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-m", "tpo_graph", "models", "get", "135m"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(ended.stderr)
    return "local:135m"


@pytest.fixture
def chat_server() -> Iterator[Callable[..., ChatServer]]:
    """Starts servers that play the script of all four phases; they end with the test."""
    servers: list[ChatServer] = []

    def start(**options: Any) -> ChatServer:
        servers.append(ChatServer(**{"answer": server_reply, **options}).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def chat_openai() -> Callable[..., ChatOpenAI]:
    """Makes a ChatOpenAI of a server, as a person would."""

    def make(server: ChatServer, **options: Any) -> ChatOpenAI:
        return ChatOpenAI(
            **{"model": "scripted", "base_url": server.url, "api_key": "key", "max_retries": 0, **options}
        )

    return make
