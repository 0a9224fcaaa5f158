"""The README says what the code does: its picture, its settings, its snippets and its commands."""

import re
from pathlib import Path

import pytest

from tpo_graph import TPOSettings, create_tpo_graph
from tpo_graph.testing import ScriptedChatModel, TableReward

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_is_the_graph():
    drawn = create_tpo_graph(ScriptedChatModel([]), TableReward({})).get_graph().draw_mermaid()
    without_header = drawn.split("---\n")[-1].strip()
    (picture,) = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert picture.strip() == without_header


@pytest.mark.parametrize("name", TPOSettings.model_fields)
def test_every_setting_is_in_the_table(name):
    (row,) = [line for line in README.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
    default = TPOSettings.model_fields[name].default
    shown = {None: "none", (): "none", "": '""'}.get(default, str(default))
    assert shown in row.split("|")[2]


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", README, re.MULTILINE)) <= targets


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)#]+)\)", README))
def test_what_it_links_to_is_there(path):
    assert (ROOT / path).exists()


def test_every_example_has_a_line():
    shown = {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith(("_", "."))}
    assert {name for name in shown - {"offline_models.py"} if f"](examples/{name}" not in README} == set()
