"""README and docs say what the code does: the pictures, the settings, the commands, the links."""

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_imports import ORDER
from tpo_graph import ConfigurationError, TPOSettings, TPOState, create_tpo_graph
from tpo_graph.cli.commands import graph as print_graph
from tpo_graph.graph.returns import check_result
from tpo_graph.testing import ScriptedChatModel, TableReward

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_the_picture_is_the_graph(capsys):
    print_graph()
    (picture,) = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert picture.strip() == capsys.readouterr().out.split("---\n")[-1].strip()
    drawn = create_tpo_graph(ScriptedChatModel([]), TableReward({})).get_graph()
    edges = {(edge.source, edge.target) for edge in drawn.edges}
    assert set(re.findall(r"(\w+) -\.?->? (\w+);", picture)) == edges
    loop = (DOCS / "images" / "loop.svg").read_text(encoding="utf-8")
    assert set(re.findall(r"<title>(\w+) to (\w+)</title>", loop)) == edges


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_picture_can_be_read_on_light_and_dark_pages():
    styles = re.findall(r"classDef (\w+) (.*)", README)
    assert {name for name, _ in styles} == {"default", "first", "last"}
    for _, style in styles:
        fill, text = (luminance(re.search(rf"\b{part}:(#\w{{6}})", style)[1]) for part in ("fill", "color"))
        assert (fill + 0.05) / (text + 0.05) >= 7  # WCAG's AAA


def test_every_setting_is_in_the_table_with_its_default():
    (table,) = re.findall("<!-- settings: begin -->(.*?)<!-- settings: end -->", page("settings"), re.DOTALL)
    rows = {line.split("|")[1]: line.split("|")[2] for line in table.splitlines() if line.startswith("|")}
    for name, field in TPOSettings.model_fields.items():
        (default,) = [second for first, second in rows.items() if f"`{name}`" in first]
        assert {None: "none", (): "none", "": '""'}.get(field.default, str(field.default)) in default, name


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for text in (README, page("architecture")):
        named = set(re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE))
        assert named and named <= targets


def test_its_tables_are_short():
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert tables and all(table.count("\n") <= 2 + 10 for table in tables)


def test_every_link_leads_somewhere_and_pictures_are_small():
    pages = [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md"))]
    links = [
        page.parent / link
        for page in pages
        for link in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    ]
    assert links and [link for link in links if not link.exists()] == []
    assert [link for link in links if link.suffix in (".svg", ".png") and link.stat().st_size > 300_000] == []


def test_every_example_has_a_line():
    shown = {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith(("_", "."))}
    assert {name for name in shown - {"offline_models.py"} if f"](../examples/{name}" not in page("examples")} == set()


@pytest.mark.parametrize("folder", ["README.md", "docs/index.md"])
def test_the_build_of_torch_for_cpus_is_a_command(folder):
    text = (ROOT / folder).read_text(encoding="utf-8")
    assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in text


def test_every_extra_is_in_the_table():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"^\| `(\w+)` \|", page("index"), re.MULTILINE)) == set(project["optional-dependencies"])


def test_no_page_tells_to_install_a_name_that_is_not_on_the_index():
    texts = [path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "tpo_graph").rglob("*.py")]
    assert not any(re.search(r"pip install [\"']?tpo-graph", text) for text in texts)


def test_what_nodes_must_return_is_what_is_checked():
    rows = [[cell.strip() for cell in line.split("|")] for line in page("nodes").splitlines() if line.startswith("| `")]
    keys = [*TPOState.__annotations__]
    nodes = {row[1].strip("`"): row[3] for row in rows if len(row) == 6}
    assert nodes.keys() == {"sample", "score", "select", "loss", "gradient", "update"}
    for node, documented in nodes.items():
        with pytest.raises(ConfigurationError) as refused:
            check_result(node, {}, {}, known=keys)
        owed = re.findall(r"'(\w+)'", refused.value.hint)
        assert set(re.findall(r"`(\w+)`", documented)) - {"answer"} == set(owed), node
    described = {key for row in rows if len(row) == 5 for key in re.findall(r"`(\w+)`", row[1])}
    assert described == {*keys} - {"query", "drafts"}


def test_code_can_be_parsed_and_what_it_imports_exists():
    imported = set()
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            tree = compile(block, path, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("tpo_graph"):
                    imported |= {(node.module, alias.name) for alias in node.names}
    assert ("tpo_graph", "create_tpo_graph") in imported
    for module, name in imported:
        assert hasattr(import_module(module), name), f"{module} has no {name}"


def test_the_order_of_imports_is_the_one_that_is_checked():
    (order,) = re.findall(r"```text\n(.*?)```", page("architecture"), re.DOTALL)
    assert order.split("\n") == [line.strip() for line in ORDER.split("\n") if line.strip() not in ("", "__main__")] + [
        ""
    ]
