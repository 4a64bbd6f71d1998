"""The metrics that Prometheus reads. Labels are routes, statuses and names of models that run here, never free text.

Several gateways on one port count together: each writes its metrics into files of its own in one folder
(prometheus-client's multiprocess mode), and whichever is asked answers with the sums.
"""

import asyncio
import os
import time
from collections import Counter as Count
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serve.gateway.routing.replica import Replica

TOGETHER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder."""

TIME_TO_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2.5, 5, 10, 60)
DURATION_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The gateway's own registry, so that two apps in one process do not share numbers."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "everlearn_requests", "Finished requests.", ["route", "model", "status"], registry=registry
        )
        self.errors = Counter(
            "everlearn_errors", "Failed requests and broken streams.", ["model", "code"], registry=registry
        )
        self.in_flight = Gauge(
            "everlearn_requests_in_flight", "Requests that hold a place.",
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.waiting = Gauge(
            "everlearn_requests_waiting", "Requests whose first token has not come.",
            ["model"], registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.tokens = Counter(
            "everlearn_tokens", "Tokens, as engines count them.", ["model", "kind"], registry=registry
        )
        self.first_token = Histogram(
            "everlearn_time_to_first_token_seconds", "From the request's arrival to its first token.",
            ["model"], buckets=TIME_TO_FIRST_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.inter_token = Histogram(
            "everlearn_inter_token_seconds", "Between two tokens of a stream.",
            ["model"], buckets=INTER_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "everlearn_request_duration_seconds", "From the request's arrival to its last byte.",
            ["route"], buckets=DURATION_S, registry=registry,
        )  # fmt: skip
        self.retries = Counter(
            "everlearn_retries", "Requests sent to a second replica.", ["model"], registry=registry
        )
        self.fallbacks = Counter(
            "everlearn_fallbacks", "Requests that another model answered.", ["model", "to"], registry=registry
        )
        self._version_requests = Counter(
            "everlearn_version_requests", "Requests by the version that got them, and how they ended.",
            ["model", "version", "role", "outcome"], registry=registry,
        )  # fmt: skip
        self._version_first_token = Histogram(
            "everlearn_version_first_token_seconds", "From the request to its first token, by version.",
            ["model", "version", "role"], buckets=TIME_TO_FIRST_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.updates = Counter(
            "everlearn_updates", "Downloads of the description of a version of an edge folder.",
            ["model", "target", "alias", "version"], registry=registry,
        )  # fmt: skip
        self.replicas = Gauge(
            "everlearn_replicas", "Engines known.",
            ["model", "state"], registry=registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self.shared = Gauge(
            "everlearn_limits_shared", "1: limits count for all gateways together; 0: for each alone.",
            registry=registry, multiprocess_mode="livemin",
        )  # fmt: skip
        self.tasks = Gauge(
            "everlearn_tasks", "Coroutines that run or wait.", registry=registry, multiprocess_mode="livesum"
        )
        started = Gauge(
            "everlearn_started_seconds", "When the gateway was started, since 1970; of several the latest.",
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        started.set(time.time())
        self._known: set[tuple[str, str]] = set()

    def count_replicas(self, states: Count[tuple[str, str]]) -> None:
        """Set how many engines of which model are in which state."""
        self._known |= states.keys()
        for model, state in self._known:
            self.replicas.labels(model, state).set(states[model, state])

    def count_version(self, replica: Replica, outcome: Literal["answered", "failed", "dropped"]) -> None:
        """A request to `replica` has ended; dropped: a copy that was not sent."""
        row = replica.row
        self._version_requests.labels(row.model, row.version, row.role, outcome).inc()

    def first_token_of(self, replica: Replica, seconds: float) -> None:
        """The first token of an answer of `replica` came."""
        row = replica.row
        self._version_first_token.labels(row.model, row.version, row.role).observe(seconds)

    def gathered(self) -> CollectorRegistry:
        """The metrics of this gateway, or the sums over all that count together."""
        self.tasks.set(len(asyncio.all_tasks()))
        if folder := os.environ.get(TOGETHER):
            MultiProcessCollector(together := CollectorRegistry(), folder)
            return together
        return self.registry

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.gathered())
