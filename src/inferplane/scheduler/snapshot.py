"""The one immutable picture that a cycle may look at.

The admission controller reads the store once, builds this, and everything else follows from it: the same
snapshot gives the same decisions, whatever the order of its parts, on any machine, at any time. `now` is
part of the picture. A snapshot that led to a surprising decision is a bug report that can be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from inferplane.domain.gpu_request import UNLIMITED, GpuRequest
from inferplane.domain.inventory import Node
from inferplane.domain.workspace import WorkspacePolicy


@dataclass(frozen=True, slots=True)
class Ageing:
    """Waiting raises the priority: by `points` for each whole `every` waited, by at most `points_max`.

    Eviction looks at the priority that was asked for, never at the aged one.
    """

    points: int = 1
    every: timedelta = timedelta(minutes=10)
    points_max: int = 100


@dataclass(frozen=True, slots=True)
class FairShare:
    """Among equal priorities the workspace that has used least is next.

    Use is GPU-seconds that fade: after `half_life` they count half (`ordering.advance_usage`).
    """

    half_life: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Switches:
    """The scheduler's policies, each of which can be switched.

    ageing, fair_share: None is off.
    backfill: later requests may use GPUs that the first in line cannot use yet, if that does not delay it.
    eviction: whether anybody is evicted at all.
    provisioning, draining: how long a grant takes to come into use, and an end takes to be seen free.
        Allowances, not limits: they only make forecasts and reservations honest.
    eviction_protection: after an eviction a request cannot be evicted again for this long.
    """

    ageing: Ageing | None = None
    fair_share: FairShare | None = None
    backfill: bool = True
    eviction: bool = True
    provisioning: timedelta = timedelta(seconds=10)
    draining: timedelta = timedelta(seconds=10)
    eviction_protection: timedelta = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a cycle knows.

    `requests` are those that have not ended (ended ones do no harm). `usable_clusters` says which
    clusters each workspace may use; None means all of them for everybody, and a workspace that is
    missing from the mapping may use none. `usage` is each workspace's faded GPU-seconds.
    """

    now: datetime
    nodes: tuple[Node, ...]
    requests: tuple[GpuRequest, ...]
    policies: Mapping[str, WorkspacePolicy] = field(default_factory=dict)
    usable_clusters: Mapping[str, frozenset[str]] | None = None
    usage: Mapping[str, float] = field(default_factory=dict)
    switches: Switches = Switches()

    def policy(self, workspace: str) -> WorkspacePolicy:
        """The workspace's policy, or one without limits."""
        return self.policies.get(workspace, UNLIMITED)
