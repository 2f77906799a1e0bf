"""The scheduler's picture of the world, read from the store: for questions, not for decisions.

Grants are the admission controller's. Services only ask how long something would take.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from inferplane.domain.gpu_request import GpuRequest
from inferplane.scheduler import Snapshot, Switches, wait_times
from inferplane.scheduler.decisions import Candidate
from inferplane.services.context import Platform
from inferplane.store.sql import Tx


async def read_snapshot(tx: Tx, now: datetime, switches: Switches) -> Snapshot:
    """Everything a forecast needs, from one read."""
    return Snapshot(
        now=now,
        nodes=tuple(await tx.list_nodes()),
        requests=tuple(await tx.list_gpu_requests(live_only=True)),
        policies={each.workspace: each for each in await tx.list_policies()},
        usable_clusters={each.name: frozenset(each.clusters) for each in await tx.list_workspaces()},
        usage=await tx.load_usage(),
        switches=switches,
    )


async def candidates_for(platform: Platform, request: GpuRequest) -> tuple[Candidate, ...]:
    """Where a request that is not stored could start, soonest first.

    Worked out in a thread, because a long queue takes a while to replay and the server has other callers.
    """
    async with platform.store.read() as tx:
        snapshot = await read_snapshot(tx, platform.clock(), platform.scheduling)
    return await asyncio.to_thread(wait_times, snapshot, request)
