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

ENDPOINT, POLICIES = "/api/v1/inference-endpoint", "/api/v1/workspace-policies"
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


def test_no_race_gets_past_a_limit(racing: GpuWorld) -> None:
    team, other = racing.team(), racing.team()
    for each in (team, other):
        racing.owner("PUT", f"{POLICIES}/{each}", {"maxGPRs": 3, "maxInferenceEndpoints": 2}).ok()

    # Several fields of a policy are changed by several people, and none of the changes is lost.
    counts = {"maxGpuPerGpr": 5, "maxMemoryPerGpr": 500, "requeueOnFailure": True, "enforceIdleTimeOut": True}
    changes = [("PUT", f"{POLICIES}/{team}", {name: value}) for name, value in counts.items()]
    assert {reply.status for reply in at_once(racing, changes)} == {200}
    item = racing.owner("GET", f"{POLICIES}/{team}").data["item"]
    assert item["globalGPUConstraints"] == {"gpuShapes": [], "maxGPUPerGpr": 5, "maxMemoryPerGpr": 500}
    assert (item["requeueOnFailure"], item["enforceIdleTimeOut"], item["maxGPRs"]) == (True, True, 3)
    racing.owner("PUT", f"{POLICIES}/{team}", {"enforceIdleTimeOut": False}).ok()

    # GPRs of their own.
    asks = [("POST", GPR, racing.body(each)) for each in (team, other) for _ in range(CALLERS)]
    statuses = [reply.status for reply in at_once(racing, asks)]
    assert (statuses.count(200), statuses.count(403)) == (6, 2 * CALLERS - 6)
    for each in (team, other):
        items = racing.owner("GET", f"{GPR}/list?sliceName={each}").data["items"]
        assert len(items) == 3

    # Endpoints, and the GPRs that come with them: two of the three places are taken again.
    for item in racing.owner("GET", f"{GPR}/list?sliceName={team}").data["items"][:2]:
        racing.owner("DELETE", GPR, {"gprId": item["gprId"]}).ok()
    creates = [("POST", ENDPOINT, endpoint_body(racing, team)) for _ in range(CALLERS)]
    statuses = [reply.status for reply in at_once(racing, creates)]
    assert (statuses.count(200), statuses.count(403)) == (2, CALLERS - 2)
    names = [
        each["endpointName"]
        for each in racing.owner("GET", f"{ENDPOINT}/list?workspace={team}").data["endpoints"]
    ]
    assert len(names) == 2

    # Who starts endpoints again competes for the same places.
    for name in names:
        place = {"workspace": team, "endpoint": name}
        racing.owner("POST", f"{ENDPOINT}/stop", place).ok()
        [request] = racing.requests_of(racing.stored(team, name).uid)
        racing.owner("DELETE", GPR, {"gprId": request.id}).ok()
    racing.ask(team)
    starts = [
        ("POST", f"{ENDPOINT}/start", {"workspace": team, "endpoint": name})
        for name in names
        for _ in range(2)
    ]
    statuses = [reply.status for reply in at_once(racing, starts)]
    assert set(statuses) == {200, 403}
    live = [each for name in names for each in racing.requests_of(racing.stored(team, name).uid)]
    assert len(live) == 1


def endpoint_body(world: GpuWorld, team: str) -> dict[str, Any]:
    return {
        "endpointName": world.name("e"),
        "workspace": team,
        "clusterName": "worker-1",
        "modelSpec": {"modelName": "sklearn", "storageURI": "/models/iris.joblib"},
        "gpuSpec": {"enableAutoGpuSelection": True, "memoryPerGPU": 40},
    }


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
