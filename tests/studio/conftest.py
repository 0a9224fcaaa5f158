"""One development server and one chat server for all tests of this folder."""

from pathlib import Path

import pytest

from tests.servers import ChatServer
from tests.tpo_script import server_reply

REWARD = f"python:{Path(__file__).parent / 'number_reward.py'}:number"


@pytest.fixture(scope="session")
def studio_chat_server():
    with ChatServer(answer=server_reply) as server:
        yield server


@pytest.fixture(scope="session")
def development_server(tmp_path_factory, studio_chat_server):
    pytest.importorskip("langgraph_api", reason="langgraph dev is in langgraph-cli[inmem]")
    pytest.importorskip("langgraph_cli", reason="langgraph dev is in langgraph-cli[inmem]")
    from tests.studio.development_server import DevelopmentServer

    with DevelopmentServer(tmp_path_factory.mktemp("studio")) as server:
        yield server


@pytest.fixture
async def client(development_server):
    from langgraph_sdk import get_client

    async with get_client(url=development_server.url) as client:
        yield client


@pytest.fixture
async def assistant(client):
    """The id under which Studio finds the graph."""
    (found,) = await client.assistants.search(graph_id="tpo")
    return found["assistant_id"]


@pytest.fixture
def context(studio_chat_server):
    """Names of models that are there, and a short run."""
    studio_chat_server.requests.clear()
    return {"policy": f"server:{studio_chat_server.url}#scripted", "reward": REWARD, "n": 2, "depth": 1}
