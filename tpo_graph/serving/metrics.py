"""What a server counts, for Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.messages import AIMessage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Observation:
    """What is learned about one request while it is served.

    Attributes:
        mode: of the recipe; "" until it is known.
        policy: id of the policy; "" until it is known.
        status: of the response; 499 when the client left.
    """

    def __init__(self) -> None:
        self.mode = ""
        self.policy = ""
        self.status = 500


class Metrics:
    """The counters of one app, in a registry of its own, so that a process can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        by_model = ("mode", "policy")
        self._requests = Counter(
            "tpo_requests",
            "Chat requests by the status of their answer.",
            (*by_model, "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tpo_request_seconds",
            "Seconds from a chat request to the end of its answer.",
            by_model,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge("tpo_requests_in_flight", "Chat requests being worked on.", registry=self.registry)
        self._stops = Counter(
            "tpo_runs", "Runs that gave an answer, by stop reason.", (*by_model, "stop_reason"), registry=self.registry
        )
        self._steps = Counter("tpo_steps", "Steps of loss, gradient and update.", by_model, registry=self.registry)
        self._tokens = Counter(
            "tpo_policy_tokens", "Tokens that the policy read and wrote.", ("policy", "kind"), registry=self.registry
        )

    @contextmanager
    def request(self) -> Iterator[Observation]:
        """Observe a request for the `with` block."""
        seen = Observation()
        began = time.perf_counter()
        self._in_flight.inc()
        try:
            yield seen
        finally:
            self._in_flight.dec()
            self._requests.labels(seen.mode, seen.policy, str(seen.status)).inc()
            self._seconds.labels(seen.mode, seen.policy).observe(time.perf_counter() - began)

    def answered(self, seen: Observation, message: AIMessage) -> None:
        """Count what an answer took."""
        told = message.response_metadata.get("tpo")
        if told is not None:
            self._stops.labels(seen.mode, seen.policy, told["stop_reason"]).inc()
            self._steps.labels(seen.mode, seen.policy).inc(told["steps"])
        if message.usage_metadata is not None:
            self._tokens.labels(seen.policy, "prompt").inc(message.usage_metadata["input_tokens"])
            self._tokens.labels(seen.policy, "completion").inc(message.usage_metadata["output_tokens"])

    def exposed(self) -> Response:
        """All of it in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
