"""A run as a log of inspect_ai, which `inspect view` shows with an outline, offline.

The log has one sample. Its events are spans, a step around its nodes: a request to policy or critic is a model event
with all completions as choices, and a reward is a score event.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tpo_graph.errors import MissingDependencyError, install_hint
from tpo_graph.report.document import DrawnCandidate, Failure, PhaseCost, PhaseDone, RunDocument, Step

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ChatCompletionChoice, ChatMessage, ModelUsage

_SAMPLE = "run"
_STOP_REASONS = {
    "stop": "stop",
    "length": "max_tokens",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}


def inspect_log(run: RunDocument, *, ended: datetime | None = None) -> "EvalLog":
    """The log of a run, to be written by inspect_ai's `write_eval_log`.

    Args:
        run: the run.
        ended: when it ended, with its time zone; now when None. The document itself has no date.

    Raises:
        MissingDependencyError: inspect_ai is not installed.
    """
    if find_spec("inspect_ai") is None:
        raise MissingDependencyError(
            "A log of inspect_ai needs the package inspect_ai.", hint=f"{install_hint('inspect')}."
        )
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalError,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )

    from tpo_graph import __version__

    ended = datetime.now(UTC) if ended is None else ended
    # from the first node on: `run.seconds` has the loading of models as well
    spent = [phase.seconds for phase in run.phases] or [record.seconds for record in run.trajectory]
    began = ended - timedelta(seconds=sum(spent))
    sample = _Transcript(run, began).sample(ended)
    policy = run.models.get("policy", "unknown")
    scorer = run.models.get("reward model", "unknown")
    values = {name: score.value for name, score in (sample.scores or {}).items() if isinstance(score.value, float)}
    error = EvalError(message=run.error.message, traceback="", traceback_ansi="") if run.error else None
    return EvalLog(
        status="cancelled" if run.interrupted else "error" if error else "success",
        eval=EvalSpec(
            eval_id=f"tpo-{began:%Y%m%d%H%M%S}",
            run_id=f"tpo-{began:%Y%m%d%H%M%S}",
            task_id="tpo",
            created=began.isoformat(),
            task="tpo",
            task_args=run.settings or {},
            dataset=EvalDataset(name="question", samples=1, sample_ids=[_SAMPLE]),
            model=policy,
            config=EvalConfig(),
            packages={"tpo_graph": __version__},
            metadata={"models": run.models, "prompts": run.prompts, "variant": run.variant},
        ),
        results=EvalResults(
            total_samples=1,
            completed_samples=int(not (run.interrupted or error)),
            scores=[
                EvalScore(name=name, scorer=scorer, metrics={"value": EvalMetric(name="value", value=value)})
                for name, value in values.items()
            ],
        ),
        stats=EvalStats(started_at=began.isoformat(), completed_at=ended.isoformat(), model_usage=sample.model_usage),
        error=error,
        samples=[sample],
    )


class _Transcript:
    """Writes the events of a run, in the order in which they happened."""

    def __init__(self, run: RunDocument, began: datetime) -> None:
        self._run = run
        self._began = self._time = self._ends = began
        self._events: list[Any] = []
        self._spans: list[str] = []
        self._seconds = {f"{phase.step} {phase.phase}": phase.seconds for phase in run.phases}
        self._conversation = [_message(message.role, message.content) for message in run.messages]
        if run.answer is not None and run.stop_reason and run.messages and run.messages[-1].role == "assistant":
            self._conversation.pop()  # `select` wrote it

    def sample(self, ended: datetime) -> "EvalSample":
        """The whole run as a sample."""
        from inspect_ai.log import EvalSample
        from inspect_ai.model import ModelOutput
        from inspect_ai.scorer import Score

        run, policy = self._run, self._run.models.get("policy", "unknown")
        with self._span("tpo", kind="solver"):
            parts: list[Step | DrawnCandidate | Failure | PhaseDone]
            parts = [*run.trajectory, *run.candidates, *run.failures, *run.phases]
            for step in sorted({part.step for part in parts}):
                self._step(step)
            for warning in run.warnings:
                self._info("warning", warning.message)
        rewards = {drawn.id: (drawn.step, drawn.reward) for drawn in run.cache if drawn.reward is not None}
        best = run.best or next((run.by_id[drawn] for drawn in sorted(rewards, key=lambda id: -rewards[id][1])), None)
        scores: dict[str, Score] = {}
        if best is not None and best.reward is not None:
            scores["reward"] = Score(value=best.reward, answer=run.answer, metadata={"candidate": best.id})
        if first := [reward for step, reward in rewards.values() if step == 0]:
            scores["first_draft"] = Score(value=max(first))
        if rewards:
            scores["candidates"] = Score(value={drawn: reward for drawn, (_, reward) in rewards.items()})
        output = ModelOutput(model=policy)
        if run.answer is not None:
            output = ModelOutput(model=policy, choices=[_choice(run.answer, best.finish_reason if best else "")])
        by_model: dict[str, list[PhaseCost]] = {}
        for phase, cost in run.usage.items():
            role = {"sample": "policy", "update": "policy", "score": "reward model"}.get(phase, "critic")
            if cost.requests:
                by_model.setdefault(run.models.get(role, policy), []).append(cost)
        return EvalSample(
            id=_SAMPLE,
            epoch=1,
            input=self._conversation,
            target="",
            messages=[*self._conversation, *(choice.message for choice in output.choices)],
            output=output,
            scores=scores or None,
            metadata={"stop_reason": run.stop_reason},
            events=self._events,
            model_usage={name: _usage(costs) for name, costs in by_model.items()},
            started_at=self._began.isoformat(),
            completed_at=ended.isoformat(),
            total_time=(ended - self._began).total_seconds(),
        )

    def _step(self, step: int) -> None:
        run = self._run
        record = next((record for record in run.trajectory if record.step == step), None)
        failures = [failure for failure in run.failures if failure.step == step]
        drawn = [candidate for candidate in run.candidates if candidate.step == step]
        at = self._time
        with self._span(f"step {step}", kind="step"):
            if step == 0:
                self._drawn("sample", step, drawn, failures, self._conversation)
            else:
                self._revision(step, record, drawn, failures)
            scored = [candidate for candidate in drawn if candidate.reward is not None]
            lost = [failure for failure in failures if failure.phase == "score"]
            if scored or lost:
                with self._span("score", step):
                    for candidate in scored:
                        self._score(candidate)
                    for failure in lost:
                        self._info("score", failure.model_dump())
            if record is not None:
                if not run.phases:
                    self._time = at + timedelta(seconds=record.seconds)
                with self._span("select", step):
                    for choice in run.choices:
                        if choice.step == step:
                            self._info("person", choice.model_dump())
                    self._info("select", record.model_dump(exclude={"loss", "gradient"}))

    def _revision(self, step: int, record: Step | None, drawn: list[DrawnCandidate], failures: list[Failure]) -> None:
        """Loss, gradient and update of a step."""
        compared = self._run.comparison(step)
        shown = [("best", compared.chosen.text if compared else "")]
        shown.append(("worst", compared.rejected.text if compared and compared.rejected else ""))
        loss, gradient = (record.loss, record.gradient) if record else (self._run.loss, self._run.gradient)
        for phase, text in (("loss", loss), ("gradient", gradient)):
            lost = [failure for failure in failures if failure.phase == phase]
            if text and phase == "gradient" and "loss" in self._run.usage and phase not in self._run.usage:
                with self._span(phase, step):
                    self._info(phase, text)  # the request before wrote it as well
            elif text or lost:
                with self._span(phase, step):
                    self._model(phase, [_choice(text, "stop")] if text else [], lost, self._shown(shown), n=1)
            shown.append((phase, text))
        self._drawn("update", step, drawn, failures, self._shown(shown))

    def _drawn(self, phase: str, step: int, drawn: list[DrawnCandidate], failures: list[Failure], shown: Any) -> None:
        """A node that draws candidates, with what could not be used of its completions."""
        # what got no reward was drawn, too
        lost = [
            failure for failure in failures if failure.phase == phase or (failure.phase == "score" and failure.text)
        ]
        choices = [
            _choice(
                candidate.text, "length" if candidate.truncated else candidate.finish_reason, candidate=candidate.id
            )
            for candidate in drawn
        ]
        if choices or lost:
            with self._span(phase, step):
                self._model(phase, choices, lost, shown, n=int((self._run.settings or {}).get("n") or len(drawn)))

    def _model(
        self,
        phase: str,
        choices: "list[ChatCompletionChoice]",
        lost: list[Failure],
        shown: "list[ChatMessage]",
        *,
        n: int,
    ) -> None:
        """What a node asked and got: one event, however many requests it took."""
        from inspect_ai.event import ModelEvent
        from inspect_ai.model import GenerateConfig, ModelOutput

        run, settings = self._run, self._run.settings or {}
        texts = [
            _choice(failure.text, failure.finish_reason, failure=failure.reason) for failure in lost if failure.text
        ]
        problems = [failure for failure in lost if not failure.text]
        role = "policy" if phase in ("sample", "update") else "critic"
        model = run.models.get(role) or run.models.get("policy", "unknown")
        # the file has the tokens of a phase, of all its steps together
        is_alone = phase == "sample" or sum(record.step > 0 for record in run.trajectory) == 1
        used = run.usage.get(phase)
        usage = _usage([used]) if used is not None and is_alone else None
        self._add(
            ModelEvent,
            model=model,
            role=role,
            input=shown,
            tools=[],
            tool_choice="none",
            config=GenerateConfig(
                num_choices=n,
                temperature=settings.get(f"{phase}_temperature"),
                top_p=settings.get(f"{phase}_top_p"),
                max_tokens=settings.get(f"{phase}_max_new_tokens"),
                seed=settings.get("seed"),
            ),
            output=ModelOutput(model=model, choices=[*choices, *texts], usage=usage),
            completed=self._ends,
            working_time=(self._ends - self._time).total_seconds(),
            error=problems[0].detail or problems[0].reason if problems and not choices and not texts else None,
            metadata={"prompts": run.prompts, "input": "What the prompt shows; the file does not have its words."}
            if phase != "sample"
            else None,
        )
        for failure in problems:
            self._info(phase, failure.model_dump())

    def _shown(self, parts: Sequence[tuple[str, str]]) -> "list[ChatMessage]":
        """The conversation, and what a prompt shows beside it."""
        texts = "\n\n".join(f"{name}:\n{text}" for name, text in parts if text)
        return [*self._conversation, *([_message("user", texts)] if texts else [])]

    def _score(self, candidate: DrawnCandidate) -> None:
        from inspect_ai.event import ScoreEvent
        from inspect_ai.scorer import Score

        assert candidate.reward is not None
        score = Score(value=candidate.reward, answer=candidate.text, metadata={"candidate": candidate.id})
        self._add(ScoreEvent, score=score, scorer=self._run.models.get("reward model"), intermediate=True)

    def _info(self, source: str, data: Any) -> None:
        from inspect_ai.event import InfoEvent

        self._add(InfoEvent, source=source, data=data)

    @contextmanager
    def _span(self, name: str, step: int | None = None, *, kind: str | None = None) -> Iterator[None]:
        from inspect_ai.event import SpanBeginEvent, SpanEndEvent

        parent = self._spans[-1] if self._spans else None
        span = f"{parent}/{name}" if parent else name
        self._spans.append(span)
        self._add(SpanBeginEvent, id=span, parent_id=parent, name=name, type=kind or name)
        self._ends = self._time + timedelta(seconds=self._seconds.get(f"{step} {name}", 0.0))
        yield
        if step is not None:
            self._time = self._ends
        self._add(SpanEndEvent, id=span)
        self._spans.pop()

    def _add(self, kind: Any, **fields: Any) -> None:
        at = self._time
        self._events.append(
            kind(
                **fields,
                uuid=f"event-{len(self._events)}",
                span_id=self._spans[-1],
                timestamp=at,
                working_start=(at - self._began).total_seconds(),
            )
        )


def _message(role: str, text: str) -> "ChatMessage":
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    if role == "assistant":
        return ChatMessageAssistant(content=text)
    return ChatMessageSystem(content=text) if role in ("system", "developer") else ChatMessageUser(content=text)


def _choice(text: str, finish_reason: str, **metadata: str) -> "ChatCompletionChoice":
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant

    reason: Any = _STOP_REASONS.get(finish_reason, "unknown")
    message = ChatMessageAssistant(content=text, source="generate", metadata=metadata or None)
    return ChatCompletionChoice(message=message, stop_reason=reason)


def _usage(costs: Sequence[PhaseCost]) -> "ModelUsage":
    from inspect_ai.model import ModelUsage

    read, wrote = sum(cost.input_tokens for cost in costs), sum(cost.output_tokens for cost in costs)
    return ModelUsage(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)
