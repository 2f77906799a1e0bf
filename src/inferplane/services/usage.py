"""What was used of a workspace's endpoints, by hour or day, endpoint and key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from inferplane.domain.access import Caller, Verb
from inferplane.domain.endpoint_access import USAGE_BUCKET, Usage, Used
from inferplane.domain.errors import Invalid
from inferplane.services.audit import instant
from inferplane.services.context import Platform

BUCKETS = {"hour": USAGE_BUCKET, "day": timedelta(days=1)}
LOOK_BACK = {"hour": timedelta(days=1), "day": timedelta(days=30)}
"""How far back is looked where nothing is said."""
WITHOUT_KEY = "none"
"""The `keyId` that means requests without a valid key."""


@dataclass(frozen=True, slots=True)
class UsageQuestion:
    """Of what to tell. "" does not filter. `by` is hour or day; `since` counts, `until` does not any more."""

    workspace: str
    endpoint: str = ""
    key_id: str = ""
    by: str = ""
    since: str = ""
    until: str = ""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What was used, in order, its sum, the bounds in force, and the names of the keys by id."""

    items: list[Usage]
    total: Used
    by: str
    since: datetime
    until: datetime
    key_names: dict[str, str]


async def report(platform: Platform, caller: Caller, question: UsageQuestion) -> UsageReport:
    """Tell what was used. Raises Invalid for bounds that cannot be or too much to tell, NotFound."""
    caller.require(Verb.READ_USAGE, question.workspace)
    if not question.workspace:
        raise Invalid("workspace is needed", reason="Missing", field="workspace")
    by = question.by.lower() or "hour"
    if by not in BUCKETS:
        raise Invalid(
            f"by is hour or day, not “{question.by[:40]}”",
            reason="OutOfRange",
            field="by",
            next_action="Use hour or day.",
        )
    bucket = BUCKETS[by]
    now = platform.clock()
    until = instant(question.until, "until") or now + USAGE_BUCKET
    since = instant(question.since, "since") or _whole(min(until, now) - LOOK_BACK[by], bucket)
    if since >= until:
        raise Invalid("since is not before until", reason="OutOfRange", field="since")
    most = platform.limits.usage_items_max
    key_id = {"": None, WITHOUT_KEY: ""}.get(question.key_id, question.key_id)
    async with platform.store.read() as tx:
        await tx.get_workspace(question.workspace)
        items = await tx.list_usage(
            question.workspace,
            since=_whole(since, USAGE_BUCKET),
            until=until,
            bucket=bucket,
            endpoint=question.endpoint,
            key_id=key_id,
            limit=most + 1,
        )
        keys = await tx.list_endpoint_keys(question.workspace, revoked=True)
    if len(items) > most:
        raise Invalid(
            f"that is more than {most} lines",
            reason="TooMuch",
            field="since",
            next_action="Ask by=day, for a shorter time, or for one endpoint or key.",
        )
    total = Used()
    for item in items:
        total = total.plus(item.used)
    return UsageReport(items, total, by, since, until, {key.id: key.name for key in keys})


def _whole(at: datetime, bucket: timedelta) -> datetime:
    """The beginning of the bucket that `at` lies in."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (at - midnight) // bucket * bucket
