"""What the gateway saw, on the wire. Times are RFC 3339 in UTC, rates by second."""

from __future__ import annotations

from datetime import datetime

import msgspec


class TrafficPoint(msgspec.Struct, frozen=True, rename="camel"):
    """The time up to `at`. `errors_per_second` are answers with 5xx; times are null without answers.

    `concurrency` is how many requests were with the replicas on average, `replicas` how many of them there were
    at `at`. `batch_rows` is how many rows one call of the model had on average; null without a call, and for
    servers that do not count that.
    """

    at: datetime
    requests_per_second: float
    errors_per_second: float
    concurrency: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    replicas: int = 0
    batch_rows: float | None = None


class RevisionSeries(msgspec.Struct, frozen=True, rename="camel"):
    """One revision, oldest point first."""

    revision: int
    points: tuple[TrafficPoint, ...] = ()


class EndpointMetrics(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /inference-endpoint/metrics`. A revision that had no requests has no series."""

    endpoint: str
    interval_seconds: float
    ready_replicas: int
    desired_replicas: int
    series: tuple[RevisionSeries, ...] = ()
