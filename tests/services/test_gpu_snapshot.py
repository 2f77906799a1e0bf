"""The picture that questions are answered from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.scheduler import FairShare, Switches
from inferplane.services.gpu_snapshot import read_snapshot
from inferplane.store.sql import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def test_what_was_used_since_it_was_last_counted_counts(store: Store) -> None:
    """As for the decisions that the questions are about: or the line would be another one."""
    began = NOW - HOUR
    request = GpuRequest(
        id="gpr-00000001-0000",
        name="train",
        workspace="red",
        selection=Selection("c", gpu_shape="A100", instance_type="a2", memory_gb=80),
        created_at=began,
        queued_at=began,
        exit_duration=10 * HOUR,
        status=ProvisioningStatus.SUCCESSFUL,
        grant=Grant("c", (("n", (0,)),), "A100", "a2", 80),
        granted_at=began,
        started_at=began,
    )
    async with store.transaction() as tx:
        await tx.put_cluster(Cluster("c", "local", began))
        await tx.add_workspace(Workspace("red", ("c",), began))
        await tx.insert_gpu_request(request)
        await tx.save_usage({"red": 100.0, "blue": 100.0}, began)
    switches = Switches(fair_share=FairShare(half_life=HOUR))
    async with store.read() as tx:
        snapshot = await read_snapshot(tx, NOW, switches)
    assert snapshot.usage["blue"] == pytest.approx(50)
    assert snapshot.usage["red"] > 2000
