"""README and docs say what the code does: the picture, the settings, the commands, the links."""

import re
from pathlib import Path

from tpo_graph import TPOSettings, create_tpo_graph
from tpo_graph.testing import ScriptedChatModel, TableReward

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_is_the_graph():
    drawn = create_tpo_graph(ScriptedChatModel([]), TableReward({})).get_graph().draw_mermaid()
    without_header = drawn.split("---\n")[-1].strip()
    (picture,) = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert picture.strip() == without_header


def test_every_setting_is_in_the_table_with_its_default():
    rows = {line.split("|")[1]: line.split("|")[2] for line in README.splitlines() if line.startswith("|")}
    for name, field in TPOSettings.model_fields.items():
        (default,) = [second for first, second in rows.items() if f"`{name}`" in first]
        assert {None: "none", (): "none", "": '""'}.get(field.default, str(field.default)) in default, name


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_every_link_leads_somewhere_and_pictures_are_small():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = [
        page.parent / link
        for page in pages
        for link in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    ]
    assert links and [link for link in links if not link.exists()] == []
    assert [link for link in links if link.suffix in (".svg", ".png") and link.stat().st_size > 300_000] == []


def test_every_example_has_a_line():
    shown = {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith(("_", "."))}
    assert {name for name in shown - {"offline_models.py"} if f"](examples/{name}" not in README} == set()
