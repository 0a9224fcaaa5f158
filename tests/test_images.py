"""Container images: what `langgraph dockerfile` makes of the langgraph.json files, and the Dockerfile of the server."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
EXTRAS = {extra: ALL_EXTRAS[extra] for extra in ("local", "langchain", "serve", "verifiers")}


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile and what follows it, lines that go on in the next one joined."""
    lines = re.sub(r"\\\n", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.mark.subprocess
@pytest.mark.parametrize("folder", [".", "examples/studio_app"])
def test_langgraph_makes_an_image_that_can_be_parsed_and_has_what_the_app_needs(folder, tmp_path):
    config = ROOT / folder / "langgraph.json"
    made = tmp_path / "Dockerfile"
    command = [sys.executable, "-m", "langgraph_cli", "dockerfile", "-c", str(config), str(made)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT / folder)
    found = instructions(made.read_text(encoding="utf-8"))
    variables = dict(part.split("=", 1) for name, rest in found if name == "ENV" for part in shlex.split(rest))
    written = json.loads(config.read_text(encoding="utf-8"))
    assert json.loads(variables["LANGSERVE_GRAPHS"]).keys() == written["graphs"].keys()
    assert variables["UV_TORCH_BACKEND"] == "cpu"
    assert written["env"].items() <= variables.items()
    installs = " ".join(rest for name, rest in found if name == "RUN" and "install" in rest)
    needed = EXTRAS if folder == "." else {"local": EXTRAS["local"]}
    for package in {re.split("[<>=]", wanted)[0] for packages in needed.values() for wanted in packages}:
        assert package in installs.split(), package
    assert "libgomp1" in installs.split()  # of the system, for the embedded engine
    added = [rest for name, rest in found if name in ("ADD", "COPY")]
    assert any(rest.endswith(f"/deps/{ROOT.name}") for rest in added), "the package itself"


def test_the_server_s_image_is_sent_what_it_copies():
    found = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    copied = {part for name, rest in found if name == "COPY" for part in rest.split()[:-1]}
    sent = {
        line[1:].removesuffix("/**") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert copied == sent and all((ROOT / part).exists() for part in copied)
    (installed,) = [rest for name, rest in found if name == "RUN" and "'.[" in rest]
    assert set(re.search(r"\.\[(.*)\]", installed)[1].split(",")) == EXTRAS.keys()
    assert any("libgomp1" in rest for name, rest in found if name == "RUN")
    (command,) = [json.loads(rest) for name, rest in found if name == "ENTRYPOINT"]
    assert command == ["tpo-graph", "serve", "--host", "0.0.0.0"]
