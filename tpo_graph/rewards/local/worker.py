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
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError, TPOError
from tpo_graph.rewards.base import Scoring
from tpo_graph.rewards.local.batches import Batch
from tpo_graph.rewards.local.encoding import ConversationEncoder, EncodedText

if TYPE_CHECKING:
    from tpo_graph.rewards.local.scoring import Scorer

TURNS_IN_WINDOW = 8
"""Turns, one quantum of tokens each, that are planned together: more give better batches and longer waits."""

LEAST_TOKENS = 32
"""What a text counts at least in a turn."""

EXIT_SECONDS = 5.0
"""How long the end of the program waits for a batch that runs."""


@dataclass(slots=True, eq=False)
class Request:
    """One call of `score` on its way.

    Attributes:
        messages: the conversation.
        responses: the texts to score.
        future: the result; pending until the request ends, so that it can be cancelled at any time.
        texts: the responses, encoded; an error for one that can't be.
        scores: one for each different text, NaN until it is known.
        waiting: texts whose turn has not come.
        missing: the number of texts without a score.
    """

    messages: Sequence[BaseMessage]
    responses: Sequence[str]
    future: "Future[Scoring]" = field(default_factory=Future)
    texts: Sequence[EncodedText | RewardError] = ()
    scores: dict[EncodedText, float] = field(default_factory=dict)
    waiting: deque[EncodedText] = field(default_factory=deque)
    missing: int = 0

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended or was cancelled."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            if not isinstance(error, TPOError):
                cause = error
                error = RewardError(f"The reward model failed: {type(cause).__name__}: {cause}")
                error.__cause__ = cause
            self.future.set_exception(error)

    def record(self, text: EncodedText, score: float) -> None:
        """Set the score of a text, and end the request with the last one."""
        self.scores[text] = score
        self.missing -= 1
        self.end_if_complete()

    def end_if_complete(self) -> None:
        """Resolve the future when every text has its score."""
        if self.missing or self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        scores, truncated, reasons = [], set(), {}
        for response, text in zip(self.responses, self.texts, strict=True):
            if isinstance(text, RewardError):
                reasons[response] = text.message
                scores.append(math.nan)
                continue
            if text.dropped_prompt or text.dropped_response:
                truncated.add(response)
            scores.append(self.scores[text])
        self.future.set_result(Scoring(scores, truncated=frozenset(truncated), reasons=reasons))


class ScoringWorker:
    """Runs requests on its thread until it is stopped."""

    def __init__(self, encoder: ConversationEncoder, scorer: "Scorer", *, gather_seconds: float, quantum: int) -> None:
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
        # a daemon, so that a program can end while a model that it no longer needs is busy
        self._thread = threading.Thread(target=self._serve, name="tpo_graph-reward", daemon=True)
        self._thread.start()
        _RUNNING.add(self)

    def submit(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> "Future[Scoring]":
        """Queue a request; never blocks.

        Args:
            messages: the conversation.
            responses: the texts to score.

        Raises:
            RewardError: when the worker was stopped.
        """
        if self._stopped:
            raise _closed()
        request = Request(list(messages), list(responses))
        self._inbox.put(request)
        if not self._thread.is_alive():  # it ended since the first line
            request.fail(_closed())
        return request.future

    def stop(self) -> None:
        """End the thread after the batch that runs, without waiting for it; requests that wait fail."""
        self._stopped = True
        self._inbox.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the thread to end.

        Args:
            seconds: for so long at most.
        """
        self._thread.join(seconds)

    def _serve(self) -> None:
        while self._admit():
            turns = self._next_turns()
            try:
                batches = self._scorer.plan(turns)
            except Exception as error:  # the requests wait for an answer, whatever went wrong
                self._fail((text for texts in turns for text in texts), error)
                continue
            for batch in batches:
                if not self._stopped:
                    self._run(batch)
        while not self._inbox.empty():
            late = self._inbox.get()
            if late is not None:
                late.fail(_closed())
        # a request whose last turn has come is no longer in the round, but its texts may be wanted
        for requests in (self._active, *self._wanted.values()):
            for request in requests:
                request.fail(_closed())
        del self._encoder, self._scorer  # who holds on to a closed reward model does not hold its weights

    def _admit(self) -> bool:
        """Take in the requests that have arrived, after a wait when there is nothing to do. False: stop."""
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
        if request is None:
            return False
        if self._stopped:
            request.fail(_closed())
            return False
        if request.future.cancelled():
            return True
        try:
            request.texts = self._encoder.encode(request.messages, request.responses)
        except Exception as error:  # whatever a tokenizer or template raises belongs to this request alone
            request.fail(error)
            return True
        errors = [text for text in request.texts if isinstance(text, RewardError)]
        if errors and len(errors) == len(request.texts):
            request.fail(errors[0])
            return True
        request.scores = {text: math.nan for text in request.texts if isinstance(text, EncodedText)}
        request.waiting.extend(request.scores)
        request.missing = len(request.scores)
        for text in request.scores:
            self._wanted.setdefault(text, []).append(request)
        request.end_if_complete()
        self._active.append(request)
        return True

    def _next_turns(self) -> list[list[EncodedText]]:
        """The texts of the next turns, by request.

        A turn is a quantum of one request's tokens; requests take turns in a circle. A text that has been scored for
        another request meanwhile does not count.
        """
        taken: dict[EncodedText, Request] = {}
        taken_turns = 0
        while self._active and taken_turns < TURNS_IN_WINDOW:
            request = self._active.popleft()
            if request.future.done():
                for text in request.scores:
                    others = [other for other in self._wanted.pop(text, ()) if other is not request]
                    if others:
                        self._wanted[text] = others
                continue
            if not request.waiting:  # the last of its texts are being scored
                continue
            taken_turns += 1
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

    def _run(self, batch: Batch) -> None:
        """Score what is still wanted of a batch, and hand the scores out."""
        for text in batch.texts:
            if all(request.future.done() for request in self._wanted.get(text, ())):
                self._wanted.pop(text, None)
        texts = tuple(text for text in batch.texts if text in self._wanted)
        if not texts:
            return
        try:
            scores = self._scorer.run(Batch(batch.prefix, texts))
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
        for text, score in zip(texts, scores, strict=True):
            for request in self._wanted.pop(text):
                request.record(text, score)

    def _fail(self, texts: Iterable[EncodedText], error: Exception) -> None:
        for text in texts:
            for request in self._wanted.pop(text, ()):
                request.fail(error)


def _closed() -> RewardError:
    return RewardError("The reward model was closed.", hint="Load it again to score more.")


_RUNNING: "weakref.WeakSet[ScoringWorker]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let no thread be inside torch when the interpreter goes away: the process would abort."""
    for worker in list(_RUNNING):
        worker.stop()
    for worker in list(_RUNNING):
        worker.join(EXIT_SECONDS)
