"""Reading the API's JSON without trust in its shape: what is missing or odd is empty. Pure.

Times: objects have seconds ("2026-11-24T20:57:08Z"), events may have microseconds, and `null` or the epoch where
there was no such moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

Raw = Mapping[str, Any]
_NOTHING: Raw = {}


def mapping(value: object, *path: str) -> Raw:
    """What is at `path`, if it is a mapping, else an empty one."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else _NOTHING


def items(value: object, *path: str) -> list[Raw]:
    """The mappings in the list at `path`."""
    parent = mapping(value, *path[:-1])
    found = parent.get(path[-1])
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list | tuple) else []


def text(value: object, *path: str) -> str:
    """The text at `path`, or ""."""
    found = mapping(value, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""


def whole(value: object, *path: str) -> int | None:
    """The whole number at `path`, or None."""
    found = mapping(value, *path[:-1]).get(path[-1])
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def moment(value: object, *path: str) -> datetime | None:
    """The moment at `path`, aware; None for none, which the API also writes as the epoch or the year 1."""
    written = text(value, *path)
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        return None
    if at.tzinfo is None or at.year <= 1970:
        return None
    return at.astimezone(UTC)


def condition(value: object, kind: str) -> Raw:
    """The object's condition of that type, or an empty one."""
    return first(each for each in items(value, "status", "conditions") if each.get("type") == kind)


def first(found: Iterable[Raw]) -> Raw:
    """The first, or an empty one."""
    return next(iter(found), _NOTHING)


def name(value: object) -> str:
    """metadata.name."""
    return text(value, "metadata", "name")


def label(value: object, key: str) -> str:
    """One of metadata.labels, or ""."""
    return text(value, "metadata", "labels", key)


def annotation(value: object, key: str) -> str:
    """One of metadata.annotations, or ""."""
    return text(value, "metadata", "annotations", key)


def owner_uid(value: object) -> str:
    """The uid of the controller that made the object, or ""."""
    owners = items(value, "metadata", "ownerReferences")
    return text(first(each for each in owners if each.get("controller") is True), "uid")


def is_going(value: object) -> bool:
    """Whether somebody has deleted it and it is still there."""
    return bool(text(value, "metadata", "deletionTimestamp"))
