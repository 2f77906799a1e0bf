"""What was used of endpoints, counted from the gateway's access log.

Each line is a JSON object (`envoy_listener`). Counted are those that name an endpoint's `uid`:

    {"time": "2026-01-31T10:20:30.400Z", "endpoint": "iris.default", "uid": "0123456789ab", "keyId": "ek-…",
     "status": 200, "milliseconds": 12, "rows": "2", "tokens": "30"}

`endpoint` is the endpoint's name, its workspace, and its cluster where that is part of its host. `keyId`,
`rows`, `tokens` and, of a streamed answer, `streamTokens` may be absent. Lines that are something else, or too long,
are left out, and so is a gRPC call's way to the activator (`details`): the way to its replica has a line of its own.

The log is moved aside when it has grown (`access.log.1`, one is kept) and Envoy goes on in a new file. A
position names the file by its first line, which no other has, so the one that was read is found under
either name, and in a copy of the folder; once it is read to its end and a new one is there, reading goes
on at the beginning of that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import msgspec

from inferplane.domain.endpoint_access import LogPosition, Usage, Used

READ_BYTES_MAX = 2 * 1024 * 1024
LINE_BYTES_MAX = 64 * 1024
NUMBER_MAX = 10**15
OLDER = ".1"
REDIRECTED = "internal_redirect"
"""Envoy's word for having looked for the route anew (`activator`)."""


class _Line(msgspec.Struct):
    time: str = ""
    endpoint: str = ""
    uid: str = ""
    keyId: str = ""  # noqa: N815 - as the log says
    status: int = 0
    milliseconds: int = 0
    rows: str | int | None = None
    tokens: str | int | None = None
    streamTokens: str | int | None = None  # noqa: N815
    details: str = ""


_DECODER = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a part of the log said, where it ends, and whether there is more to read at once.

    `lost` says that the file that was read before is gone, with whatever had not been read of it.
    """

    usage: tuple[Usage, ...]
    position: LogPosition
    more: bool = False
    lost: bool = False


def read_on(log: Path, position: LogPosition, bytes_max: int = READ_BYTES_MAX) -> Counted:
    """Count whole lines from `position` on, at most so many bytes. Raises OSError when a file cannot be read."""
    place, offset = _find(log, position)
    if place is None:
        return Counted((), position)
    lost = bool(position.file) and place.file != position.file
    with place.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < offset:  # somebody emptied it
            offset = 0
        file.seek(offset)
        chunk = file.read(bytes_max)
    whole, skipped = _whole_lines(chunk, at_most=bytes_max)
    end = offset + len(whole) + skipped
    if end < size and (whole or skipped):
        return Counted(count(whole.splitlines()), LogPosition(place.file, end), more=True, lost=lost)
    newer = _identity(log)
    if place.path != log and newer and newer != place.file:
        # Envoy writes to the new file, so nothing comes behind what was read of the old one.
        return Counted(count(whole.splitlines()), LogPosition(newer, 0), more=True, lost=lost)
    return Counted(count(whole.splitlines()), LogPosition(place.file, end), lost=lost)


def count(lines: Iterable[bytes]) -> tuple[Usage, ...]:
    """Sums by hour, endpoint and key, in order."""
    sums: dict[tuple[datetime, str, str, str, str], list[int]] = {}
    for text in lines:
        try:
            line = _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        hour = _hour(line.time[:13])
        name, _, rest = line.endpoint.partition(".")
        workspace = rest.partition(".")[0]
        if not line.uid or not workspace or hour is None or line.details == REDIRECTED:
            continue
        numbers = sums.setdefault((hour, workspace, name, line.uid, line.keyId), [0] * 5)
        numbers[0] += 1
        numbers[1] += not 0 < line.status < 400
        numbers[2] += _number(line.rows)
        numbers[3] += _number(line.tokens) or _number(line.streamTokens)
        numbers[4] += _number(line.milliseconds)
    return tuple(Usage(*key, Used(*numbers)) for key, numbers in sorted(sums.items()))


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    file: str


def _find(log: Path, position: LogPosition) -> tuple[_Place | None, int]:
    """The file to read and from where: the known one under either name, else the oldest that is there."""
    there = [
        _Place(path, identity)
        for path in (log.with_name(log.name + OLDER), log)
        if (identity := _identity(path))
    ]
    for place in there:
        if place.file == position.file:
            return place, position.offset
    return (there[0], 0) if there else (None, 0)


def _identity(path: Path) -> str:
    """What tells the file from all others: its first line, which has a request's id. "" without one."""
    try:
        with path.open("rb") as file:
            first = file.readline(LINE_BYTES_MAX)
    except FileNotFoundError:
        return ""
    whole = first.endswith(b"\n") or len(first) == LINE_BYTES_MAX
    return hashlib.blake2b(first, digest_size=16).hexdigest() if whole else ""


def _whole_lines(chunk: bytes, *, at_most: int) -> tuple[bytes, int]:
    """The part up to the last line's end; and how many bytes to skip of a line that has none for too long."""
    end = chunk.rfind(b"\n") + 1
    if end == 0 and len(chunk) >= min(at_most, LINE_BYTES_MAX):
        return b"", len(chunk)
    return chunk[:end], 0


@lru_cache(maxsize=64)
def _hour(text: str) -> datetime | None:
    """`2026-01-31T10`."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)
    except ValueError:
        return None


def _number(value: str | int | None) -> int:
    """A count within bounds; what is none is 0."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) <= 15 else 0
    return min(max(value or 0, 0), NUMBER_MAX)
