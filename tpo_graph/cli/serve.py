"""`tpo-graph serve`: an OpenAI-compatible server."""

import sys
from functools import partial
from typing import Annotated

from tpo_graph.cli.options import (
    ConfigOption,
    CriticOption,
    PromptsOption,
    VariantOption,
    explicit_settings,
    model_option,
    option,
    with_setting_flags,
)
from tpo_graph.cli.process import end_by_signals
from tpo_graph.errors import ConfigurationError, MissingDependencyError, install_hint
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Options

_server_option = partial(option, "The server")
_limit_option = partial(option, "Limits")


@with_setting_flags
def serve(
    *,
    policy: Annotated[
        list[str],
        model_option(
            "A model that answers, by any name that `run --policy` takes; ID is what clients call it. May be given "
            "several times; the first is the default.",
            metavar="[ID=]NAME",
            envvar="TPO_POLICY",
        ),
    ] = ["local"],  # noqa: B006  # Typer copies it
    reward: Annotated[
        str, model_option("The reward model: local (a demonstration), or any name of load_reward.", envvar="TPO_REWARD")
    ] = "local",
    critic: CriticOption = None,
    prompts: PromptsOption = None,
    variant: VariantOption = None,
    config: ConfigOption = None,
    host: Annotated[str, _server_option("The address to serve at.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, _server_option("The port; 0 takes one that is free.", min=0, max=65535)] = 8123,
    api_key: Annotated[
        list[str] | None,
        _server_option(
            "A key that clients have to send; may be given several times. Other users of the machine can read flags: "
            "the variable is safer.",
            envvar="TPO_API_KEY",
            metavar="KEY",
            show_default=False,
        ),
    ] = None,
    without_key: Annotated[bool, _server_option("Serve other machines with no key at all.", "--without-key")] = False,
    log_requests: Annotated[bool, _server_option("Write a line for each request.", "--log-requests")] = False,
    grace_seconds: Annotated[
        float,
        _server_option(
            "How long requests may go on after Ctrl-C, SIGTERM or SIGHUP; a second one ends that wait.",
            min=0,
            metavar="NUMBER",
        ),
    ] = 30.0,
    max_concurrency: Annotated[int, _limit_option("Requests at the same time; more get a 429.", min=1)] = 64,
    max_body_bytes: Annotated[int, _limit_option("Bytes of a request at most.", min=1)] = 20 * 1024 * 1024,
    max_body_seconds: Annotated[
        float, _limit_option("How long the body of a request may take to arrive.", metavar="NUMBER")
    ] = 60.0,
    max_n: Annotated[int, _limit_option("N at most, wherever a client names it.", min=1)] = 64,
    max_depth: Annotated[int, _limit_option("D at most, likewise.", min=0)] = 20,
    keep_alive_seconds: Annotated[
        float,
        _limit_option(
            "How long a stream may be silent before it gets a comment, so that proxies keep it open.", metavar="NUMBER"
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
            f"The server needs the package {error.name}.", hint=f"{install_hint('serve')}."
        ) from error
    from tpo_graph.policies.load import policy_ids
    from tpo_graph.prompts.pack import PromptPack
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
    pack = PromptPack.load(prompts) if prompts is not None else None
    if pack is not None:
        pack.check(chosen)
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
        end_by_signals()  # uvicorn raises the signal that ended it again, as supervisors expect
        app.serve(served, listening, grace_seconds=grace_seconds, log_requests=log_requests)
    _print("ended")


def _print_load(role: str, name: str, seconds: float | None) -> None:
    _print(f"loading {role} {name}" if seconds is None else f"{role} {name} loaded in {seconds:.1f} s")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
