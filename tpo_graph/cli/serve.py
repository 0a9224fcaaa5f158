"""`tpo-graph serve`: an OpenAI-compatible server."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_graph.cli.display import Event, ModelLoaded, ModelLoading, Part
from tpo_graph.cli.options import explicit_settings, with_setting_flags
from tpo_graph.errors import ConfigurationError, MissingDependencyError
from tpo_graph.policies.load import policy_ids
from tpo_graph.settings import TPOSettings

_MODELS = "Models and prompts"
_SERVER = "The server"
_LIMITS = "Limits"


@with_setting_flags
def serve(
    *,
    policy: Annotated[
        list[str],
        typer.Option(
            envvar="TPO_POLICY",
            metavar="[ID=]NAME",
            help="A model that answers, by any name that `run --policy` takes; ID is what clients call it. May be "
            "given several times; the first is the default.",
            rich_help_panel=_MODELS,
        ),
    ] = ["local"],  # noqa: B006  # Typer copies it
    reward: Annotated[
        str,
        typer.Option(
            envvar="TPO_REWARD",
            metavar="NAME",
            help="The reward model: local (a demonstration), or any name of load_reward.",
            rich_help_panel=_MODELS,
        ),
    ] = "local",
    critic: Annotated[
        str | None,
        typer.Option(
            envvar="TPO_CRITIC",
            metavar="NAME",
            help="The model that writes loss and gradient. Default: the policy of the request.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            envvar="TPO_PROMPTS",
            metavar="NAME",
            help="A prompt pack, by name or folder. Default: the one that suits the policy.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file of settings. Flags and TPO_* variables come before it.",
            metavar="FILE.toml",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to serve at.", metavar="ADDRESS", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port; 0 takes one that is free.", min=0, max=65535, rich_help_panel=_SERVER)
    ] = 8123,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TPO_API_KEY",
            metavar="KEY",
            help="A key that clients have to send; may be given several times. Other users of the machine can read "
            "flags: the variable is safer.",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="Serve other machines with no key at all.", rich_help_panel=_SERVER),
    ] = False,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line for each request.", rich_help_panel=_SERVER)
    ] = False,
    grace_seconds: Annotated[
        float,
        typer.Option(
            help="How long requests may go on after Ctrl-C or SIGTERM; a second Ctrl-C ends that wait.",
            min=0,
            metavar="NUMBER",
            rich_help_panel=_SERVER,
        ),
    ] = 30.0,
    max_concurrency: Annotated[
        int, typer.Option(help="Requests at the same time; more get a 429.", min=1, rich_help_panel=_LIMITS)
    ] = 64,
    max_body_bytes: Annotated[
        int, typer.Option(help="Bytes of a request at most.", min=1, rich_help_panel=_LIMITS)
    ] = 20 * 1024 * 1024,
    max_body_seconds: Annotated[
        float,
        typer.Option(
            help="How long the body of a request may take to arrive.", metavar="NUMBER", rich_help_panel=_LIMITS
        ),
    ] = 60.0,
    max_n: Annotated[
        int, typer.Option(help="N at most, wherever a client names it.", min=1, rich_help_panel=_LIMITS)
    ] = 64,
    max_depth: Annotated[int, typer.Option(help="D at most, likewise.", min=0, rich_help_panel=_LIMITS)] = 20,
    keep_alive_seconds: Annotated[
        float,
        typer.Option(
            help="How long a stream may be silent before it gets a comment, so that proxies keep it open.",
            metavar="NUMBER",
            rich_help_panel=_LIMITS,
        ),
    ] = 10.0,
    **settings: Any,  # Any: one flag for each setting
) -> None:
    """Serve TPO as OpenAI's API: /v1/chat/completions and /v1/models, for apps in any language.

    A client names a recipe as its model: tpo, tpo-d2-n5, revision-d3-n4, bon-16, or RECIPE/ID for one of several
    policies. Settings given here are the defaults of every request.
    """
    app, limits = _serving()
    keys = api_key or []
    loopback = app.is_loopback(host)
    _check_host(host, loopback=loopback, has_key=bool(keys), without_key=without_key)
    names = policy_ids(policy)
    chosen = TPOSettings.load(config, **explicit_settings(settings))
    pack = _pack(prompts, chosen)
    allowed = limits.Limits(
        max_body_bytes=max_body_bytes,
        max_concurrency=max_concurrency,
        max_n=max_n,
        max_depth=max_depth,
        max_body_seconds=max_body_seconds,
        keep_alive_seconds=keep_alive_seconds,
    )
    # before the models, whose loading may take minutes
    with app.bind(host, port) as listening:
        policies, loaded = _load(names, reward, critic)
        served = app.create_app(
            policies,
            loaded["reward model"],
            critic=loaded.get("critic"),
            prompts=pack,
            settings=chosen,
            api_keys=keys,
            limits=allowed,
        )
        if loopback and not keys:
            app.allow_only_local_hosts(served, host)
        address, taken = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        _say(f"serving at http://{shown}:{taken}/v1 (Ctrl-C ends it)")
        _say(f"policies: {', '.join(policies)}; models: tpo, tpo-d2-n5, revision, bon-16, ...; see /v1/models")
        app.serve(served, listening, grace_seconds=grace_seconds, log_requests=log_requests)
    _say("ended")


def _serving() -> tuple[Any, Any]:  # Any: modules of an optional part
    try:
        from tpo_graph.serving import app, limits
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise MissingDependencyError(
            f"The server needs the package {error.name}.", hint='Install it with: pip install "tpo-graph[serve]".'
        ) from error
    return app, limits


def _check_host(host: str, *, loopback: bool, has_key: bool, without_key: bool) -> None:
    if loopback or has_key:
        return
    if not without_key:
        raise ConfigurationError(
            f"At {host} other machines can reach the server, and it has no API key.",
            hint="Set TPO_API_KEY (or give --api-key), serve at 127.0.0.1, or say --without-key.",
        )
    _say(f"warning: at {host} other machines can reach the server, and it asks for no API key")


def _pack(prompts: str | None, chosen: TPOSettings) -> Any:  # Any: a pack, whose module is slow to import
    if prompts is None:
        return None
    from tpo_graph.prompts.pack import PromptPack

    pack = PromptPack.load(prompts)
    pack.check(chosen)
    return pack


def _load(
    names: dict[str, str], reward: str, critic: str | None
) -> tuple[dict[str, Any], dict[Part, Any]]:  # Any: chat models and reward models
    from tpo_graph.cli.session import load_all, load_by_name

    first, *others = names
    parts: dict[Part, str] = {"policy": names[first], "reward model": reward}
    if critic is not None:
        parts["critic"] = critic
    loaded = load_all(parts, load_by_name, _tell)
    policies = {first: loaded["policy"]}
    for each in others:
        _tell(ModelLoading("policy", names[each]))
        policies[each] = load_by_name("policy", names[each])
    return policies, loaded


def _tell(event: Event) -> None:
    if isinstance(event, ModelLoading):
        _say(f"loading {event.part} {event.name}")
    elif isinstance(event, ModelLoaded):
        _say(f"{event.part} {event.name} loaded in {event.seconds:.1f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
