"""The embedded policy: a GGUF model behind llama.cpp's OpenAI-compatible server, inside this process.

The model is one of the catalogue in `policies.models`, or a file of your own. A GGUF that brings a chat template (an
instruction-tuned model) keeps that template. One that brings none is a pretrained base model, which follows examples,
not instructions: use it with the prompt pack "base". `EmbeddedServer.has_chat_template` says which it is.
"""

import asyncio
import atexit
import contextlib
import ctypes
import logging
import os
import secrets
import socket
import stat
import struct
import threading
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI

from tpo_graph.errors import ConfigurationError, MissingDependencyError, PolicyError, install_hint
from tpo_graph.policies.models import gguf_file
from tpo_graph.types import JSONObject, Options

_log = logging.getLogger(__name__)

# What a base model reads is the text of the messages and nothing else; llama.cpp puts <bos> before it.
_PASS_THROUGH_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)

# libgomp's own spin count for a machine with more threads than cores (its default is 300,000 and more).
_SPIN_COUNT = "1000"
_MAX_THREADS = 8  # a small model has too little work between two barriers to feed more

_MOST_METADATA = 64 * 2**20  # bytes; a vocabulary of 262,144 tokens takes 15 MB

_BASE_CONTEXT = 16_384  # prompts and answers of the pack "base" are short
_CHAT_PROMPT, _CHAT_ANSWER = 8_192, 2_048  # of the pack "tpo" at its longest: best, loss and gradient, and an answer


@dataclass(frozen=True)
class EmbeddedServer:
    """Where a running server is and what it takes.

    Attributes:
        base_url: for any OpenAI client, on the loopback interface alone.
        api_key: random; a request without it gets status 401.
        model: the file's name without `.gguf`.
        context_tokens: the tokens that all running requests share: the prompt once and each of the n completions.
        slots: completions that run at the same time, and the largest `n` of one request.
        has_chat_template: the file brings its own (then use the prompt pack "tpo", otherwise "base").
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str
    context_tokens: int
    slots: int
    has_chat_template: bool


_Running: TypeAlias = tuple[EmbeddedServer, Any]  # and xllamacpp's Server, which is untyped
_Key: TypeAlias = tuple[Path, int | None, int, int | None]
_lock = threading.Lock()
_running: dict[_Key, _Running] = {}
_waits_are_short = threading.Event()  # libgomp's spin count is small, see `_thread_counts`


def start_embedded_server(
    model: str | os.PathLike[str] = "",
    *,
    threads: int | None = None,
    slots: int = 8,
    context_tokens: int | None = None,
) -> EmbeddedServer:
    """Start a server for a model, or return the one that this process already runs with the same options.

    Blocks while the model is fetched (once) and loads (a second or two, more for a large file): from an event loop
    call it with `asyncio.to_thread`. Safe to call from several threads. The server stops when the process exits.
    llama.cpp's own log reaches stderr only when the logger `tpo_graph.policies.embedded` is enabled for DEBUG.

    Start it before torch is imported if you can: with torch first, both share an OpenMP library whose threads
    spin while they wait, and one core is then left unused (see `_thread_counts`).

    Args:
        model: what follows `local:` in the name of a policy: a name of the catalogue ("" is its default),
            `hf:OWNER/REPO/FILE.gguf`, or a GGUF file.
        threads: threads that compute; None chooses by the CPUs this process may use.
        slots: completions at the same time, at least 1. llama.cpp refuses a request whose `n` is larger.
        context_tokens: see `EmbeddedServer`. A 1.5B model takes 28 KB of memory a token. None gives
            16,384 to a base model; to one with a chat template 8,192 and 2,048 for each slot, so that the longest
            prompt and that many of the longest answers fit. A run that needs more fails with status 500.

    Raises:
        MissingDependencyError: the extra `local` is not installed.
        ConfigurationError: there is no such model, the file is not a GGUF file, or a number is not positive.
        PolicyError: the model can't be fetched, or llama.cpp could not load it.
    """
    for name, value in (("threads", threads), ("slots", slots), ("context_tokens", context_tokens)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} is {value}; it must be 1 or more.")
    with _lock:
        xllamacpp = _import_xllamacpp()
        path = gguf_file(model) if isinstance(model, str) else Path(model).resolve()
        key = (path, threads, slots, context_tokens)
        if key not in _running:
            _running[key] = _start(xllamacpp, path, threads=threads, slots=slots, context_tokens=context_tokens)
        return _running[key][0]


def default_context_tokens(*, slots: int, has_chat_template: bool) -> int:
    """Context for one request in every slot: its prompt once, and the longest answers that its prompt pack asks for."""
    return _CHAT_PROMPT + slots * _CHAT_ANSWER if has_chat_template else _BASE_CONTEXT


class ChatLlamaCpp(ChatOpenAI):
    """A chat model behind llama.cpp's OpenAI-compatible server.

    For a request with n > 1 that server counts the completion tokens of one completion alone. The texts are counted
    with its own `/tokenize` instead; where that is not answered, its number stays.
    """

    @property
    def _llm_type(self) -> str:
        return "llama-cpp-chat"

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Options,
    ) -> ChatResult:
        result = await super()._agenerate(messages, stop, run_manager, **kwargs)
        if len(result.generations) < 2:
            return result
        client = self.root_async_client
        address = str(client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
        try:
            answers = await asyncio.gather(
                *(
                    client.post(address, body={"content": generation.text}, cast_to=JSONObject)
                    for generation in result.generations
                )
            )
        except openai.OpenAIError:
            return result
        output_tokens = sum(len(answer["tokens"]) for answer in answers)
        token_usage = (result.llm_output or {}).get("token_usage")
        if token_usage:
            token_usage["completion_tokens"] = output_tokens
            token_usage["total_tokens"] = (token_usage.get("prompt_tokens") or 0) + output_tokens
        for generation in result.generations:
            if isinstance(generation.message, AIMessage) and generation.message.usage_metadata:
                usage = generation.message.usage_metadata
                usage["output_tokens"] = output_tokens
                usage["total_tokens"] = usage["input_tokens"] + output_tokens
        return result


def _start(xllamacpp: Any, path: Path, *, threads: int | None, slots: int, context_tokens: int | None) -> _Running:
    """Load the model and listen. Sampling defaults stay llama.cpp's own (top_k 40, min_p 0.05 after top_p)."""
    has_chat_template = _has_chat_template(path)
    if context_tokens is None:
        context_tokens = default_context_tokens(slots=slots, has_chat_template=has_chat_template)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    if not has_chat_template:
        params.chat_template = _PASS_THROUGH_TEMPLATE
        # Small base models fall into loops. DRY makes a token less likely that would repeat a run of more than
        # three; a repetition penalty on single words drove answers off their topic ("dog" became "cat").
        params.sampling.dry_multiplier = 0.8
        params.sampling.dry_allowed_length = 3
        params.sampling.dry_penalty_last_n = 256

    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [secrets.token_urlsafe(24)]
    params.cors_origins = ""  # no web page has a reason to talk to it
    params.ui = params.endpoint_slots = False
    params.verbosity = 3 if _log.isEnabledFor(logging.DEBUG) else -1

    params.n_parallel = slots
    params.n_ctx = context_tokens
    # One pool for all slots: the n completions of a request share their prompt's cells instead of copying them.
    params.kv_unified = True
    # Gemma attends to a sliding window; without the whole cache a prompt's prefix can't be reused. With it, a request
    # that shares 505 of 525 prompt tokens with an earlier one computes 20.
    params.swa_full = True
    # A second cache of idle prompts in RAM (8 GB by default): the slots' own cells gave the same reuse without it.
    params.cache_ram_mib = 0
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = _thread_counts(threads)

    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:  # llama.cpp writes the reason to its log alone
        raise PolicyError(
            f"llama.cpp could not load {path} with context_tokens={context_tokens}.",
            hint="The file may be damaged, too new for this xllamacpp or larger than the memory; for llama.cpp's log: "
            f"logging.getLogger({__name__!r}).setLevel(logging.DEBUG)",
        ) from error
    info = EmbeddedServer(
        base_url=f"{server.listening_address}/v1",
        api_key=params.api_keys[0],
        model=path.stem,
        context_tokens=context_tokens,
        slots=slots,
        has_chat_template=has_chat_template,
    )
    return info, server


def _thread_counts(threads: int | None) -> tuple[int, int]:
    """Threads for one token at a time, and for everything else (prompts, and the tokens of n > 1 completions).

    llama.cpp's threads meet at some 300 barriers a token. libgomp spins there for milliseconds; if another
    process holds one of the cores, the thread it displaced keeps the rest spinning and the server all but stops:
    on two cores, two threads ran at 2x the speed of one when idle and at less than 1/10 of it with one core busy.
    With a short spin, two threads for n > 1 run at 1.4x when idle and at 1.1x with one core busy. A single
    stream gains little from the second thread (1.1x) and still loses with a busy core (0.6x), so it leaves one
    core free. Where the spin can't be shortened, everything does.
    """
    if threads is not None:
        return threads, threads
    # the CPUs that this process may use: its affinity, and the quota of its container
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max" for no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, int(quota) // int(period))
    cpus = max(1, min(cpus, _MAX_THREADS))
    spare_one = max(1, cpus - 1)
    return spare_one, cpus if _waits_are_short.is_set() else spare_one


def _import_xllamacpp() -> Any:
    """Import xllamacpp so that its threads stop spinning soon; remember whether that could be arranged."""
    chosen_by_user = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    try:
        was_loaded = "libgomp" in Path("/proc/self/maps").read_text()
    except OSError:  # not Linux: other wheels use other thread pools
        was_loaded = True
    arranged_here = not chosen_by_user and not was_loaded
    if arranged_here:
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT  # libgomp reads it once, when it is loaded
    try:
        try:
            module = import_module("xllamacpp")
        except ImportError as error:
            # Slim container images have no libgomp; torch brings one.
            if "libgomp" not in str(error) or not _preload_libgomp():
                raise
            module = import_module("xllamacpp")
    except ImportError as error:
        missing = "xllamacpp is not installed" if isinstance(error, ModuleNotFoundError) else f"xllamacpp: {error}"
        raise MissingDependencyError(
            f"The embedded policy can't start: {missing}.", hint=f"{install_hint('local')}."
        ) from error
    finally:
        if arranged_here:
            del os.environ["GOMP_SPINCOUNT"]
    is_passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if arranged_here or "GOMP_SPINCOUNT" in chosen_by_user or is_passive:
        _waits_are_short.set()
    return module


def _preload_libgomp() -> bool:
    """Load the libgomp that lies inside torch, without importing torch."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder, "lib").glob("libgomp*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def _has_chat_template(path: Path) -> bool:
    """Whether the file's metadata holds a chat template; also the check that it is a GGUF file at all."""
    # the key as it stands in the file (version 2 and 3, little-endian): its length, itself, and the type "string"
    key = b"tokenizer.chat_template"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)
    try:
        with path.open("rb") as file:
            head = file.read(_MOST_METADATA)
    except OSError as error:
        raise ConfigurationError(f"The GGUF file {path} can't be read: {error}") from error
    if head[:4] != b"GGUF":
        raise ConfigurationError(f"{path} is not a GGUF file: it begins with {head[:4]!r}, not b'GGUF'.")
    return entry in head


@atexit.register
def _stop_all() -> None:
    """Stop every server of this process; the destructor of xllamacpp's Server waits until its threads have ended.

    llama.cpp waits for ever for a request that still has a listener, so the connections are closed first. Both ends of
    a connection are in this process, and so among its file descriptors.
    """
    ports = {int(info.base_url.rsplit(":", 1)[1].removesuffix("/v1")) for info, _ in _running.values()}
    folder = Path("/dev/fd")
    for descriptor in [int(entry.name) for entry in folder.iterdir()] if ports and folder.is_dir() else []:
        with contextlib.suppress(OSError):  # closed meanwhile, or a socket that listens and is not connected
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family == socket.AF_INET and connection.getsockname()[1] in ports:
                    connection.shutdown(socket.SHUT_RDWR)
    _running.clear()


def _abandon_after_fork() -> None:
    """A forked child has the server's objects and none of its threads: it must neither stop nor destroy them."""
    for _, server in _running.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
