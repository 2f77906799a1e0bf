"""Who did what to what, when, with which key: the events of the store, asked the auditor's way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from inferplane.domain.access import Caller, Verb
from inferplane.domain.errors import Invalid
from inferplane.domain.events import Event
from inferplane.services.context import Platform
from inferplane.services.endpoints import EventPage


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """What to look for. "" and None do not filter. `since` counts, `until` does not any more."""

    actor: str = ""
    workspace: str = ""
    kind: str = ""
    since: str = ""
    until: str = ""


async def list_audit(
    platform: Platform,
    caller: Caller,
    wanted: AuditFilter,
    *,
    after: int | None = None,
    limit: int | None = None,
) -> EventPage:
    """Without `after` the newest `limit` entries, with it the first `limit` behind that number.

    Oldest first either way. A workspace that is gone can be asked about: its history is kept.
    """
    caller.require(Verb.READ_AUDIT)
    limits = platform.limits
    size = min(max(1, limit), limits.event_items_max) if limit is not None else limits.event_items_default
    since, until = instant(wanted.since, "since"), instant(wanted.until, "until")
    newest_first = after is None
    async with platform.store.read() as tx:
        found: list[Event] = await tx.list_audit(
            actor=wanted.actor,
            workspace=wanted.workspace or None,
            kind=wanted.kind,
            since=since,
            until=until,
            after_seq=after or 0,
            limit=size,
            newest_first=newest_first,
        )
    if newest_first:
        return EventPage(found[::-1], "")
    return EventPage(found, str(found[-1].seq) if len(found) == size else "")


def instant(text: str, field: str) -> datetime | None:
    """A date or an instant as in RFC 3339; without a zone it is UTC."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid(
            f"“{text[:40]}” is no moment",
            reason="InvalidTime",
            field=field,
            next_action="Write for instance 2030-01-31 or 2030-01-31T12:00:00Z.",
        ) from error
