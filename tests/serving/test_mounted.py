"""The app that langgraph.json mounts: who may ask it, and that it leaves LangGraph's own paths alone."""

import importlib.util
import json
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tests.servers import ChatServer
from tests.tpo_script import server_reply

CONFIG = json.loads((Path(__file__).parents[2] / "langgraph.json").read_text())
BODY = {"model": "bon-2", "messages": [{"role": "user", "content": "q"}]}
OTHER = {"authorization": "Bearer secret", "host": "other.example"}


@pytest.fixture
def behind():
    with ChatServer(answer=server_reply) as server:
        yield server


@pytest.fixture
def mounted(monkeypatch, behind):
    """Makes a client of the mounted app within what LangGraph puts around it."""

    async def thread(_):
        raise HTTPException(404, "no such thread")

    def make(**variables):
        monkeypatch.setenv("TPO_POLICY", f"a=server:{behind.url}#one b=server:{behind.url}#two")
        monkeypatch.setenv("TPO_REWARD", "length:1-9 words")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        path, name = CONFIG["http"]["app"].split(":")
        spec = importlib.util.find_spec(path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        app = getattr(module, name)
        assert isinstance(app, Starlette)
        own = {HTTPException: lambda _, error: JSONResponse({"detail": error.detail}, error.status_code)}
        app.exception_handlers = own | app.exception_handlers
        app.user_middleware = [*app.user_middleware, Middleware(CORSMiddleware, **CONFIG["http"]["cors"])]
        app.router.routes = [*app.routes, Mount("", routes=[Route("/threads/1", thread)])]
        return TestClient(app, base_url="http://localhost:2024")

    return make


def test_it_serves_the_policies_of_its_variables(mounted, behind):
    client = mounted()
    assert client.post("/v1/chat/completions", json={**BODY, "model": "bon-2/b"}).status_code == 200
    assert behind.bodies[0]["model"] == "two"
    assert client.get("/v1/models/tpo-d1/a").json()["id"] == "tpo-d1/a"
    refused = client.post("/v1/chat/completions", json={**BODY, "n": 2})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_without_a_key_it_answers_to_the_names_of_this_machine_alone(mounted):
    client = mounted()
    for host in ("localhost", "localhost:2024", "127.0.0.1:2024", "[::1]:2024"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for path in ("/v1/models", "/v1/models/tpo", "/health", "/metrics"):
        assert client.get(path, headers={"host": "other.example"}).status_code == 400
    assert client.post("/v1/chat/completions", json=BODY, headers={"host": "other.example"}).status_code == 400


def test_with_a_key_it_answers_to_any_name(mounted):
    client = mounted(TPO_API_KEY="secret more")
    assert client.post("/v1/chat/completions", json=BODY, headers=OTHER).status_code == 200
    assert client.post("/v1/chat/completions", json=BODY).status_code == 401


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://smith.langchain.com", True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1", True),
        ("https://other.example", False),
        ("http://localhost.other.example", False),
        ("https://smith.langchain.com.other.example", False),
        ("null", False),
    ],
)
def test_only_studio_and_pages_of_this_machine_may_ask(mounted, behind, origin, allowed):
    asks = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    client = mounted()
    for path in ("/v1/chat/completions", "/threads/1"):
        response = client.options(path, headers=asks)
        assert (response.status_code == 200) == allowed
        assert (response.headers.get("access-control-allow-origin") == origin) == allowed
    assert behind.requests == []


def test_langgraphs_own_paths_keep_their_errors_and_any_name(mounted):
    response = mounted().get("/threads/1", headers={"host": "other.example"})
    assert (response.status_code, response.json()) == (404, {"detail": "no such thread"})
