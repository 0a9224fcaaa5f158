"""Follows the stream of a graph: shows each phase as it starts and ends, and keeps what the run has produced."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from tpo_graph.cli.outcome import Outcome, PhaseRecord
from tpo_graph.types import JSONObject, Phase

if TYPE_CHECKING:
    from tpo_graph.cli.display import Reporter


STREAM_MODES: list[Literal["tasks", "values"]] = ["tasks", "values"]
"""What the graph has to stream."""


class Follower(BaseCallbackHandler):
    """Shows a run and keeps its outcome; also a callback handler, which counts completions as their requests end.

    Args:
        outcome: gets the state, the phase that goes on, and the phases that are done.
        reporter: shows them.
    """

    def __init__(self, outcome: Outcome, reporter: "Reporter") -> None:
        self._outcome = outcome
        self._reporter = reporter
        self._running: Phase | None = None
        self._step = 0
        self._started = 0.0

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Completions have come: all, or some of them where a model takes no `n`."""
        self._reporter.arrived(sum(map(len, response.generations)))

    def see(self, kind: str, news: Mapping[str, Any], *, seconds: float | None = None) -> JSONObject | None:
        """Take one item of the stream. A task that starts is a phase that starts; the next state is what it did.

        Args:
            kind: "tasks" or "values".
            news: the item.
            seconds: how long the phase took, where it is known; None measures.

        Returns:
            What a person is asked, or None.
        """
        outcome, reporter = self._outcome, self._reporter
        if kind == "tasks":
            if "input" in news and news["name"] in get_args(Phase):
                outcome.phase = self._running = news["name"]
                self._started, done = time.perf_counter(), int(outcome.state.get("step", 0))
                self._step = {"sample": 0, "score": done, "select": done}.get(news["name"], done + 1)
                reporter.phase_started(news["name"], self._step, outcome.request, news["input"])
            return None
        if "__interrupt__" in news:
            self._running = None
            question: JSONObject = news["__interrupt__"][0].value
            return question
        before, outcome.state = outcome.state, news
        if self._running is not None:
            seconds = time.perf_counter() - self._started if seconds is None else seconds
            record = PhaseRecord(phase=self._running, step=self._step, seconds=round(seconds, 3))
            outcome.phases = [*outcome.phases, record]
            reporter.phase_ended(self._running, before, news, seconds)
            shown = {warning["kind"] for warning in before.get("warnings") or []}
            for warning in news.get("warnings") or []:
                if warning["kind"] not in shown:
                    reporter.warn(warning["message"])
        self._running = None
        return None
