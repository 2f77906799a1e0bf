"""What the gateway saw, as the wire shows it."""

from __future__ import annotations

from inferplane.domain.endpoint import ReplicaState
from inferplane.gateway.history import SAMPLE_SECONDS, Point
from inferplane.services.traffic import Series
from inferplane.wire.traffic import EndpointMetrics, RevisionSeries, TrafficPoint

DIGITS = 3


def endpoint_metrics(series: Series) -> EndpointMetrics:
    """An endpoint's charts."""
    endpoint = series.endpoint
    return EndpointMetrics(
        endpoint=endpoint.name,
        interval_seconds=SAMPLE_SECONDS,
        ready_replicas=sum(each.state is ReplicaState.READY for each in endpoint.status.replicas),
        desired_replicas=endpoint.desired_replicas,
        series=tuple(
            RevisionSeries(revision, tuple(map(_point, points)))
            for revision, points in sorted(series.points.items())
        ),
    )


def _point(point: Point) -> TrafficPoint:
    return TrafficPoint(
        at=point.at,
        requests_per_second=round(point.requests / point.seconds, DIGITS),
        errors_per_second=round(point.errors / point.seconds, DIGITS),
        concurrency=round(point.concurrency, DIGITS),
        p50_ms=_milliseconds(point.p50_seconds),
        p95_ms=_milliseconds(point.p95_seconds),
        p99_ms=_milliseconds(point.p99_seconds),
        replicas=point.replicas,
        batch_rows=None if point.batch_rows is None else round(point.batch_rows, DIGITS),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, DIGITS)
