"""Policies by name."""

import inspect
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tpo_graph.errors import ConfigurationError, MissingDependencyError, PolicyError, install_hint
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.types import Options

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_SERVERS = ("vllm", "sglang", "llamacpp", "server")
_HINT = (
    'A policy is one of: "local", "local:0.5b", "local:model.gguf", "openai:gpt-4o-mini", '
    '"vllm:http://127.0.0.1:8000/v1#model", "sglang:...", "llamacpp:...", "server:..." (any other OpenAI-compatible '
    'one), any name of init_chat_model, as in "anthropic:claude-haiku-4-5".'
)


def load_policy(name: str, **options: Options) -> "BaseChatModel":
    """A chat model by name.

    Args:
        name: `local` is the embedded model, fetched once; `local:NAME` another one of `tpo-graph models`,
            `local:hf:OWNER/REPO/FILE.gguf` one of the Hugging Face hub, `local:FILE.gguf` any file;
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
    from tpo_graph.policies.http import loop_safe

    scheme, _, rest = name.strip().partition(":")
    if not scheme:
        raise ConfigurationError("The name of the policy is empty.", hint=_HINT)
    if scheme == "local":
        from tpo_graph.policies.embedded import start_embedded_server
        from tpo_graph.policies.models import CATALOGUE, DEFAULT_MODEL

        of_server = inspect.signature(start_embedded_server).parameters.keys() & options.keys()
        server = start_embedded_server(rest, **{option: options.pop(option) for option in of_server})
        known = CATALOGUE.get(rest or DEFAULT_MODEL)
        pack = known.prompts if known else "tpo" if server.has_chat_template else "base"
        options = {
            "max_retries": 0,
            **options,
            "model": server.model,
            "base_url": server.base_url,
            "api_key": server.api_key,
            "metadata": {"tpo_prompts": pack, **options.get("metadata", {})},
        }
    elif scheme in _SERVERS:
        options = _server_options(name, rest, options)
    elif scheme == "openai" and rest:
        options = {"model": rest, **options}
        if "api_key" not in options and not os.environ.get("OPENAI_API_KEY"):
            raise ConfigurationError(
                f"The policy {name!r} needs an API key and OPENAI_API_KEY is not set.",
                hint="Set it, or use a policy that needs none, as in --policy local.",
            )
    try:
        model: BaseChatModel
        if scheme in ("local", "llamacpp"):
            from tpo_graph.policies.embedded import ChatLlamaCpp

            model = ChatLlamaCpp(**options)
        elif scheme in _SERVERS or (scheme == "openai" and rest):
            from langchain_openai import ChatOpenAI

            model = ChatOpenAI(**options)
        else:
            from langchain.chat_models import init_chat_model

            model = init_chat_model(name, **options)
        return loop_safe(model)
    except ImportError as error:
        raise MissingDependencyError(
            f"The policy {name!r} needs a package that is missing: {ProviderFailure.of(error).summary}.",
            hint="Install the package that it names, or use another policy. For LangChain's init_chat_model: "
            f"{install_hint('langchain')}.",
        ) from error
    except Exception as error:  # each integration has errors of its own for a missing key or a bad option
        raise ConfigurationError(f"The policy {name!r} can't be made: {error}", hint=_HINT) from error


def policy_ids(names: Iterable[str]) -> dict[str, str]:
    """Names of policies by the id that clients use.

    The id is the ALIAS of `ALIAS=NAME`, else the model's own name: what follows `#`, else what follows the scheme.

    Args:
        names: each `NAME` or `ALIAS=NAME`.

    Raises:
        ConfigurationError: two have the same id.
    """
    by_id: dict[str, str] = {}
    for text in names:
        aliased = re.fullmatch(r"(?P<alias>[A-Za-z0-9._-]+)=(?P<name>.+)", text, re.DOTALL)
        if aliased:
            id_, name = aliased["alias"], aliased["name"]
        else:
            name = text
            scheme, _, rest = name.partition(":")
            id_ = name.partition("#")[2] or ("" if "://" in rest else rest) or scheme
        if id_ in by_id:
            raise ConfigurationError(
                f"Two policies are called {id_!r}: {by_id[id_]!r} and {name!r}.",
                hint=f"Give one another id, as in --policy other={name}.",
            )
        by_id[id_] = name
    return by_id


def _server_options(name: str, rest: str, options: dict[str, Options]) -> dict[str, Options]:
    """The options of the chat model of a server; `rest` is what follows the scheme in its name."""
    url, _, model = rest.partition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"The policy {name!r} has no address that begins with http:// or https://.",
            hint='Write it as "vllm:http://127.0.0.1:8000/v1#model".',
        )
    # not the key of another provider, which would go to whoever is at that address; the client wants some text
    key = options.pop("api_key", None) or os.environ.get("TPO_POLICY_API_KEY") or "none"
    return {"model": model or _only_model(url, key), "base_url": url, "api_key": key, **options}


def _only_model(url: str, key: str) -> str:
    """The one model that a server has."""
    import openai

    try:
        with openai.OpenAI(base_url=url, api_key=key, max_retries=1, timeout=10) as client:
            models = [model.id for model in client.models.list()]
        if not all(isinstance(model, str) for model in models):
            raise ValueError(f"models without a name: {models}")
    except Exception as error:  # openai's, and what reading an answer of another form raises
        failure = ProviderFailure.of(error)
        if failure.kind == "key":
            message = f"The server at {url} does not accept the key: {failure.summary}."
            hint = "Give its key as api_key=, or in the variable TPO_POLICY_API_KEY."
        else:
            message = f"The server at {url} does not list its models: {failure.summary}."
            hint = "Is it running, and does the address end as its documentation says (often /v1)?"
        raise PolicyError(message, hint=hint) from error
    if len(models) != 1:
        raise ConfigurationError(
            f"The server at {url} has {len(models)} models: {', '.join(models)}.", hint=f"Name one: {url}#MODEL."
        )
    return models[0]
