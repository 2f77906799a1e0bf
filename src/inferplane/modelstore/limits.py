"""Every number that bounds a fetch, in one place, so that a test or an operator can turn each."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Sizes are bytes, times are seconds.

    `tries_without_progress` counts failures in a row of one object's transfer between which not one
    byte arrived; `resumes_max` bounds the tries in all. `disk_reserve_bytes` stays free whatever
    happens, because a full disk harms more than the model that filled it.
    """

    lookup_seconds: float = 10.0
    lookups_at_once: int = 64
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    probe_seconds: float = 5.0
    first_contact_tries: int = 2
    first_contact_seconds: float = 60.0
    tries_without_progress: int = 5
    resumes_max: int = 1000
    backoff_first_seconds: float = 0.2
    backoff_max_seconds: float = 10.0
    replans_max: int = 3
    redirects_max: int = 10
    fetches_at_once: int = 64
    fetches_per_host: int = 16
    objects_at_once: int = 4
    objects_max: int = 10_000
    write_bytes: int = MIB
    write_seconds: float = 0.5
    notify_seconds: float = 0.2
    rate_window_seconds: float = 5.0
    disk_reserve_bytes: int = 64 * MIB
    digest_inline_bytes_max: int = 64 * MIB
    archive_entries_max: int = 100_000
    archive_unpacked_bytes_max: int = 256 * GIB

    def backoff_seconds(self, failures: int) -> float:
        """How long to wait after the n-th failure in a row (n from 1)."""
        return min(self.backoff_max_seconds, self.backoff_first_seconds * float(2 ** (failures - 1)))
