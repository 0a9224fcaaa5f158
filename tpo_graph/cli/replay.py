"""`tpo-graph replay`: shows a saved run again, in the display of `run`; no model is asked or loaded."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from tpo_graph.cli.outcome import Outcome, RunRequest, State
from tpo_graph.cli.output import print_error, stderr_console
from tpo_graph.cli.run import print_outcome
from tpo_graph.errors import TPOError
from tpo_graph.settings import TPOSettings

if TYPE_CHECKING:
    from tpo_graph.report import RunDocument
    from tpo_graph.report.document import PhaseDone


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="A run, as `tpo-graph run --save` writes it.")],
    speed: Annotated[
        float, typer.Option(help="How many times as fast as it was, on a terminal; inf waits for nothing.", min=0.01)
    ] = 10.0,
) -> None:
    """Show a saved run again, phase by phase, and print its answer; nothing is asked or loaded."""
    from tpo_graph.cli.display import Reporter
    from tpo_graph.cli.following import Follower
    from tpo_graph.report import read_run

    run, console = read_run(file), stderr_console()
    speed = speed if console.is_interactive else math.inf
    outcome = Outcome(_request(run))
    pace = speed if math.isfinite(speed) else 1.0
    with Reporter(console, answer_follows=console.is_interactive, clock=lambda: time.perf_counter() * pace) as reporter:
        if outcome.request:
            reporter.start(outcome.request)
        follower = Follower(outcome, reporter)
        for done, state in _states(run):
            follower.see("tasks", {"name": done.phase, "input": outcome.state})
            time.sleep(done.seconds / speed)
            follower.see("values", state, seconds=done.seconds)
        rest = run.model_dump(include={"stop_reason", "usage", "choices", "failures", "answer"})
        best = {"best": run.best.model_dump()} if run.best else {}
        pending = [candidate.model_dump() for candidate in run.unscored]
        outcome.state = {**outcome.state, **rest, **best, "pending": pending}
        outcome.interrupted, outcome.seconds = run.interrupted, run.seconds or 0.0
        outcome.error = TPOError(run.error.message, hint=run.error.hint) if run.error else None
        reporter.finish(outcome)
    print_outcome(outcome, as_json=False)
    if run.error:
        print_error(run.error.message, run.error.hint)


def _request(run: "RunDocument") -> RunRequest | None:
    """What the run was asked for; None where the file does not say it in words that this version knows."""
    models: Any = run.models
    if not run.settings or not {"policy", "reward model"} <= models.keys():
        return None
    try:
        settings = TPOSettings(**run.settings)
    except (ValidationError, TPOError):
        return None
    return RunRequest(run.question, settings, models, variant=run.variant)


def _states(run: "RunDocument") -> Iterator[tuple["PhaseDone", State]]:
    """Each phase that was done, and the state after it, as far as the display reads it."""
    scored = [candidate.model_dump() for candidate in run.cache if candidate.reward is not None]
    unscored = [candidate.model_dump() for candidate in run.unscored]
    records = {record.step: record.model_dump() for record in run.trajectory}
    state: dict[str, Any] = {"cache": [], "trajectory": [], "failures": [], "step": 0}
    for done in run.phases:
        phase, step = done.phase, done.step
        state = {**state}
        new = [candidate for candidate in scored if candidate["step"] == step]
        if phase in ("sample", "update"):
            state |= {"step": step, "pending": new + [draft for draft in unscored if draft["step"] == step]}
        elif phase == "score":
            state["cache"] = [*state["cache"], *new]
        elif phase == "select":
            pair = run.comparison(step + 1)
            if pair is None or step not in records:
                continue
            state |= {"best": pair.chosen.model_dump(), "worst": (pair.rejected or pair.chosen).model_dump()}
            state["trajectory"] = [*state["trajectory"], records[step]]
        else:
            state[phase] = records[step][phase] if step in records else getattr(run, phase)
        failures = [f.model_dump() for f in run.failures if (f.phase, f.step) == (phase, step)]
        state["failures"] = [*state["failures"], *failures]
        if done is run.phases[-1]:
            state["warnings"] = [warning.model_dump() for warning in run.warnings]
        yield done, state
