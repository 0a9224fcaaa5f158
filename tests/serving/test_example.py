"""The example runs offline and does what it says."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.fresh_process import run_script

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


@pytest.mark.subprocess
def test_importing_the_mounted_app_loads_no_model():
    script = """
        import sys
        import tpo_graph.serving.mounted
        assert not {"torch", "transformers", "langgraph_api"} & sys.modules.keys()
    """
    result = run_script(script)
    assert (result.stderr, result.returncode) == ("", 0)
