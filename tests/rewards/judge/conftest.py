"""Judges behind a real server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from tests.rewards.judge.wire import JudgeServer
from tests.servers import Host

CONVERSATION = [SystemMessage("Be brief."), HumanMessage("Why is the sky blue?")]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def serve(host: Host) -> Callable[..., tuple[JudgeServer, ChatOpenAI]]:
    """Starts a server and makes a chat model of it, as a person would."""

    def start(judge: Callable[[list[str]], Any], **options: Any) -> tuple[JudgeServer, ChatOpenAI]:
        server = host.add(JudgeServer(judge, **options))
        return server, ChatOpenAI(model="judge", base_url=f"{server.url}/v1", api_key="key", max_retries=0)

    return start
