"""What was used of endpoints, on the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec


class UsageItem(msgspec.Struct, frozen=True, rename="camel"):
    """What was used of one endpoint with one key in the hour or day that begins at `start` (UTC).

    `key_id` is "" for requests without a valid key. `errors` are requests that were not answered, or with
    400 and more. `seconds` are from a request's arrival until its answer was sent.
    """

    start: datetime
    endpoint: str
    key_id: str
    key_name: str
    requests: int
    errors: int
    rows: int
    tokens: int
    seconds: float
    uid: str = ""


class UsageTotal(msgspec.Struct, frozen=True, rename="camel"):
    """The sum of all items."""

    requests: int = 0
    errors: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0


class UsageList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /usage`, by start, endpoint and key. `since` and `until` are the bounds that were in force."""

    items: tuple[UsageItem, ...]
    total: UsageTotal
    by: str
    since: datetime
    until: datetime
