"""A run that is watched while it goes on: in a notebook below its cell, elsewhere on standard error."""

import html
import io
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import merge_configs
from langgraph.types import Command
from rich.console import Console

from tpo_graph.cli.display import Reporter, ending, gain
from tpo_graph.cli.following import STREAM_MODES, Follower
from tpo_graph.cli.outcome import Outcome, State
from tpo_graph.cli.output import clean, save_json
from tpo_graph.graph.build import TPOGraph
from tpo_graph.graph.state import TPOInput
from tpo_graph.report.words import format_reward
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate

_COLUMNS = 100
_LOG = '<pre style="white-space: pre; overflow-x: auto; line-height: 1.3">{code}</pre>'
_CELL = "white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; vertical-align: top; width: 50%"


@dataclass(frozen=True)
class WatchedRun:
    """A run that was watched. In a notebook it shows its first draft and its answer side by side.

    Attributes:
        outcome: the run, as the command keeps it.
        question: what a person is asked, where the graph waits for one; then `watch(graph, Command(resume=...))`.
    """

    outcome: Outcome
    question: Mapping[str, Any] | None = None

    @property
    def state(self) -> State:
        """The last state of the graph."""
        return self.outcome.state

    @property
    def answer(self) -> str | None:
        """The answer; of a run that was interrupted the text of the best candidate, None where there is none."""
        return self.outcome.answer

    def save(self, path: str | Path) -> None:
        """Write the run to a file, as `tpo-graph run --save` does, for `tpo-graph replay` and `tpo-graph report`.

        Raises:
            OutputError: it can't be written there.
        """
        save_json(self.outcome.document(), Path(path))

    def __str__(self) -> str:
        return self.answer or ""

    def _repr_html_(self) -> str:
        outcome, cache = self.outcome, self.state.get("cache") or []
        how = "a person is asked" if self.question else ending(outcome)
        texts = {"first draft": cache[0], "answer": outcome.best} if cache and outcome.best else {}
        if texts and texts["answer"]["id"] == texts["first draft"]["id"]:
            texts = {"answer": texts["answer"]}
        heads = "".join(f"<th>{name} ({format_reward(of['reward'])})</th>" for name, of in texts.items())
        cells = "".join(f'<td style="{_CELL}">{_escaped(of)}</td>' for of in texts.values())
        table = f"<table><tr>{heads}</tr><tr>{cells}</tr></table>" if texts else ""
        return f"<div>{table}<p>{html.escape(how)}<br>{html.escape(gain(outcome))}</p></div>"


def watch(
    graph: TPOGraph,
    question: str | TPOInput | Command[Any] | None,
    *,
    config: RunnableConfig | None = None,
    context: TPOSettings | Mapping[str, Any] | None = None,
) -> WatchedRun:
    """Run a graph and show what it does: what is drawn and chosen, loss and gradient, and how the rewards move.

    Examples:
        >>> from tpo_graph import create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> graph = create_tpo_graph(ScriptedChatModel(["4", "5"]), TableReward({"4": 1.0, "5": -1.0}))
        >>> run = watch(graph, "2 + 2?", context={"mode": "bon", "n": 2})
        >>> run.answer
        '4'

    Args:
        graph: what `create_tpo_graph` returns, or another graph of its nodes.
        question: a question, or any input of the graph.
        config: goes to the graph, as in `{"configurable": {"thread_id": "1"}}`.
        context: settings of this run.

    Returns:
        The run, also when it was interrupted after candidates were drawn.

    Raises:
        TPOError: the run failed; see the graph.
        KeyboardInterrupt: it was interrupted before there was a candidate.
    """
    outcome, asked = Outcome(), None
    log = _NotebookLog() if _in_notebook() else None
    reporter = Reporter(log.console if log else None, answer_follows=False)
    follower = Follower(outcome, reporter)
    graph_input: Any = {"query": question} if isinstance(question, str) else question
    given: Any = context  # LangGraph makes the settings of a mapping
    started = time.perf_counter()
    with reporter:
        try:
            merged = merge_configs(config, {"callbacks": [follower]})
            stream: Iterator[Any] = graph.stream(graph_input, merged, context=given, stream_mode=STREAM_MODES)
            for kind, news in stream:
                asked = follower.see(kind, news) or asked
                if log:
                    log.show(reporter.doing)
        except KeyboardInterrupt:
            if not (outcome.best or outcome.unscored):
                raise
            outcome.interrupted = True
        outcome.seconds = time.perf_counter() - started
        if not asked:
            reporter.finish(outcome)
        if log:
            log.show("")
    return WatchedRun(outcome, asked)


class _NotebookLog:
    """What is shown below a cell: one block of text that grows."""

    def __init__(self) -> None:
        import IPython.display

        display: Any = IPython.display  # its functions have no types
        self.console = Console(file=io.StringIO(), record=True, width=_COLUMNS, force_jupyter=False)
        self._html = display.HTML
        self._handle = display.display(display.HTML(""), display_id=True)

    def show(self, doing: str) -> None:
        """Show all that was printed, and what goes on."""
        text = self.console.export_html(clear=False, inline_styles=True, code_format=_LOG)
        self._handle.update(self._html(text.replace("</pre>", f"{html.escape(doing)}</pre>")))


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _escaped(candidate: Candidate) -> str:
    return html.escape(clean(candidate["text"]))
