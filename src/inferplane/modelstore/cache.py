"""Finished downloads: which there are, how large, who used them last, and which may go.

Nothing that an endpoint uses is ever dropped, so a cache whose models are all in use may be larger
than its limit. Beyond that, the least recently used goes first; equal times are ordered by key.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from inferplane.modelstore.disk import CONTENT, META, StoreFolder, from_text, read_json


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished download. `key` names its folder; `source_key` what it was fetched for.

    `path` is the file or folder to load. For a model that is used in place `key` is "" and nothing
    is ever deleted.
    """

    key: str
    source_key: str
    path: Path
    digest: str
    size: int
    finished_at: datetime
    used_at: datetime


class Cache:
    """The entries of a store's folder. Used from the event loop only."""

    def __init__(self, folder: StoreFolder, bytes_max: int, clock: Callable[[], datetime]) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._clock = clock
        self._entries: dict[str, Entry] = {}

    def load(self) -> None:
        """Read what is there. Blocks."""
        for place in self._folder.entries.iterdir():
            meta = read_json(place / META)
            entry = None if meta is None else _entry(place, meta, self._clock())
            if entry is None:
                self._folder.discard(place)
            else:
                self._entries[entry.key] = entry

    def get(self, key: str) -> Entry | None:
        """The entry of that name."""
        return self._entries.get(key)

    def newest(self, source_key: str) -> Entry | None:
        """The last finished entry of a source."""
        found = [entry for entry in self._entries.values() if entry.source_key == source_key]
        return max(found, key=lambda entry: (entry.finished_at, entry.key), default=None)

    def add(self, entry: Entry) -> None:
        """Make a finished entry known."""
        self._entries[entry.key] = entry

    def touch(self, key: str) -> None:
        """Note that the entry is being used now."""
        entry = self._entries.get(key)
        if entry is None:
            return
        now = self._clock()
        self._entries[key] = replace(entry, used_at=now)
        with contextlib.suppress(OSError):  # only an order of eviction is lost
            os.utime(self._folder.entries / key, (now.timestamp(), now.timestamp()))

    def trim(self, in_use: Set[str]) -> bool:
        """Drop what is over the limit; True when something went to the trash."""
        return self._drop(self.total_bytes - self._bytes_max, in_use)

    def make_room(self, missing: int, in_use: Set[str]) -> bool:
        """Drop entries until `missing` bytes are freed or none is left that may go."""
        return self._drop(missing, in_use)

    @property
    def total_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self._entries.values())

    def _drop(self, excess: int, in_use: Set[str]) -> bool:
        dropped = False
        for key in eviction_order(self._entries.values(), in_use):
            if excess <= 0:
                break
            excess -= self._entries.pop(key).size
            self._folder.discard(self._folder.entries / key)
            dropped = True
        return dropped


def eviction_order(entries: Iterable[Entry], in_use: Set[str]) -> list[str]:
    """Keys that may go, first to go first: least recently used, then by key."""
    free = [entry for entry in entries if entry.key not in in_use]
    return [entry.key for entry in sorted(free, key=lambda entry: (entry.used_at, entry.key))]


def meta_of(entry: Entry, place: Path, uri: str) -> dict[str, object]:
    """What is written beside an entry's content; `uri` is for people and is redacted."""
    return {
        "source_key": entry.source_key,
        "path": str(entry.path.relative_to(place)),
        "digest": entry.digest,
        "bytes": entry.size,
        "finished_at": entry.finished_at.isoformat(),
        "uri": uri,
    }


def _entry(place: Path, meta: dict[str, object], now: datetime) -> Entry | None:
    relative, size, digest, source_key = (
        meta.get("path"),
        meta.get("bytes"),
        meta.get("digest"),
        meta.get("source_key"),
    )
    finished_at = from_text(meta.get("finished_at"))
    if (
        not isinstance(relative, str)
        or not isinstance(size, int)
        or not isinstance(digest, str)
        or not isinstance(source_key, str)
        or finished_at is None
        or relative.split("/", 1)[0] != CONTENT
        or not (place / relative).exists()
    ):
        return None
    used_at = datetime.fromtimestamp(place.stat().st_mtime, tz=now.tzinfo)
    return Entry(place.name, source_key, place / relative, digest, size, finished_at, used_at)
