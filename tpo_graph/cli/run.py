"""`tpo-graph run`: answers a question."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_graph.cli.display import Part, Reporter
from tpo_graph.cli.failures import ExitCode
from tpo_graph.cli.options import explicit_settings, with_setting_flags
from tpo_graph.cli.result import as_document, write_answer, write_json, write_unscored
from tpo_graph.cli.session import Outcome, RunRequest, answer
from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PERSON

_MODELS = "Models and prompts"
_OUTPUT = "Output"


@with_setting_flags
def run(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What is to be answered; - reads it from standard input.")
    ],
    *,
    policy: Annotated[
        str,
        typer.Option(
            envvar="TPO_POLICY",
            metavar="NAME",
            help="The model that answers: local, openai:MODEL, vllm:URL#MODEL, server:URL#MODEL, or any name of "
            "LangChain's init_chat_model.",
            rich_help_panel=_MODELS,
        ),
    ] = "local",
    reward: Annotated[
        str,
        typer.Option(
            envvar="TPO_REWARD",
            metavar="NAME",
            help="The reward model: local (a demonstration), any name of load_reward, or person: you rate.",
            rich_help_panel=_MODELS,
        ),
    ] = "local",
    second_reward: Annotated[
        str | None,
        typer.Option(
            envvar="TPO_SECOND_REWARD",
            metavar="NAME",
            help="A reward model that only watches: a warning tells when it falls while the other one rises.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(
            envvar="TPO_CRITIC",
            metavar="NAME",
            help="The model that writes loss and gradient. Default: the policy.",
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
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="A system message.", show_default=False, rich_help_panel=_MODELS)
    ] = "",
    config: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file of settings. Flags and TPO_* variables come before it.",
            metavar="FILE.toml",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    ask: Annotated[
        bool,
        typer.Option(
            "--ask",
            help="Choose best and worst yourself after each scoring, edit the critique, or stop.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as one JSON document.", rich_help_panel=_OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress: the answer, and errors.", rich_help_panel=_OUTPUT)
    ] = False,
    **settings: Any,  # Any: one flag for each setting
) -> None:
    """Answer a question by TPO: draw candidates, score them, say why the best won, write better ones.

    The answer goes to standard output, all else to standard error.
    """
    request = None
    try:
        models: dict[Part, str] = {"policy": policy, "reward model": reward}
        if second_reward is not None:
            models["second reward model"] = second_reward
        if critic is not None:
            models["critic"] = critic
        request = _request(
            question, ask=ask, models=models, prompts=prompts, system=system, config=config, settings=settings
        )
        outcome = answer(request, _reporter(quiet=quiet, answer_follows=sys.stdout.isatty() and not as_json))
    except TPOError as error:
        outcome = Outcome(error=error)
    _write(outcome, request, as_json=as_json)
    if outcome.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if outcome.error is not None:
        raise outcome.error


def _request(
    question: str,
    *,
    ask: bool,
    models: Mapping[Part, str],
    prompts: str | None,
    system: str,
    config: Path | None,
    settings: Mapping[str, Any],  # Any: as above
) -> RunRequest:
    """Everything that can be checked before a model is loaded, checked."""
    chosen = TPOSettings.load(config, **explicit_settings(settings))
    if question == "-" and (ask or models["reward model"].strip() == PERSON):
        flag = "--ask" if ask else f"--reward {PERSON}"
        raise ConfigurationError(f"{flag} reads your answers from standard input, where '-' reads the question.")
    if "second reward model" in models and models["reward model"].strip() == PERSON:
        raise ConfigurationError(f"--second-reward watches a reward model, and with --reward {PERSON} there is none.")
    question = _read_question(question)
    _check_encoding("system message", system)
    _check_encoding("preference", chosen.preference)
    pack = None
    if prompts is not None:
        from tpo_graph.prompts.pack import PromptPack

        pack = PromptPack.load(prompts)
        pack.check(chosen)
    return RunRequest(question=question, settings=chosen, models=models, system=system.strip(), prompts=pack, ask=ask)


def _read_question(question: str) -> str:
    if question == "-":
        if sys.stdin.isatty():
            print("Type the question, then Ctrl-D on a line of its own.", file=sys.stderr)
        try:
            question = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"Standard input is not text in {sys.stdin.encoding}: {error}.") from error
    if not question.strip():
        raise ConfigurationError(
            f"The question is empty: {question[:20]!r}.", hint='Put it in quotes: tpo-graph run "Why is the sky blue?"'
        )
    _check_encoding("question", question)
    return question.strip()


def _check_encoding(name: str, text: str) -> None:
    """Python lets bytes that are not UTF-8 in as halves of pairs, which no request can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        raise ConfigurationError(
            f"The {name} is not valid UTF-8 after {before!r}.", hint="Convert it first, as in: iconv -t utf-8 FILE."
        ) from error


def _reporter(*, quiet: bool, answer_follows: bool) -> Reporter:
    from tpo_graph.cli.display import PlainReporter, SilentReporter

    if quiet:
        return SilentReporter()
    if not sys.stderr.isatty() or os.environ.get("TERM", "") in ("dumb", "unknown"):
        return PlainReporter()
    from tpo_graph.cli.display import TerminalReporter

    return TerminalReporter(answer_follows=answer_follows)


def _write(outcome: Outcome, request: RunRequest | None, *, as_json: bool) -> None:
    """Print what there is; nothing that was paid for is lost."""
    if as_json:
        write_json(as_document(outcome, request))
        return
    if outcome.best is not None:
        write_answer(outcome.state.get("answer") or outcome.best["text"])
    if outcome.interrupted or outcome.error is not None:
        write_unscored(outcome)
