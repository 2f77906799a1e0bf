"""The scheduler's picture of the world, read from the store: for questions, not for decisions.

Grants are the admission controller's. Services only ask how long something would take.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from inferplane.domain.gpu_request import GpuRequest
from inferplane.scheduler import Snapshot, Switches, wait_times
from inferplane.scheduler.decisions import Candidate
from inferplane.scheduler.ordering import usage_now
from inferplane.services.context import Platform
from inferplane.store.sql import Tx


async def read_snapshot(tx: Tx, now: datetime, switches: Switches) -> Snapshot:
    """Everything a forecast needs, from one read."""
    snapshot = Snapshot(
        now=now,
        nodes=tuple(await tx.list_nodes()),
        requests=tuple(await tx.list_gpu_requests(live_only=True)),
        policies={each.workspace: each for each in await tx.list_policies()},
        usable_clusters={each.name: frozenset(each.clusters) for each in await tx.list_workspaces()},
        switches=switches,
    )
    return replace(snapshot, usage=usage_now(snapshot, await tx.load_usage(), await tx.usage_at()))


async def candidates_for(platform: Platform, request: GpuRequest) -> tuple[Candidate, ...]:
    """Where a request that is not stored could start, soonest first.

    What is not worked out within `question_seconds_max` is there without an estimate.
    Raises RateLimited while `questions_max` others ask, or `questions_per_workspace_max` of its workspace,
    and when its turn does not come within `question_line_seconds_max`.
    """
    limits = platform.limits
    async with platform.questions.place(
        request.workspace, limits.questions_max, limits.questions_per_workspace_max
    ):
        async with platform.store.read() as tx:
            snapshot = await read_snapshot(tx, platform.clock(), platform.scheduling)
        return await platform.questions.answer(
            lambda keep_going: wait_times(snapshot, request, keep_going),
            limits.question_seconds_max,
            limits.question_line_seconds_max,
        )
