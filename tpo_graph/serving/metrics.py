"""What a server counts, for Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from langchain_core.messages import AIMessage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


@dataclass
class Observation:
    """What becomes known about one request while it is served.

    Attributes:
        mode: of the recipe; "" until it is known.
        policy: id of the policy; "" until it is known.
        status: of the response; 499 when the client left.
    """

    mode: str = ""
    policy: str = ""
    status: int = 500


class Metrics:
    """The counters of one app, in a registry of its own, so that a process can have several."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("mode", "policy")
        self._requests = Counter(
            "tpo_requests", "Chat requests by the status of their answer.", (*labels, "status"), registry=registry
        )
        self._seconds = Histogram(
            "tpo_request_seconds",
            "Seconds from a chat request to the end of its answer.",
            labels,
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge("tpo_requests_in_flight", "Chat requests being worked on.", registry=registry)
        self._runs = Counter(
            "tpo_runs", "Runs that gave an answer, by stop reason.", (*labels, "stop_reason"), registry=registry
        )
        self._steps = Counter("tpo_steps", "Steps of loss, gradient and update.", labels, registry=registry)
        self._tokens = Counter(
            "tpo_policy_tokens", "Tokens that the policy read and wrote.", ("policy", "kind"), registry=registry
        )

    @contextmanager
    def request(self) -> Iterator[Observation]:
        """Observe a request for the `with` block, which fills in what it learns about the request."""
        observation = Observation()
        start = time.perf_counter()
        self._in_flight.inc()
        try:
            yield observation
        finally:
            self._in_flight.dec()
            mode, policy = observation.mode, observation.policy
            self._requests.labels(mode, policy, str(observation.status)).inc()
            self._seconds.labels(mode, policy).observe(time.perf_counter() - start)

    def answered(self, observation: Observation, message: AIMessage) -> None:
        """Count what the answer to a request took."""
        mode, policy = observation.mode, observation.policy
        record = message.response_metadata.get("tpo")
        if record is not None:
            self._runs.labels(mode, policy, record["stop_reason"]).inc()
            self._steps.labels(mode, policy).inc(record["steps"])
        if message.usage_metadata is not None:
            self._tokens.labels(policy, "prompt").inc(message.usage_metadata["input_tokens"])
            self._tokens.labels(policy, "completion").inc(message.usage_metadata["output_tokens"])

    def response(self) -> Response:
        """All metrics in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
