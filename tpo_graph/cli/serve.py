"""`tpo-graph serve`: an OpenAI-compatible server."""

import sys
from typing import Annotated

import typer

from tpo_graph.cli.options import (
    MODELS_PANEL,
    ConfigOption,
    CriticOption,
    PromptsOption,
    VariantOption,
    explicit_settings,
    load_prompts,
    model_option,
    with_setting_flags,
)
from tpo_graph.errors import ConfigurationError, MissingDependencyError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Options

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
            rich_help_panel=MODELS_PANEL,
        ),
    ] = ["local"],  # noqa: B006  # Typer copies it
    reward: Annotated[
        str, model_option("TPO_REWARD", "The reward model: local (a demonstration), or any name of load_reward.")
    ] = "local",
    critic: CriticOption = None,
    prompts: PromptsOption = None,
    variant: VariantOption = None,
    config: ConfigOption = None,
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
    **settings: Options,
) -> None:
    """Serve TPO as OpenAI's API: /v1/chat/completions and /v1/models, for apps in any language.

    A client names a recipe as its model: tpo, tpo-d2-n5, revision-d3-n4, bon-16, or RECIPE/ID for one of several
    policies. Settings given here are the defaults of every request.
    """
    try:
        from tpo_graph.serving import app, limits
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise MissingDependencyError(
            f"The server needs the package {error.name}.", hint='Install it with: pip install "tpo-graph[serve]".'
        ) from error
    from tpo_graph.policies.load import policy_ids
    from tpo_graph.run_parts import ModelStore, RunParts

    keys = api_key or []
    loopback = app.is_loopback(host)
    if not loopback and not keys and not without_key:
        raise ConfigurationError(
            f"At {host} other machines can reach the server, and it has no API key.",
            hint="Set TPO_API_KEY (or give --api-key), serve at 127.0.0.1, or say --without-key.",
        )
    if not loopback and not keys:
        _print(f"warning: at {host} other machines can reach the server, and it asks for no API key")
    policies = policy_ids(policy)
    chosen = TPOSettings.load(config, **explicit_settings(settings))
    pack = load_prompts(prompts, chosen)
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
        models = ModelStore()
        first, *others = policies.values()
        RunParts(policy=first, reward=reward, critic=critic, nodes=variant, settings=chosen, models=models).load(
            _print_load
        )
        for name in others:
            _print_load("policy", name, None)
            models.policy(name)
        served = app.create_app(
            policies,
            reward,
            critic=critic,
            prompts=pack,
            nodes=variant,
            settings=chosen,
            api_keys=keys,
            limits=allowed,
            models=models,
        )
        if loopback and not keys:
            app.allow_only_local_hosts(served, host)
        address, bound_port = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        _print(f"serving at http://{shown}:{bound_port}/v1 (Ctrl-C ends it)")
        _print(f"policies: {', '.join(policies)}; models: tpo, tpo-d2-n5, revision, bon-16, ...; see /v1/models")
        app.serve(served, listening, grace_seconds=grace_seconds, log_requests=log_requests)
    _print("ended")


def _print_load(role: str, name: str, seconds: float | None) -> None:
    _print(f"loading {role} {name}" if seconds is None else f"{role} {name} loaded in {seconds:.1f} s")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
