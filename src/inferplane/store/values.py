"""Values ⇄ JSON and columns: writing is total, reading is forgiving.

What JSON or a database cannot hold is replaced when it is written. What is missing, of another type, or out
of range when it is read takes a default. The codecs are made of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar

import msgspec

Raw = Mapping[str, Any]
"""One JSON object as read."""


class Row(Protocol):
    """One row by column name."""

    def __getitem__(self, column: str, /) -> Any: ...


E = TypeVar("E", bound=Enum)
T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """Whole microseconds since 1970 UTC. `at` must be aware."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC moment that `to_micros` came from."""
    return _EPOCH + timedelta(microseconds=micros)


def to_json(value: Any) -> str:
    """JSON text of `value`. What JSON or a database cannot hold is replaced, never refused."""
    try:
        return _ENCODER.encode(value).decode()
    except (TypeError, ValueError, OverflowError):
        # ValueError includes UnicodeEncodeError: half a surrogate pair, from a log or a file name.
        return _ENCODER.encode(_plain(value)).decode()


def from_json(text: str) -> Any:
    """What `text` says, or None when it is no JSON (a row damaged by hand)."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:
        return None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder()
_WHOLE_MIN, _WHOLE_MAX = -(2**63), 2**64 - 1


def _plain(value: Any) -> Any:
    """`value` in nothing but JSON's own types; the slow path of `to_json`."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case None | bool() | float():
            return value
        case int():
            return int(value) if _WHOLE_MIN <= value <= _WHOLE_MAX else str(value)
        case Mapping():
            return {_plain(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return _plain(str(value))


def mapping_of(value: object) -> dict[str, Any]:
    """The object that `value` is; an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    """The list that `value` is; an empty one for what is none."""
    return value if isinstance(value, list) else []


def texts_of(value: object) -> tuple[str, ...]:
    """The items of a list as texts."""
    return tuple(str(item) for item in list_of(value))


def known(values: Iterable[T | None]) -> tuple[T, ...]:
    """Without what this version does not know."""
    return tuple(value for value in values if value is not None)


def text_of(raw: Raw, key: str, default: str = "") -> str:
    """The text under `key`."""
    value = raw.get(key)
    return value if isinstance(value, str) else default


def whole_of(raw: Raw, key: str, default: int) -> int:
    """The whole number under `key`."""
    value = whole_or_none(raw, key)
    return default if value is None else value


def whole_or_none(raw: Raw, key: str) -> int | None:
    """The whole number under `key`, or None."""
    value = raw.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def flag_of(raw: Raw, key: str, *, default: bool = False) -> bool:
    """Whether it says true under `key`."""
    value = raw.get(key)
    return value if isinstance(value, bool) else default


def number_or_none(raw: Raw, key: str) -> float | None:
    """The number under `key`, or None."""
    value = number_of(raw, key, math.nan)
    return None if math.isnan(value) else value


def number_of(raw: Raw, key: str, default: float) -> float:
    """The number under `key`."""
    value = raw.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return default
    try:
        return float(value)
    except OverflowError:
        return default


def enum_of(kind: type[E], value: object) -> E | None:
    """The member with this value; None for one that this version does not know."""
    try:
        return kind(value)
    except ValueError:
        return None


def micros_of(at: datetime | None) -> int | None:
    """`to_micros`, or None."""
    return None if at is None else to_micros(at)


def span_of(duration: timedelta | None) -> int | None:
    """Whole microseconds."""
    return None if duration is None else duration // _MICROSECOND


def duration_or(raw: Raw, key: str, default: timedelta) -> timedelta:
    """The duration under `key`."""
    duration = duration_of(raw.get(key))
    return default if duration is None else duration


def duration_of(value: object) -> timedelta | None:
    """What `span_of` came from; None for what is no duration."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return timedelta(microseconds=value)
    except OverflowError:
        return None


def moment_of(value: object) -> datetime | None:
    """The moment that `micros_of` came from; None for what is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return from_micros(value)
    except OverflowError:
        return None
