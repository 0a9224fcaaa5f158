"""A policy by name."""

import inspect
import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tpo_graph.errors import ConfigurationError, MissingDependencyError, PolicyError
from tpo_graph.policies.providers import ProviderFailure

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


# Several policies, each by the id that people use for it.

_ALIAS = re.compile(r"(?P<alias>[A-Za-z0-9._-]+)=(?P<name>.+)", re.DOTALL)


def policy_ids(names: Iterable[str]) -> dict[str, str]:
    """Names of policies by the id that clients use.

    The id is the ALIAS of `ALIAS=NAME`, else the model's own name: what follows `#`, else what follows the scheme.

    Raises:
        ConfigurationError: two have the same id.
    """
    found: dict[str, str] = {}
    for each in names:
        given = _ALIAS.fullmatch(each)
        alias, name = (given["alias"], given["name"]) if given else (_own_name(each), each)
        if alias in found:
            raise ConfigurationError(
                f"Two policies are called {alias!r}: {found[alias]!r} and {name!r}.",
                hint=f"Give one another id, as in --policy other={name}.",
            )
        found[alias] = name
    return found


def _own_name(name: str) -> str:
    scheme, _, rest = name.partition(":")
    model = name.partition("#")[2] or ("" if "://" in rest else rest)
    return model or scheme


_SERVERS = ("vllm", "sglang", "llamacpp", "server")
_FORMS = (
    '"local"',
    '"local:model.gguf"',
    '"openai:gpt-4o-mini"',
    '"vllm:http://127.0.0.1:8000/v1#model"',
    '"sglang:..."',
    '"llamacpp:..."',
    '"server:..." (any other OpenAI-compatible one)',
    'any name of init_chat_model, as in "anthropic:claude-haiku-4-5"',
)
_HINT = f"A policy is one of: {', '.join(_FORMS)}."


def load_policy(name: str, **options: Any) -> "BaseChatModel":  # Any: each chat model class has its own options
    """A chat model by name.

    Args:
        name: `local` is the embedded Gemma 3 270M, `local:FILE` another GGUF file in the same engine;
            `openai:MODEL`; `vllm:URL#MODEL` and the like for an OpenAI-compatible server (without `#MODEL` the
            one model that the server has); anything else goes to LangChain's `init_chat_model`.
        **options: arguments of the chat model, as in `timeout=60`; for `local` those of `start_embedded_server` too.
            The key of a server given by its URL is `api_key=`, else the variable `TPO_POLICY_API_KEY`; the provider's
            own key, as in `OPENAI_API_KEY`, is never sent there.

    Returns:
        The model. Its `metadata["tpo_prompts"]` names the prompt pack that suits it, where it is not `tpo`.
        Models of OpenAI-compatible servers can be used from one event loop after another.

    Raises:
        ConfigurationError: the name can't be understood, or a key is missing.
        MissingDependencyError: a package that the name needs is not installed.
        PolicyError: the server does not answer, or the embedded model does not start.
    """
    scheme, _, rest = name.strip().partition(":")
    if not scheme:
        raise ConfigurationError("The name of the policy is empty.", hint=_HINT)
    if scheme == "local":
        return _embedded(rest or None, options)
    if scheme in _SERVERS:
        return _served(name, rest, options)
    if scheme == "openai" and rest:
        return _openai(name, {"model": rest, **options})
    return _by_langchain(name, options)


def _embedded(gguf: str | None, options: dict[str, Any]) -> "BaseChatModel":
    from tpo_graph.policies.embedded import start_embedded_server

    of_server = inspect.signature(start_embedded_server).parameters.keys() & options.keys()
    server = start_embedded_server(gguf, **{each: options.pop(each) for each in of_server})
    suited = {"tpo_prompts": "tpo" if server.has_chat_template else "base"}
    own = {"model": server.model, "base_url": server.base_url, "api_key": server.api_key}
    metadata = {**suited, **options.pop("metadata", {})}
    return _openai("llamacpp:local", {"max_retries": 0, **options, **own, "metadata": metadata})


def _served(name: str, rest: str, options: dict[str, Any]) -> "BaseChatModel":
    url, _, model = rest.partition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"The policy {name!r} has no address that begins with http:// or https://.",
            hint='Write it as "vllm:http://127.0.0.1:8000/v1#model".',
        )
    # not the key of another provider, which would go to whoever is at that address; the client wants some text
    key = options.pop("api_key", None) or os.environ.get("TPO_POLICY_API_KEY") or "none"
    model = model or _only_model(url, key)
    return _openai(name, {"model": model, "base_url": url, "api_key": key, **options})


def _only_model(url: str, key: str) -> str:
    """The one model that a server has."""
    import openai

    try:
        with openai.OpenAI(base_url=url, api_key=key, max_retries=1, timeout=10) as client:
            models = [model.id for model in client.models.list()]
    except openai.AuthenticationError as error:
        raise PolicyError(
            f"The server at {url} does not accept the key: {ProviderFailure.of(error).summary}.",
            hint="Give its key as api_key=, or in the variable TPO_POLICY_API_KEY.",
        ) from error
    except openai.OpenAIError as error:
        raise PolicyError(
            f"The server at {url} does not tell its models: {ProviderFailure.of(error).summary}.",
            hint="Is it running, and does the address end as its documentation says (often /v1)?",
        ) from error
    if len(models) != 1:
        raise ConfigurationError(
            f"The server at {url} has {len(models)} models: {', '.join(models)}.", hint=f"Name one: {url}#MODEL."
        )
    return models[0]


def _openai(name: str, options: dict[str, Any]) -> "BaseChatModel":
    from langchain_openai import ChatOpenAI

    from tpo_graph.policies.embedded import ChatLlamaCpp
    from tpo_graph.policies.http import loop_safe

    kind = ChatLlamaCpp if name.startswith("llamacpp:") else ChatOpenAI

    if "api_key" not in options and not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError(
            f"The policy {name!r} needs an API key and OPENAI_API_KEY is not set.",
            hint="Set it, or use a policy that needs none, as in --policy local.",
        )
    return loop_safe(_build(name, lambda: kind(**options)))


def _by_langchain(name: str, options: dict[str, Any]) -> "BaseChatModel":
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingDependencyError(
            f"The policy {name!r} needs LangChain's init_chat_model.",
            hint=f'Install it with: pip install "tpo-graph[langchain]", or use another. {_HINT}',
        ) from error
    from tpo_graph.policies.http import loop_safe

    return loop_safe(_build(name, lambda: init_chat_model(name, **options)))


def _build(name: str, make: "Callable[[], BaseChatModel]") -> "BaseChatModel":
    """Call a chat model's constructor with its errors mapped to ours."""
    try:
        return make()
    except ImportError as error:
        raise MissingDependencyError(
            f"The policy {name!r} needs a package that is missing: {ProviderFailure.of(error).summary}.",
            hint="Install the package that it names, or use another policy.",
        ) from error
    except Exception as error:  # each integration has errors of its own for a missing key or a bad option
        raise ConfigurationError(f"The policy {name!r} can't be made: {error}", hint=_HINT) from error
