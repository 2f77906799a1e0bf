"""Many callers at the same moment with the same GPUs, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api_world import Reply
from gpu_world import GPR, GpuWorld
from inferplane.domain.gpu_request import ProvisioningStatus

ENDPOINT = "/api/v1/inference-endpoint"
CALLERS = 8


@pytest.fixture(params=["sqlite", "postgresql"])
def racing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GpuWorld]:
    url = "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
    with GpuWorld(tmp_path, database_url=url) as world:
        yield world


def at_once(world: GpuWorld, calls: list[tuple[str, str, Any]]) -> list[Reply]:
    world.owner.token()
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda each: world.owner(*each), calls))


def test_races_have_one_winner(racing: GpuWorld) -> None:
    team = racing.team()
    # Two who start the same endpoint ask for its GPUs once.
    name = racing.create(
        team,
        clusterName="worker-1",
        gpuSpec={"enableAutoGpuSelection": True, "memoryPerGPU": 40},
    )
    uid = racing.stored(team, name).uid
    [first] = racing.requests_of(uid)
    racing.grant(first.id)
    racing.drain(first.id, ProvisioningStatus.COMPLETE)
    racing.end(first.id)
    start = ("POST", f"{ENDPOINT}/start", {"workspace": team, "endpoint": name})
    assert {reply.status for reply in at_once(racing, [start] * CALLERS)} == {200}
    assert [each.status for each in racing.requests_of(uid)] == ["Complete", "Queued"]

    # Of many changes of one request none is lost, and none is half.
    gpr_id = racing.ask(team)
    changes = [
        ("PUT", GPR, {"gprId": gpr_id, "priority": 10 + n, "gprName": f"n{n}"}) for n in range(CALLERS)
    ]
    assert {reply.status for reply in at_once(racing, changes)} == {200}
    item = racing.gpr(gpr_id)
    assert item["gprName"] == f"n{item['priority'] - 10}"

    # What is deleted while it is released ends in one of the two ways.
    racing.grant(gpr_id)
    calls: list[tuple[str, str, Any]] = [
        ("PUT", GPR, {"gprId": gpr_id, "earlyRelease": True}),
        ("DELETE", GPR, {"gprId": gpr_id}),
    ] * 3
    statuses = [reply.status for reply in at_once(racing, calls)]
    assert statuses.count(200) == 1
    assert racing.request(gpr_id).status is ProvisioningStatus.DRAINING
