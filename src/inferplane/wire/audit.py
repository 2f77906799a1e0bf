"""The audit log on the wire: who did what to what, when, with which key, before and after."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class AuditItem(msgspec.Struct, frozen=True, rename="camel"):
    """One thing that was done. `actor` is a key's name or a part of the platform; `key_id` "" for the latter.

    `before` and `after` are None where nothing was there, or where the event tells of no change of values.
    """

    seq: int
    at: datetime
    actor: str
    kind: str
    message: str
    key_id: str = ""
    workspace: str = ""
    endpoint: str = ""
    reason: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    data: dict[str, Any] = {}


class AuditList(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`GET /audit`, newest last. Pass `continue` as `after` for what follows; absent at the end."""

    items: tuple[AuditItem, ...]
    continue_: str = msgspec.field(default="", name="continue")
