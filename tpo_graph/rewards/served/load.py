"""Served reward models by name: what follows the scheme is `URL#MODEL`."""

import os
from typing import Any, TypedDict, TypeVar

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.served.endpoint import Endpoint
from tpo_graph.rewards.served.nim import NIMReward
from tpo_graph.rewards.served.openrlhf import OpenRLHFReward
from tpo_graph.rewards.served.rendering import Renderer
from tpo_graph.rewards.served.reward import ServedReward
from tpo_graph.rewards.served.sglang import SGLangReward
from tpo_graph.rewards.served.tei import TEIReward
from tpo_graph.rewards.served.vllm import VLLMPoolingReward, VLLMReward

__all__ = ["load_nim", "load_openrlhf", "load_sglang", "load_tei", "load_vllm", "load_vllm_pooling"]

_ENDPOINT = ("api_key", "timeout", "attempts", "retry_wait", "max_concurrency")
_RENDERER = ("revision", "chat_template", "trust_remote_code", "sanitize")
_LENGTH = ("max_length", "truncation")  # where token ids are sent

Made = TypeVar("Made", bound="ServedReward[Any]")  # Any: what a server is sent is the class's own affair


class _Parts(TypedDict):
    endpoint: Endpoint
    renderer: Renderer


def load_vllm(name: str, **options: Any) -> VLLMReward:  # Any: each option is checked by what takes it
    """A reward model behind vLLM's `/classify`.

    Args:
        name: `URL#MODEL`, as in "http://127.0.0.1:8000#Skywork/Skywork-Reward-V2-Llama-3.1-8B".
        **options: `tokenizer` (a hub name or folder; MODEL when left out), `revision`, `chat_template`,
            `trust_remote_code`, `sanitize`, `max_length`, `truncation`; `api_key`, `timeout` (seconds), `attempts`,
            `retry_wait` (seconds), `max_concurrency`, `batch_size`; `activation_field`.

    Raises:
        ConfigurationError: an address, a name or an option that can't be used.
    """
    parts, model = _parts("vllm", VLLMReward.server, name, options, *_LENGTH)
    return VLLMReward(**parts, model=model, **options)


def load_vllm_pooling(name: str, **options: Any) -> VLLMPoolingReward:  # Any: as above
    """A reward model behind vLLM's `/pooling`: `load_vllm`'s arguments, and `task`."""
    parts, model = _parts("vllm-pooling", VLLMPoolingReward.server, name, options, *_LENGTH)
    return VLLMPoolingReward(**parts, model=model, **options)


def load_sglang(name: str, **options: Any) -> SGLangReward:  # Any: as above
    """A reward model behind SGLang's `/classify`: `load_vllm`'s arguments without `activation_field`."""
    parts, model = _parts("sglang", SGLangReward.server, name, options, *_LENGTH)
    return SGLangReward(**parts, model=model, **options)


def load_tei(name: str, **options: Any) -> TEIReward:  # Any: as above
    """A reward model behind TEI: `load_sglang`'s arguments without `max_length` and `truncation`, and `truncate`."""
    parts, _ = _parts("tei", TEIReward.server, name, options)
    return TEIReward(**parts, **options)


def load_openrlhf(name: str, **options: Any) -> OpenRLHFReward:  # Any: as above
    """A reward model behind OpenRLHF's `/get_reward`: `load_tei`'s arguments without `truncate`."""
    url, mark, model = name.partition("#")
    # OpenRLHF's own option for it, --remote_rm_url, takes the whole path
    parts, _ = _parts("openrlhf", OpenRLHFReward.server, url.removesuffix("/get_reward") + mark + model, options)
    return OpenRLHFReward(**parts, **options)


def load_nim(name: str, **options: Any) -> NIMReward:  # Any: as above
    """A reward model that answers chat completions, as NVIDIA NIM serves them.

    Args:
        name: `URL#MODEL`; the model is needed.
        **options: `attribute`; `api_key` (the variable NVIDIA_API_KEY when left out), `timeout`, `attempts`,
            `retry_wait`, `max_concurrency`.

    Raises:
        ConfigurationError: an address, a name or an option that can't be used.
    """
    url, _, model = name.partition("#")
    if not model:
        raise ConfigurationError(f"'nim:{name}' names no model.", hint="Write it as nim:URL#MODEL.")
    options.setdefault("api_key", os.environ.get("NVIDIA_API_KEY"))
    endpoint = Endpoint(url, server=NIMReward.server, **_take(options, *_ENDPOINT))
    return NIMReward(endpoint, model=model, **options)


def _parts(
    scheme: str,
    server: str,
    name: str,
    options: dict[str, Any],  # Any: as above
    *more: str,
) -> tuple[_Parts, str | None]:
    """The server and the renderer that a name and its options describe; the options that they take are taken out."""
    url, _, model = name.partition("#")
    tokenizer = options.pop("tokenizer", None) or model
    if not tokenizer:
        raise ConfigurationError(
            f"'{scheme}:{name}' names no model, so that its chat template is not known.",
            hint=f"Write it as {scheme}:URL#MODEL, or pass tokenizer=..., a name on the Hugging Face hub or a folder.",
        )
    endpoint = Endpoint(url, server=server, **_take(options, *_ENDPOINT))
    renderer = Renderer(tokenizer, **_take(options, *_RENDERER, *more))
    return {"endpoint": endpoint, "renderer": renderer}, model or None


def _take(options: dict[str, Any], *names: str) -> dict[str, Any]:  # Any: as above
    return {name: options.pop(name) for name in names if name in options}
