"""The site can be built, asks nobody for anything, and has every public name; its notebook runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tpo_graph

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the site is built by the dependency group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # without a proxy that works, nothing can be fetched
    variables = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "nodes.html", "notebook.html", "reliability.html"} <= {path.name for path in pages}
    for path, html in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe|link rel=\"(?:stylesheet|preload|preconnect))\b[^>]*>", html)
        assert not [tag for tag in loaded if re.search(r"(?:src|href)=\"(?:https?:)?//", tag)], path
        assert 'class="mermaid"' not in html, "the theme would fetch a library for it"


def test_docstrings_have_the_headings_that_the_reference_reads():
    for path in (ROOT / "tpo_graph").rglob("*.py"):
        assert not re.search(r"^ *(?:Example|Arg|Return|Raise|Attribute):$", path.read_text(encoding="utf-8"), re.M), (
            path
        )


def test_every_public_name_is_in_the_reference(site):
    ids = {found for path in site.glob("api/*.html") for found in re.findall(r'id="([\w.]+)"', path.read_text())}
    assert {f"tpo_graph.{name}" for name in tpo_graph.__all__ if not name.endswith("Error")} - ids == {
        "tpo_graph.Candidate",  # with the other records, below
        "tpo_graph.TPOState",
    }
    assert {"tpo_graph.types.Candidate", "tpo_graph.graph.state.TPOState", "tpo_graph.errors.PolicyError"} <= ids


@pytest.mark.embedded
def test_the_notebook_runs(embedded_model, monkeypatch, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("NOTEBOOK_POLICY", embedded_model)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert "stopped by" in "".join(output["text"] for output in notebook.cells[-2]["outputs"]), "it shows a run"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in notebook.cells]
    drafts, records = printed[-4], printed[-2]
    assert re.search(r"first draft: \d of 3 rules", drafts) and re.search(r"answer: \d of 3 rules", drafts)
    assert "step 0: best reward" in records and "stopped by" in records
