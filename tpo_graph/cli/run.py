"""`tpo-graph run`: answers a question."""

import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tpo_graph.cli.options import (
    ConfigOption,
    CriticOption,
    PromptsOption,
    VariantOption,
    explicit_settings,
    model_option,
    output_option,
    with_setting_flags,
)
from tpo_graph.cli.outcome import Outcome, Role, RunRequest
from tpo_graph.cli.output import (
    ExitCode,
    OutputError,
    check_can_save,
    clean,
    keep,
    plural,
    report_error,
    save_json,
    write_answer,
    write_json,
)
from tpo_graph.cli.process import stderr_is_lost
from tpo_graph.cli.session import answer
from tpo_graph.errors import ConfigurationError, TPOError
from tpo_graph.settings import MOST_BYTES, MOST_MIB, TPOSettings
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
            "The model that answers: local, openai:MODEL, vllm:URL#MODEL, server:URL#MODEL, or any name of "
            "LangChain's init_chat_model.",
            envvar="TPO_POLICY",
        ),
    ] = "local",
    reward: Annotated[
        str,
        model_option(
            "The reward model: local (a demonstration), any name of load_reward, or person: you rate.",
            envvar="TPO_REWARD",
        ),
    ] = "local",
    second_reward: Annotated[
        str | None,
        model_option(
            "A reward model that only watches: a warning comes when it falls while the other one rises.",
            envvar="TPO_SECOND_REWARD",
        ),
    ] = None,
    critic: CriticOption = None,
    prompts: PromptsOption = None,
    variant: VariantOption = None,
    system: Annotated[str, model_option("A system message.", metavar="TEXT", show_default=False)] = "",
    config: ConfigOption = None,
    ask: Annotated[
        bool, output_option("Choose best and worst yourself after each scoring, edit the critique, or stop.", "--ask")
    ] = False,
    as_json: Annotated[bool, output_option("Print the whole result as one JSON document.", "--json")] = False,
    save: Annotated[
        Path | None,
        output_option(
            "Write the whole result to a file as well, for replay and report.", "--save", metavar="FILE.json"
        ),
    ] = None,
    quiet: Annotated[bool, output_option("No progress: the answer, and what went wrong.", "--quiet", "-q")] = False,
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
        if save is not None:
            check_can_save(save)
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
        _check_encoding({"question": question, "system message": system, "preference": settings.get("preference")})
        pack = None
        if prompts is not None:
            from tpo_graph.prompts.pack import PromptPack

            pack = PromptPack.load(prompts)
            pack.check(chosen)
        request = RunRequest(
            question=question,
            settings=chosen,
            models={role: name for role, name in models.items() if name is not None},
            system=system.strip(),
            prompts=pack,
            variant=variant,
            ask=ask,
        )
        from tpo_graph.cli.display import Reporter, trouble

        answer_follows = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
        outcome = answer(request, Reporter(quiet=quiet, answer_follows=answer_follows))
        if quiet and (said := trouble(outcome)):
            print(said, file=sys.stderr)
    except TPOError as error:
        outcome = Outcome(error=error)
    errors = []
    for write in (partial(_save, save, quiet=quiet), partial(print_outcome, as_json=as_json)):
        try:
            write(outcome)
        except OutputError as error:
            errors.append(error)
    for lost in errors if outcome.interrupted or outcome.error else errors[:-1]:
        report_error(lost)
    if outcome.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if outcome.error or errors:
        raise outcome.error or errors[-1]


def _check_encoding(texts: Mapping[str, str | None]) -> None:
    for name, text in texts.items():
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            # Python lets bytes that are not UTF-8 in as halves of pairs, which no request can hold
            raise ConfigurationError(
                f"The {name} is not valid UTF-8 after {error.object[max(0, error.start - 20) : error.start]!r}.",
                hint="Convert it first, as in: iconv -t utf-8 FILE.",
            ) from error


def _read_question(question: str) -> str:
    if question == "-":
        if sys.stdin.isatty():
            print("Type the question, then Ctrl-D on a line of its own.", file=sys.stderr)
        try:
            question = sys.stdin.read(MOST_BYTES + 1)
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"Standard input is not text in {sys.stdin.encoding}: {error}.") from error
        except OSError as error:
            raise ConfigurationError(f"Standard input can't be read: {error.strerror}.") from error
        if len(question) > MOST_BYTES:
            raise ConfigurationError(f"Standard input has more than {MOST_MIB} Mi characters, the most that is read.")
    if not question.strip():
        raise ConfigurationError(
            f"The question is empty: {question[:20]!r}.", hint='Put it in quotes: tpo-graph run "Why is the sky blue?"'
        )
    return question.strip()


def _save(path: Path | None, outcome: Outcome, *, quiet: bool) -> None:
    """Save a run that has brought something."""
    if path is not None and (outcome.best or outcome.unscored):
        save_json(outcome.document(), path)
        if not quiet:
            print(clean(f"saved; to see it again: tpo-graph replay {shlex.quote(str(path))}"), file=sys.stderr)


def print_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Print what there is; nothing that was paid for is lost."""
    if as_json:
        write_json(outcome.document())
        return
    if outcome.answer is not None:
        write_answer(outcome.answer)
    if outcome.unscored and (outcome.interrupted or outcome.error is not None):
        # to stderr, where no program takes them for the answer
        count = len(outcome.unscored)
        drafts = "".join(
            f"\ncandidate {candidate['id']} ({place} of {count}, not scored):\n{candidate['text']}\n"
            for place, candidate in enumerate(outcome.unscored, start=1)
        )
        print(clean(drafts), end="", file=sys.stderr, flush=True)
        if stderr_is_lost():
            where = keep(drafts)
            if outcome.answer is None:
                print(f"Standard error can't be written. {where} keeps {plural(count, 'candidate')}, not scored.")
