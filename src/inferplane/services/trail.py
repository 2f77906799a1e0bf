"""What a person changed, as the audit log keeps it: who, with which key, from what to what.

Values are shown as plain JSON. Nothing that could be a secret is ever handed to these functions:
an endpoint's secret is stored apart, and storage URIs are redacted by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from inferplane.domain.access import Caller
from inferplane.domain.events import Event
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode

BEFORE, AFTER, KEY_ID = "before", "after", "keyId"


def entry(
    at: datetime,
    caller: Caller,
    kind: str,
    message: str,
    *,
    workspace: str = "",
    endpoint: str = "",
    endpoint_uid: str = "",
    gpu_request_id: str = "",
    reason: ReasonCode | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Event:
    """An event that names the key it was done with, and what was there before and after."""
    told: dict[str, Any] = {**(data or {}), KEY_ID: caller.key_id}
    if before is not None:
        told[BEFORE] = dict(before)
    if after is not None:
        told[AFTER] = dict(after)
    return Event(
        at=at,
        kind=kind,
        message=message,
        actor=caller.key_name,
        workspace=workspace,
        endpoint=endpoint,
        endpoint_uid=endpoint_uid,
        reason=reason,
        data=told,
        gpu_request_id=gpu_request_id,
    )


def facts(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values."""
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}


def difference(before: Any, after: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two values of one dataclass differ in: the old fields and the new ones."""
    old, new = facts(before), facts(after)
    changed = [name for name in new if old[name] != new[name] and name != "version"]
    return {name: old[name] for name in changed}, {name: new[name] for name in changed}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return facts(value)
    return value
