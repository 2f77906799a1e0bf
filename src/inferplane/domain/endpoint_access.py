"""Who may send requests to an endpoint, and what was used of it.

An *endpoint key* opens endpoints and nothing else, as an API key opens the API and nothing else. Its value
is a token that the gateway verifies by itself; what is kept here is all that is known of it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

USAGE_BUCKET = timedelta(hours=1)
"""Usage is counted by the hour (UTC); a day is the sum of its hours."""


class Access(StrEnum):
    """Who may send requests to an endpoint: anybody who reaches the gateway, or whoever has a key for it."""

    OPEN = "open"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class EndpointKey:
    """An endpoint key as stored: never its value.

    `endpoints` are (uid, name) of those that it opens; empty: every endpoint of the workspace, later ones
    too. `expires_at` is the first moment at which it no longer works. A revoked key is remembered until then,
    because the gateway must be told to refuse it. `requests_per_second` is its own limit at each endpoint.
    """

    id: str
    workspace: str
    name: str
    created_at: datetime
    expires_at: datetime
    endpoints: tuple[tuple[str, str], ...] = ()
    created_by: str = ""
    validity: str = ""  # as the caller wrote it
    requests_per_second: float | None = None
    revoked_at: datetime | None = None

    def opens(self, uid: str) -> bool:
        """Whether it is for this endpoint of its workspace."""
        return not self.endpoints or any(uid == each for each, _ in self.endpoints)


@dataclass(frozen=True, slots=True)
class Used:
    """What was used: `errors` are answers of 400 and more (and none at all), `milliseconds` of processing."""

    requests: int = 0
    errors: int = 0
    rows: int = 0
    tokens: int = 0
    milliseconds: int = 0

    def plus(self, other: Used) -> Used:
        """The sum."""
        return Used(
            self.requests + other.requests,
            self.errors + other.errors,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.milliseconds + other.milliseconds,
        )


@dataclass(frozen=True, slots=True, order=True)
class Usage:
    """What was used of one endpoint in the hour (or day) that begins at `start`, with one key.

    `key_id` is "" for requests without a valid key. `endpoint` is the name it had.
    """

    start: datetime
    workspace: str
    endpoint: str
    endpoint_uid: str
    key_id: str
    used: Used = field(default_factory=Used, compare=False)


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far a log has been counted: which file (a digest of its first line) and how many bytes."""

    file: str = ""
    offset: int = 0
