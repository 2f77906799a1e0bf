"""Events as evidence: which object, which container, how often, when last. Pure.

An event's time has three homes. The kubelet counts with `firstTimestamp`, `lastTimestamp` and `count`. The
scheduler leaves these null and writes `eventTime`, and `series.lastObservedTime` once it repeats. A recreated
event may have none of them; then the object's own creation counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from inferplane.engines.kserve.raw import Raw, mapping, moment, text

_LONG_AGO = datetime(1971, 1, 1, tzinfo=UTC)
_CONTAINER = re.compile(r"\{(.+)\}")


@dataclass(frozen=True, slots=True)
class KubeEvent:
    """`container` is "" where it speaks of the whole object. `first` and `last` are when it was seen."""

    kind: str
    object_uid: str
    object_name: str
    container: str
    reason: str
    message: str
    warns: bool
    first: datetime
    last: datetime


def events_of(raw: Iterable[Raw]) -> tuple[KubeEvent, ...]:
    """All of them, oldest news first; a total order, so that equal pictures tell equal stories."""
    found = [_event(each) for each in raw]
    return tuple(sorted(found, key=lambda e: (e.last, e.first, e.kind, e.object_name, e.reason, e.message)))


def latest(events: Iterable[KubeEvent], *reasons: str, containing: str = "") -> KubeEvent | None:
    """The newest with one of these reasons whose message contains that, or None."""
    found = [e for e in events if e.reason in reasons and containing.lower() in e.message.lower()]
    return max(found, key=lambda e: (e.last, e.first, e.message), default=None)


def _event(raw: Raw) -> KubeEvent:
    about = mapping(raw, "involvedObject") or mapping(raw, "regarding")
    times = [
        moment(raw, "firstTimestamp"),
        moment(raw, "eventTime"),
        moment(raw, "lastTimestamp"),
        moment(raw, "series", "lastObservedTime"),
    ]
    known = [at for at in times if at is not None] or [
        moment(raw, "metadata", "creationTimestamp") or _LONG_AGO
    ]
    found = _CONTAINER.search(text(about, "fieldPath"))
    return KubeEvent(
        kind=text(about, "kind"),
        object_uid=text(about, "uid"),
        object_name=text(about, "name"),
        container=found.group(1) if found is not None else "",
        reason=text(raw, "reason"),
        message=text(raw, "message") or text(raw, "note"),
        warns=text(raw, "type") == "Warning",
        first=min(known),
        last=max(known),
    )
