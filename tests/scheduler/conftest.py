"""Builders for floors and lines, small enough to read as a picture.

Time is counted in minutes from a fixed instant, NOW. Allowances are zero unless a test is about them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Node, NodeHealth
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler import Snapshot, Switches

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
EXACT = Switches(provisioning=timedelta(0), draining=timedelta(0))


def _minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


class World:
    """What tests build with: `node`, `waits`, `holds`, `snapshot`."""

    now = NOW
    exact = EXACT

    @staticmethod
    def at(minutes: float) -> datetime:
        """An instant, in minutes from now."""
        return NOW + _minutes(minutes)

    @staticmethod
    def node(
        name: str,
        gpus: int = 8,
        *,
        cluster: str = "worker-1",
        shape: str = "A100",
        memory_gb: int = 80,
        health: NodeHealth = NodeHealth.HEALTHY,
    ) -> Node:
        """A node of instance type `<shape>-<gpus>`."""
        return Node(cluster, name, f"{shape.lower()}-{gpus}", shape, gpus, memory_gb, health)

    @staticmethod
    def waits(
        number: int,
        gpus: int = 1,
        *,
        nodes: int = 1,
        minutes: float = 60,
        since: float = 0,
        workspace: str = "team",
        selection: Selection | None = None,
        **fields: Any,
    ) -> GpuRequest:
        """A queued request, `since` minutes ago, for A100s of worker-1 unless `selection` says otherwise."""
        wish = selection or Selection(cluster_name="worker-1", gpu_shape="A100")
        queued_at = NOW - _minutes(since)
        return GpuRequest(
            id=f"gpr-{number:08x}-0000",
            name=f"r{number}",
            workspace=workspace,
            selection=replace(wish, gpus_per_node=gpus, nodes=nodes),
            created_at=queued_at,
            queued_at=queued_at,
            exit_duration=_minutes(minutes),
            **fields,
        )

    @classmethod
    def holds(
        cls,
        number: int,
        where: Mapping[str, tuple[int, ...]],
        *,
        left: float = 60,
        ran: float = 60,
        cluster: str = "worker-1",
        **fields: Any,
    ) -> GpuRequest:
        """A running request: it has run for `ran` minutes and has `left` minutes left."""
        gpus = max(len(each) for each in where.values())
        request = cls.waits(number, gpus, nodes=len(where), minutes=ran + left, since=ran, **fields)
        began = NOW - _minutes(ran)
        return replace(
            request,
            status=ProvisioningStatus.SUCCESSFUL,
            grant=Grant(cluster, tuple(sorted(where.items()))),
            granted_at=began,
            started_at=began,
        )

    @staticmethod
    def snapshot(
        nodes: list[Node],
        requests: list[GpuRequest],
        switches: Switches = EXACT,
        *,
        policies: list[WorkspacePolicy] | None = None,
        **fields: Any,
    ) -> Snapshot:
        """The picture, at NOW."""
        rules = {each.workspace: each for each in policies or []}
        return Snapshot(NOW, tuple(nodes), tuple(requests), rules, switches=switches, **fields)


@pytest.fixture
def world() -> type[World]:
    return World


@pytest.fixture
def ids() -> Callable[..., list[str]]:
    """The ids of requests by number."""
    return lambda *numbers: [f"gpr-{number:08x}-0000" for number in numbers]
