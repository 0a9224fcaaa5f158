"""Hooks of the site: examples and notebook become pages, and what lies outside of docs/ is named without a link."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"


def on_files(files: Files, config: Any) -> Files:
    """A page for each example, and one for the notebook."""
    for path in sorted(EXAMPLES.rglob("*.py")):
        name = path.relative_to(EXAMPLES).as_posix()
        text = f"# examples/{name}\n\n````python\n{path.read_text(encoding='utf-8')}````\n"
        files.append(File.generated(config, f"examples/{name.removesuffix('.py')}.md", content=text))
    files.append(File.generated(config, "notebook.md", content=notebook_page(DOCS / "notebook.ipynb")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to examples and to the notebook lead to their pages."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+examples/([\w/]+)\.py\)", rf"]({up}examples/\1.md)", markdown)
    markdown = markdown.replace("(notebook.ipynb)", "(notebook.md)")
    return re.sub(r"\[([^\]]+)\]\(" + re.escape(up) + r"\.\./[^)]+\)", r"\1", markdown)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its cells, and what they printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
