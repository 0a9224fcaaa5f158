"""One thread that owns a model: gathers the requests of many queries, and serves them fairly.

The event loops that wait hold only a future, so that none is ever blocked, and loops of different threads can share
one model.
"""

import atexit
import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypedDict

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError, TPOError
from tpo_graph.rewards.base import Scoring
from tpo_graph.rewards.local.encoding import EncodedText
from tpo_graph.rewards.local.forward import Batch

# What a local reward model did to the texts it scored: a record, never a log line.


class ScoreCounts(TypedDict):
    """Counts of one call of `score`, or summed over all calls of a model.

    Attributes:
        requests: calls of `score`.
        texts: responses that were asked for.
        duplicates: responses that shared the score of an equal one.
        truncated_prompts: texts whose conversation lost tokens at its start.
        truncated_responses: texts whose response lost tokens at its end.
        dropped_tokens: tokens lost by both, in all texts.
        batches: forward passes that held at least one of the texts.
        prefix_builds: forward passes over a shared prefix, whose keys and values were then reused.
        prefix_hits: batches that ran on a prefix kept from an earlier batch or call.
        out_of_memory: batches that were halved because they did not fit into memory.
    """

    requests: int
    texts: int
    duplicates: int
    truncated_prompts: int
    truncated_responses: int
    dropped_tokens: int
    batches: int
    prefix_builds: int
    prefix_hits: int
    out_of_memory: int


def no_counts() -> ScoreCounts:
    """Counts that are all zero."""
    return ScoreCounts(
        requests=0,
        texts=0,
        duplicates=0,
        truncated_prompts=0,
        truncated_responses=0,
        dropped_tokens=0,
        batches=0,
        prefix_builds=0,
        prefix_hits=0,
        out_of_memory=0,
    )


def add_counts(total: ScoreCounts, more: ScoreCounts) -> ScoreCounts:
    """Return the sum of two records; neither is changed."""
    return ScoreCounts(
        requests=total["requests"] + more["requests"],
        texts=total["texts"] + more["texts"],
        duplicates=total["duplicates"] + more["duplicates"],
        truncated_prompts=total["truncated_prompts"] + more["truncated_prompts"],
        truncated_responses=total["truncated_responses"] + more["truncated_responses"],
        dropped_tokens=total["dropped_tokens"] + more["dropped_tokens"],
        batches=total["batches"] + more["batches"],
        prefix_builds=total["prefix_builds"] + more["prefix_builds"],
        prefix_hits=total["prefix_hits"] + more["prefix_hits"],
        out_of_memory=total["out_of_memory"] + more["out_of_memory"],
    )


# One call of `score` on its way through the worker.

Scored: TypeAlias = tuple[Scoring, ScoreCounts]
"""The result of one request, and what was done for it."""


@dataclass(slots=True, eq=False)
class Request:
    """One call of `score` on its way.

    Attributes:
        messages: the conversation.
        responses: what to score.
        future: resolved with scores and counts; stays pending until then, so that it can be cancelled at any time.
        places: for each different text, where its score belongs in `scores`.
        waiting: texts whose turn has not come.
        missing: texts without a score.
        scores: one for each response.
        counts: what was done so far.
        truncated: responses that are scored without their end, or without the start of their conversation.
        reasons: why a response can't be scored, by its text.
    """

    messages: Sequence[BaseMessage]
    responses: Sequence[str]
    future: "Future[Scored]" = field(default_factory=Future)
    places: dict[EncodedText, list[int]] = field(default_factory=dict)
    waiting: deque[EncodedText] = field(default_factory=deque)
    missing: int = 0
    scores: list[float] = field(default_factory=list)
    counts: ScoreCounts = field(default_factory=no_counts)
    truncated: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    def fail(self, error: BaseException) -> None:
        """End the request with an error; one that has ended or was cancelled stays as it is."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def take(self, text: EncodedText, score: float) -> None:
        """Note a text's score, and end the request with the last one."""
        for place in self.places[text]:
            self.scores[place] = score
        self.missing -= 1
        self.end_if_complete()

    def end_if_complete(self) -> None:
        """Resolve the future when every text has its score."""
        if not self.missing and not self.future.done() and self.future.set_running_or_notify_cancel():
            scoring = Scoring(self.scores, truncated=frozenset(self.truncated), reasons=self.reasons)
            self.future.set_result((scoring, self.counts))


def as_reward_error(error: Exception) -> TPOError:
    """What a request ends with: an error of this package as it is, any other as a RewardError."""
    if isinstance(error, TPOError):
        return error
    mapped = RewardError(f"The reward model failed: {type(error).__name__}: {error}")
    mapped.__cause__ = error
    return mapped


TURNS_IN_WINDOW = 8
"""Turns, one quantum of tokens each, that are planned together: more give better batches and longer waits."""

LEAST_TOKENS = 32
"""What a text counts at least in a turn."""

EXIT_SECONDS = 5.0
"""How long the end of the program waits for a batch that runs."""

CLOSED = "The reward model was closed."


class TextEncoder(Protocol):
    """What the worker needs of an encoder."""

    def encode(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> Sequence[EncodedText | RewardError]:
        """Encode the responses to one conversation; an error stands for one that can't be scored."""
        ...


class BatchScorer(Protocol):
    """What the worker needs of a scorer."""

    def plan(self, conversations: Sequence[Sequence[EncodedText]]) -> list[Batch]:
        """Divide the texts of several conversations into batches."""
        ...

    def run(self, batch: Batch, counts: ScoreCounts) -> list[float]:
        """Score one batch."""
        ...


class ScoringWorker:
    """Runs requests on its thread until it is stopped."""

    def __init__(self, encoder: TextEncoder, scorer: BatchScorer, *, gather_seconds: float, quantum: int) -> None:
        """Start the thread.

        Args:
            encoder: turns responses into token ids.
            scorer: owns the model.
            gather_seconds: how long an idle worker waits for more requests after the first.
            quantum: tokens that a request may score before it is the next one's turn.
        """
        self._encoder = encoder
        self._scorer = scorer
        self._gather_seconds = gather_seconds
        self._quantum = quantum
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._active: deque[Request] = deque()
        self._wanted: dict[EncodedText, list[Request]] = {}  # texts without a score, and who waits for each
        self._stopped = False
        self._totals = no_counts()
        # a daemon, so that a program can end while a model that it no longer needs is busy
        self._thread = threading.Thread(target=self._serve, name="tpo_graph-reward", daemon=True)
        self._thread.start()
        _RUNNING.add(self)

    @property
    def totals(self) -> ScoreCounts:
        """Counts over all requests so far."""
        return self._totals.copy()

    def submit(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> "Future[Scored]":
        """Queue a request; never blocks.

        Args:
            messages: the conversation.
            responses: what to score.

        Raises:
            RewardError: when the worker was stopped.
        """
        if self._stopped:
            raise RewardError(CLOSED, hint="Load it again to score more.")
        request = Request(list(messages), list(responses))
        self._inbox.put(request)
        if not self._thread.is_alive():  # it ended since the first line
            request.fail(RewardError(CLOSED, hint="Load it again to score more."))
        return request.future

    def stop(self) -> None:
        """End the thread after the batch that runs, without waiting for it; requests that wait fail."""
        self._stopped = True
        self._inbox.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(seconds)

    def _serve(self) -> None:
        while self._admit():
            for batch in self._planned(self._window()):
                if not self._stopped:
                    self._run(batch)
        while not self._inbox.empty():
            late = self._inbox.get()
            if late is not None:
                self._active.append(late)
        # a request whose last turn has come is no longer in the round, but its texts may be
        for request in [*self._active, *(one for waiting in self._wanted.values() for one in waiting)]:
            request.fail(RewardError(CLOSED, hint="Load it again to score more."))
        del self._encoder, self._scorer  # who holds on to a closed reward model does not hold its weights

    def _admit(self) -> bool:
        """Take in what has arrived, after a wait when there is nothing to do. False: stop."""
        if not self._active:
            if not self._begin(self._inbox.get()):
                return False
            deadline = time.monotonic() + self._gather_seconds
            while (left := deadline - time.monotonic()) > 0:
                try:
                    arrived = self._inbox.get(timeout=left)
                except queue.Empty:
                    break
                if not self._begin(arrived):
                    return False
        # the size is read once: under a stream of arrivals, those that are here still get their turn
        return all(self._begin(self._inbox.get()) for _ in range(self._inbox.qsize()))

    def _begin(self, request: Request | None) -> bool:
        """Encode a request and give it a place in the round; False for the sign to stop."""
        if request is None or self._stopped:
            if request is not None:
                self._active.append(request)
            return False
        if request.future.cancelled():
            return True
        try:
            texts = self._encoder.encode(request.messages, request.responses)
        except Exception as error:  # whatever a tokenizer or template raises belongs to this request alone
            request.fail(as_reward_error(error))
            return True
        request.scores = [math.nan] * len(texts)
        counts = request.counts
        refused = [text for text in texts if isinstance(text, RewardError)]
        if refused and len(refused) == len(texts):
            request.fail(refused[0])
            return True
        for place, (response, text) in enumerate(zip(request.responses, texts, strict=True)):
            if isinstance(text, RewardError):
                request.reasons[response] = text.message
                continue
            if text.dropped_prompt or text.dropped_response:
                request.truncated.add(response)
            request.places.setdefault(text, []).append(place)
            counts["truncated_prompts"] += text.dropped_prompt > 0
            counts["truncated_responses"] += text.dropped_response > 0
            counts["dropped_tokens"] += text.dropped_prompt + text.dropped_response
        counts["requests"] = 1
        counts["texts"] = len(texts)
        counts["duplicates"] = len(texts) - len(refused) - len(request.places)
        self._totals = add_counts(self._totals, counts)
        request.waiting.extend(request.places)
        request.missing = len(request.places)
        for text in request.places:
            self._wanted.setdefault(text, []).append(request)
        request.end_if_complete()
        self._active.append(request)
        return True

    def _window(self) -> list[list[EncodedText]]:
        """The texts of the next turns, by request.

        A turn is a quantum of one request's tokens; requests take turns in a circle. A text that another request had
        scored meanwhile takes no part in it.
        """
        taken: dict[EncodedText, Request] = {}
        for _ in range(TURNS_IN_WINDOW):
            request = self._next_in_turn()
            if request is None:
                break
            tokens = 0
            while request.waiting and tokens < self._quantum:
                text = request.waiting.popleft()
                if text in self._wanted and text not in taken:
                    tokens += max(len(text.ids) - text.shared, LEAST_TOKENS)
                    taken[text] = request
            self._active.append(request)
        turns: dict[int, list[EncodedText]] = {}
        for text, request in taken.items():
            turns.setdefault(id(request), []).append(text)
        return list(turns.values())

    def _next_in_turn(self) -> Request | None:
        """The next request with texts whose turn has not come; those that have ended leave."""
        while self._active:
            request = self._active.popleft()
            if not request.future.done() and request.waiting:
                return request
            if request.future.done():
                self._forget(request)
        return None

    def _forget(self, request: Request) -> None:
        """Take a request that has ended out of the texts that are wanted."""
        for text in request.places:
            waiting = [other for other in self._wanted.get(text, ()) if other is not request]
            if waiting:
                self._wanted[text] = waiting
            else:
                self._wanted.pop(text, None)

    def _planned(self, turns: list[list[EncodedText]]) -> list[Batch]:
        try:
            return self._scorer.plan(turns)
        except Exception as error:  # the requests wait for an answer, whatever went wrong
            self._fail([text for texts in turns for text in texts], error)
            return []

    def _run(self, batch: Batch) -> None:
        """Score what is still wanted of a batch, and hand the scores out."""
        for text in batch.texts:
            if all(one.future.done() for one in self._wanted.get(text, ())):
                self._wanted.pop(text, None)
        texts = tuple(text for text in batch.texts if text in self._wanted)
        if not texts:
            return
        counts = no_counts()
        try:
            scores = self._scorer.run(Batch(batch.prefix, texts), counts)
        except Exception as error:  # as above
            shares: dict[int, list[EncodedText]] = {}
            for text in texts:
                shares.setdefault(id(self._wanted[text][0]), []).append(text)
            if len(shares) == 1:
                self._fail(texts, error)
                return
            # one request's text must not fail the others that shared its batch
            for share in shares.values():
                self._run(Batch(batch.prefix, tuple(share)))
            return
        self._totals = add_counts(self._totals, counts)
        for request in {id(one): one for text in texts for one in self._wanted[text]}.values():
            request.counts = add_counts(request.counts, counts)
        for text, score in zip(texts, scores, strict=True):
            for request in self._wanted.pop(text):
                request.take(text, score)

    def _fail(self, texts: Sequence[EncodedText], error: Exception) -> None:
        for text in texts:
            for request in self._wanted.pop(text, ()):
                request.fail(as_reward_error(error))


_RUNNING: "weakref.WeakSet[ScoringWorker]" = weakref.WeakSet()


def _end_all() -> None:
    """Let no thread be inside torch when the interpreter goes away: the process would abort."""
    for worker in list(_RUNNING):
        worker.stop()
    for worker in list(_RUNNING):
        worker.join(EXIT_SECONDS)


atexit.register(_end_all)
