"""What the API counts, in Prometheus' text format.

    inferplane_api_requests_total{method,route,status}
    inferplane_api_request_seconds{method,route}
    inferplane_api_streams
    inferplane_endpoints{status}            (read from the store when scraped)
    inferplane_build_info{version}

`route` is the path as declared, never as sent, so that a stranger cannot make up label values.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inferplane.domain.endpoint import InferenceEndpoint, PublicStatus, public_state

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNMATCHED_ROUTE = "unmatched"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """One registry for one application; nothing is global."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "inferplane_api_requests",
            "Requests answered by the API.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "inferplane_api_request_seconds",
            "Time from the request to the end of its answer (for streams: to its beginning).",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.streams = Gauge(
            "inferplane_api_streams", "Watch and log streams that are open.", registry=self._registry
        )
        self._endpoints = Gauge(
            "inferplane_endpoints",
            "Inference endpoints by public status.",
            ("status",),
            registry=self._registry,
        )
        build = Gauge("inferplane_build_info", "The running version.", ("version",), registry=self._registry)
        build.labels(version).set(1)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self, endpoints: Iterable[InferenceEndpoint]) -> bytes:
        """The text, with `endpoints` counted by status."""
        tally = Tally(public_state(endpoint).status for endpoint in endpoints)
        for status in PublicStatus:
            self._endpoints.labels(status.value).set(tally[status])
        return generate_latest(self._registry)
