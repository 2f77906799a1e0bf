"""Who acts: of several control planes on one database, one at a time for each lease.

A lease has a name ("platform", "cluster/worker-1"), a holder and an *epoch*, a number that grows with each
change of hands. Whoever holds it renews it; one that was not renewed until it expired may be taken. Time is
the database's, so that the clocks of the holders do not matter.

The epoch is what makes it safe. A holder that was stopped for a minute, and does not know that it is not the
holder any more, still shows the old epoch wherever it writes, and is refused there (`Fence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

PLATFORM_LEASE = "platform"
"""Who gives out GPUs."""

LEASE_LASTS = timedelta(seconds=5)
EXPIRY_AHEAD_MAX = 2 * LEASE_LASTS
"""No lease expires later than this unless the database's clock went back since."""
RELUCTANT_PATIENCE = timedelta(seconds=30)
"""So long somebody who can only wind a cluster down leaves its lease to those who can run it."""

_CLUSTER_LEASE = "cluster/"


@dataclass(frozen=True, slots=True)
class Lease:
    """One row of the table. `expires_at` may be in the past: then anybody may take it."""

    name: str
    holder: str
    epoch: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Fence:
    """What a write has to show: that it is made under this lease, in this epoch.

    `epoch` 0 is that of somebody who has the whole database to itself: nothing is checked.
    """

    name: str
    holder: str = ""
    epoch: int = 0


def cluster_lease(cluster: str) -> str:
    """The lease under which the endpoints and nodes of a cluster are looked after."""
    return f"{_CLUSTER_LEASE}{cluster}"


def is_out_of_time(lease: Lease, now: datetime) -> bool:
    """Whether its expiry says nothing: the database's clock went back since it was renewed."""
    return lease.expires_at > now + EXPIRY_AHEAD_MAX


def to_take(
    leases: Iterable[Lease],
    wanted: Mapping[str, timedelta],
    me: str,
    held: Iterable[str],
    now: datetime,
    unchanged: Mapping[str, timedelta] | None = None,
) -> tuple[Lease | str, ...]:
    """Which of the `wanted` leases `me`, who holds `held`, should try to take now, by name.

    A lease as it was read, or its name where there is none yet. `wanted` says how long each has to have been
    free first; none means that its holder is not interrupted, not even by a restart: what `me` holds by name but
    not in fact is of an earlier life of `me`, which is over. `unchanged` is for how long, by a steady clock, leases
    that are out of time were seen as they are: by then whoever holds one would have renewed it.
    """
    still = unchanged or {}
    known = {each.name: each for each in leases}
    found: list[Lease | str] = []
    for name in sorted(wanted.keys() - set(held)):
        lease = known.get(name)
        if lease is None:
            found.append(name)
        elif (
            (lease.holder == me and not wanted[name])
            or lease.expires_at + wanted[name] <= now
            or (is_out_of_time(lease, now) and still.get(name, timedelta()) >= LEASE_LASTS + wanted[name])
        ):
            found.append(lease)
    return tuple(found)


def next_epoch(lease: Lease | None, now: datetime) -> int:
    """The epoch of whoever takes the lease now.

    At least the seconds since 1970: a database that was restored from a backup so still gives out higher ones
    than what is written on objects of a cluster.
    """
    return max(0 if lease is None else lease.epoch + 1, int(now.timestamp()))
