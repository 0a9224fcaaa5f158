"""The Studio app in `examples/studio_app`, in a real `langgraph dev` of its own."""

import shutil

import httpx
import pytest

from tests.servers import ChatServer
from tests.studio.development_server import ROOT
from tests.tpo_script import phase_of, server_reply

pytestmark = pytest.mark.subprocess

APP = ROOT / "examples" / "studio_app"


def reply(request, number):
    """The script, with one draft and all revisions in the style of the house."""
    if number == 0:
        return "Hello, over there."
    if phase_of(request.text) == "update":
        return f"<revised_response>Dear reader, thank you. {number}</revised_response>"
    return server_reply(request, number)


@pytest.fixture(scope="module")
def policy():
    with ChatServer(answer=reply) as server:
        yield server


@pytest.fixture(scope="module")
def http(tmp_path_factory, policy):
    pytest.importorskip("langgraph_api", reason="langgraph dev is in langgraph-cli[inmem]")
    from tests.studio.development_server import DevelopmentServer

    # paths in a langgraph.json are those of the folder in which the command is given
    folder = shutil.copytree(APP, tmp_path_factory.mktemp("app"), dirs_exist_ok=True)
    variables = {"TPO_POLICY": f"server:{policy.url}#scripted"}
    with DevelopmentServer(folder, config=folder / "langgraph.json", **variables) as server:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            yield client
        assert "BlockingError" not in server.log.read_text()


def test_a_letter_is_answered_by_the_rules_and_the_reward_of_the_house(http, policy):
    asked = {"assistant_id": "letters", "input": {"letter": "Where are the maps?"}}
    state = http.post("/runs/wait", json=asked).json()
    assert state["reply"].startswith("Dear reader, thank you. ") and state["reply"].endswith("\n\nYour library")
    assert [message["type"] for message in state["messages"]] == ["system", "human", "ai"]
    assert [phase_of(request.text) for request in policy.requests] == ["sample", "loss", "gradient", "update"]
    assert "You answer letters of a library's readers." in policy.requests[0].text
    assert state["messages"][-1]["response_metadata"]["tpo"]["reward"] == 2.0


def test_every_knob_of_the_loop_is_the_apps_own(http):
    (found,) = http.post("/assistants/search", json={"graph_id": "letters"}).json()
    fields = http.get(f"/assistants/{found['assistant_id']}/schemas").json()["context_schema"]["properties"]
    assert {"n", "policy", "loss_prompt", "ask"} <= fields.keys()
    assert fields["reward"]["default"] == "python:house_style:house_style"


def test_a_person_in_the_loop_is_asked_inside_it(http):
    thread = http.post("/threads", json={}).json()["thread_id"]
    run = {"assistant_id": "letters", "context": {"ask": True, "mode": "bon"}}
    state = http.post(f"/threads/{thread}/runs/wait", json={**run, "input": {"letter": "Where?"}}).json()
    chosen = state["__interrupt__"][0]["value"]["candidates"][-1]
    state = http.post(f"/threads/{thread}/runs/wait", json={**run, "command": {"resume": chosen["id"]}}).json()
    assert state["reply"] == f"{chosen['text']}\n\nYour library"
