"""A run told in words: what a phase is doing, what came of it, why the run stopped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tpo_graph.cli.events import PhaseEnded, RunEnded
from tpo_graph.cli.safe_text import one_line, plural
from tpo_graph.settings import TPOSettings
from tpo_graph.types import FailureReason, FailureRecord, Phase, StopReason

__all__ = ["doing", "ending", "phase_ended", "reward", "step_of"]

State = Mapping[str, Any]  # Any: a TPOState, or the beginning of one

_FAILURES: Mapping[FailureReason, str] = {
    "request_failed": "request failed",
    "empty": "empty response",
    "no_tags": "no opening tag",
    "not_closed": "no closing tag",
    "truncated": "cut off at the token limit",
    "tool_calls": "a tool call and no text",
    "invalid": "not valid for the schema",
    "not_finite": "reward is not a finite number",
    "scoring_failed": "scoring failed",
}
_ENDINGS: Mapping[StopReason, str] = {
    "depth": "all steps are done",
    "converged": "the best reward no longer rises",
    "target": "the target reward is reached",
    "budget": "another step would not fit the budget",
    "no_preference": "all rewards are equal, so there is nothing to learn from",
    "updates_failed": "no revision of this step could be used",
    "policy_failed": "the policy failed; the best answer so far is kept",
    "reward_failed": "the reward model failed; the best answer so far is kept",
    "bon": "best of N takes no steps",
    "person": "you stopped it",
}


def step_of(phase: Phase, state: State) -> int:
    """The step for which a phase works that begins in `state`."""
    done = int(state.get("step", 0))
    return {"sample": 0, "score": done, "select": done}.get(phase, done + 1)


def doing(phase: Phase, settings: TPOSettings) -> str:
    """What a phase does, for a person who waits for it."""
    return {
        "sample": f"drawing {plural(settings.n, 'candidate')}",
        "score": "asking the reward model",
        "select": "choosing the best and the worst",
        "loss": "judging the best alone" if settings.mode == "revision" else "comparing the best with the worst",
        "gradient": "turning the loss into advice",
        "update": f"writing {plural(settings.n, 'revision')}",
    }[phase]


def phase_ended(phase: Phase, step: int, before: State, after: State, seconds: float) -> PhaseEnded:
    """What a phase did, seen from the states on both sides of it."""
    failures = after.get("failures", [])[len(before.get("failures", [])) :] if phase != "sample" else after["failures"]
    lines = tuple(_failure_lines(failures))
    if phase == "select":
        record = after["trajectory"][-1]
        rewards = tuple(each["reward"] for each in after["cache"] if each["step"] == step)
        return PhaseEnded(step, phase, _best_so_far(after), "", lines, seconds, record, rewards)
    text = after.get(phase, "") if phase in ("loss", "gradient") else ""
    return PhaseEnded(step, phase, _summary(phase, before, after, failures), text, lines, seconds)


def ending(ended: RunEnded) -> str:
    """Why the run is over, as a sentence without its full stop."""
    if ended.ending == "finished" and ended.stop_reason:
        return f"{ended.stop_reason}: {_ENDINGS[ended.stop_reason]}"
    if ended.best is not None:
        return f"{ended.ending}: the answer is the best candidate so far"
    if ended.unscored:
        return f"{ended.ending}: {plural(ended.unscored, 'candidate')} drawn, none scored"
    return f"{ended.ending}: no candidate was drawn"


def reward(value: float) -> str:
    """A reward with its sign, in a width that suits a column.

    Example:
        >>> reward(0.5), reward(-12.25), reward(1234567.0), reward(0.00012)
        ('+0.500', '-12.250', '+1.23e+06', '+0.00012')
    """
    plain = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:+.3f}" if plain else f"{value:+.3g}"


def _summary(phase: Phase, before: State, after: State, failures: Sequence[FailureRecord]) -> str:
    if phase == "score":
        new = [each["reward"] for each in after["cache"][len(before.get("cache", [])) :]]
        if not new:
            return "nothing to score" if not failures else "no reward"
        mean = sum(new) / len(new)
        return f"best {reward(max(new))}   mean {reward(mean)}   worst {reward(min(new))}"
    if phase in ("loss", "gradient"):
        words = len(after.get(phase, "").split())
        return plural(words, "word") if words else "no text"
    count = plural(len(after.get("pending", [])), "candidate" if phase == "sample" else "revision")
    unusable = len(failures)
    return f"{count}, {unusable} not usable" if unusable else count


def _best_so_far(after: State) -> str:
    best, trajectory = after["best"], after["trajectory"]
    told = f"best so far {best['id']} at {reward(best['reward'])}"
    if len(trajectory) < 2:
        return told
    gain = trajectory[-1]["best_reward"] - trajectory[-2]["best_reward"]
    return f"{told}, gained {reward(gain)}" if gain > 0 else f"{told}, no gain"


def _failure_lines(failures: Sequence[FailureRecord]) -> list[str]:
    """A line for each failure; equal ones share a line."""
    lines = Counter(_failure_line(each) for each in failures)
    # the count comes first, so that a line that is cut keeps it
    return [line if count == 1 else f"({count} times) {line}" for line, count in lines.items()]


def _failure_line(failure: FailureRecord) -> str:
    told = _FAILURES[failure["reason"]]
    if failure["detail"]:
        told += f": {one_line(failure['detail'], 200)}"
    elif failure["text"].strip():
        told += f": {one_line(failure['text'], 60)}"
    return told
