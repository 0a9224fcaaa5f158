"""A real `langgraph dev` whose models come from the environment: the graph, and the app that it mounts."""

import httpx
import pytest

from tests.studio import number_reward

pytestmark = pytest.mark.subprocess

LOADED = f"python:{number_reward.__name__}:Loaded"
BODY = {"messages": [{"role": "user", "content": "q"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory, studio_chat_server):
    pytest.importorskip("langgraph_api", reason="langgraph dev is in langgraph-cli[inmem]")
    from tests.studio.development_server import DevelopmentServer

    policies = f"first=server:{studio_chat_server.url}#one second=server:{studio_chat_server.url}#two"
    folder = tmp_path_factory.mktemp("mounted")
    with DevelopmentServer(folder, TPO_POLICY=policies, TPO_REWARD=LOADED, TPO_N="2") as running:
        yield running


@pytest.fixture
def http(server, studio_chat_server):
    studio_chat_server.requests.clear()
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


def test_the_app_answers_there(http, studio_chat_server):
    assert http.get("/health").status_code == 200
    assert "tpo-d2-n5/second" in [model["id"] for model in http.get("/v1/models").json()["data"]]
    answer = http.post("/v1/chat/completions", json={"model": "bon-2/second", **BODY}).json()
    assert answer["choices"][0]["message"]["content"].startswith("cand ")
    assert {body["model"] for body in studio_chat_server.bodies} == {"two"}


def test_the_app_streams_there(http):
    with http.stream("POST", "/v1/chat/completions", json={"model": "bon", "stream": True, **BODY}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream") and lines[-1] == "data: [DONE]"


def test_the_graph_runs_with_the_first_of_the_policies(http, studio_chat_server):
    asked = {"assistant_id": "tpo", "input": {"query": "q"}, "context": {"depth": 1}}
    state = http.post("/runs/wait", json=asked).json()
    assert (state["stop_reason"], len(state["cache"])) == ("depth", 4)
    assert {body["model"] for body in studio_chat_server.bodies} == {"one"}


def test_graph_and_app_load_one_reward_model(http):
    answer = http.post("/v1/chat/completions", json={"model": "bon-1", **BODY}).json()
    state = http.post("/runs/wait", json={"assistant_id": "tpo", "input": {"query": "q"}}).json()
    assert all(1000 <= reward < 2000 for reward in (answer["tpo"]["reward"], state["best"]["reward"]))


def test_nothing_blocked_the_event_loop(server):
    assert "BlockingError" not in server.log.read_text()
