"""What the gateway saw of an endpoint: for charts, and for whoever scrapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from inferplane.domain.access import Caller, Verb
from inferplane.domain.endpoint import InferenceEndpoint
from inferplane.gateway.admin import AdminUnreachable
from inferplane.gateway.history import Point
from inferplane.observability import get_logger
from inferplane.services import endpoints
from inferplane.services.context import Platform

MINUTES_DEFAULT = 60

log = get_logger("services.traffic")


@dataclass(frozen=True, slots=True)
class Series:
    """Points of each revision, oldest first, by number."""

    endpoint: InferenceEndpoint
    points: Mapping[int, tuple[Point, ...]]


async def series(
    platform: Platform, caller: Caller, place: tuple[str, str, str], minutes: int | None = None
) -> Series:
    """The last `minutes` of an endpoint at (workspace, name, cluster). An hour at most is kept.

    Raises NotFound, Conflict when ambiguous.
    """
    caller.require(Verb.READ_ENDPOINT, place[0])
    async with platform.store.read() as tx:
        endpoint = await endpoints.find(tx, *place)
    if platform.traffic is None:
        return Series(endpoint, {})
    since = platform.clock() - timedelta(minutes=min(minutes or MINUTES_DEFAULT, MINUTES_DEFAULT))
    found = platform.traffic.points(endpoint.uid)
    return Series(
        endpoint,
        {
            revision: tuple(point for point in points if point.at >= since)
            for revision, points in found.items()
        },
    )


async def counters_text(platform: Platform) -> str:
    """Everybody's counters in Prometheus' text format; nothing while the gateway does not answer."""
    if platform.traffic is None:
        return ""
    try:
        return await platform.traffic.text()
    except AdminUnreachable as error:
        log.warning("the gateway's counters cannot be read", error=str(error))
        return ""
