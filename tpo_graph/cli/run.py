"""`tpo-graph run`: answers a question."""

import sys
from typing import Annotated

import typer

from tpo_graph.cli.options import (
    MODELS_PANEL,
    OUTPUT_PANEL,
    ConfigOption,
    CriticOption,
    PromptsOption,
    VariantOption,
    explicit_settings,
    load_prompts,
    model_option,
    with_setting_flags,
)
from tpo_graph.cli.outcome import Outcome, Role
from tpo_graph.cli.output import ExitCode, clean, write_answer, write_json
from tpo_graph.cli.session import RunRequest, answer
from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PERSON, Options


@with_setting_flags
def run(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What is to be answered; - reads it from standard input.")
    ],
    *,
    policy: Annotated[
        str,
        model_option(
            "TPO_POLICY",
            "The model that answers: local, openai:MODEL, vllm:URL#MODEL, server:URL#MODEL, or any name of "
            "LangChain's init_chat_model.",
        ),
    ] = "local",
    reward: Annotated[
        str,
        model_option(
            "TPO_REWARD", "The reward model: local (a demonstration), any name of load_reward, or person: you rate."
        ),
    ] = "local",
    second_reward: Annotated[
        str | None,
        model_option(
            "TPO_SECOND_REWARD",
            "A reward model that only watches: a warning tells when it falls while the other one rises.",
        ),
    ] = None,
    critic: CriticOption = None,
    prompts: PromptsOption = None,
    variant: VariantOption = None,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="A system message.", show_default=False, rich_help_panel=MODELS_PANEL)
    ] = "",
    config: ConfigOption = None,
    ask: Annotated[
        bool,
        typer.Option(
            "--ask",
            help="Choose best and worst yourself after each scoring, edit the critique, or stop.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as one JSON document.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress: the answer, and errors.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    **settings: Options,
) -> None:
    """Answer a question by TPO: draw candidates, score them, say why the best won, write better ones.

    The answer goes to standard output, all else to standard error.
    """
    models: dict[Role, str | None] = {
        "policy": policy,
        "reward model": reward,
        "second reward model": second_reward,
        "critic": critic,
    }
    try:
        # everything that can be checked before a model is loaded
        chosen = TPOSettings.load(config, **explicit_settings(settings))
        person_rates = reward.strip() == PERSON
        if question == "-" and (ask or person_rates):
            flag = "--ask" if ask else f"--reward {PERSON}"
            raise ConfigurationError(f"{flag} reads your answers from standard input, where '-' reads the question.")
        if second_reward is not None and person_rates:
            raise ConfigurationError(
                f"--second-reward watches a reward model, and with --reward {PERSON} there is none."
            )
        question = _read_question(question)
        for name, text in (("question", question), ("system message", system), ("preference", chosen.preference)):
            _check_encoding(name, text)
        request = RunRequest(
            question=question,
            settings=chosen,
            models={role: name for role, name in models.items() if name is not None},
            system=system.strip(),
            prompts=load_prompts(prompts, chosen),
            variant=variant,
            ask=ask,
        )
        from tpo_graph.cli.display import Reporter

        answer_follows = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
        outcome = answer(request, Reporter(quiet=quiet, answer_follows=answer_follows))
    except TPOError as error:
        outcome = Outcome(error=error)
    _write(outcome, as_json=as_json)
    if outcome.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if outcome.error is not None:
        raise outcome.error


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


def _write(outcome: Outcome, *, as_json: bool) -> None:
    """Print what there is; nothing that was paid for is lost."""
    if as_json:
        write_json(outcome.document())
        return
    if outcome.answer is not None:
        write_answer(outcome.answer)
    if outcome.interrupted or outcome.error is not None:
        # to stderr, where no program takes them for the answer
        for place, candidate in enumerate(outcome.unscored, start=1):
            head = f"candidate {candidate['id']} ({place} of {len(outcome.unscored)}, not scored):"
            print(f"\n{head}\n{clean(candidate['text'])}", file=sys.stderr, flush=True)
