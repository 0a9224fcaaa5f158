"""The pages of docs/ link to what is there, and their pictures are small."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKS = [
    (page, link)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for link in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.name}: {link}" for page, link in LINKS])
def test_what_it_links_to_is_there(page, link):
    target = page.parent / link
    assert target.exists()
    assert target.suffix not in (".svg", ".png") or target.stat().st_size < 300_000
