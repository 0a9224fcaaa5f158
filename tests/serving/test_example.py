"""The example runs offline and does what it says; the app of the environment serves too."""

import runpy
import sys
from pathlib import Path

import httpx

from tests.fresh_process import run_script
from tests.serving.conftest import served

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "offline_models", raising=False)
    monkeypatch.setattr(sys, "argv", ["serving.py"])
    try:
        runpy.run_path(str(EXAMPLES / "serving.py"), run_name="__main__")
    finally:
        sys.modules.pop("offline_models", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("In the warmth your vessels widen and your blood pressure falls")
    assert [line.partition(":")[0] for line in lines[1:3]] == ["step 0", "step 1"]
    assert lines[-2].endswith(" tokens in all")
    assert lines[-1] == "In the warmth the body works less, so you feel sleepy."


def test_the_app_of_the_environment(monkeypatch, chat_server):
    monkeypatch.setenv("TPO_POLICY", f"m=server:{chat_server().url}#scripted")
    monkeypatch.setenv("TPO_REWARD", "length:1-9 words")
    monkeypatch.setenv("TPO_API_KEY", "first second")
    monkeypatch.delitem(sys.modules, "tpo_graph.serving.mounted", raising=False)
    from tpo_graph.serving.mounted import app

    sys.modules.pop("tpo_graph.serving.mounted")
    body = {"model": "bon-2/m", "messages": [{"role": "user", "content": "q"}]}
    with served(app) as running:
        assert running.post(body).status_code == 401
        response: httpx.Response = running.post(body, headers={"authorization": "Bearer second"})
    assert response.json()["choices"][0]["message"]["content"] == "cand 0"


def test_importing_it_loads_no_model():
    script = """
        import sys
        import tpo_graph.serving.mounted
        assert not {"torch", "transformers", "langgraph_api"} & sys.modules.keys()
    """
    ended = run_script(script)
    assert (ended.stderr, ended.returncode) == ("", 0)
