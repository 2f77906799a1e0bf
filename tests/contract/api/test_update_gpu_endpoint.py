"""Changing an endpoint on GPUs: there is no room for two revisions, and what it holds is not changed."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_world import A100, A100_TYPE, FIRST, GpuWorld
from inferplane.domain.rollout import Strategy
from inferplane.wire import paths

SPEC = {
    "gpuShape": A100,
    "instanceType": A100_TYPE,
    "memoryPerGPU": 80,
    "numberOfGPUs": 1,
    "numberOfGPUNodes": 1,
}
TWO = {"storageURI": "/models/two.joblib"}


@pytest.fixture
def place(gpus: GpuWorld) -> dict[str, str]:
    """A running endpoint on a GPU."""
    team, name = gpus.team(), gpus.name("e")
    gpus.create(
        team,
        name,
        clusterName=FIRST,
        gpuSpec=SPEC,
    )
    gpus.run(team, name)
    return {"workspace": team, "endpoint": name}


def test_the_new_revision_takes_the_place_of_the_one_before(gpus: GpuWorld, place: dict[str, str]) -> None:
    answer = gpus.owner("PATCH", paths.ENDPOINT, {**place, "modelSpec": TWO}).data
    assert answer["revision"] == 2
    assert "in between nothing answers" in answer["warnings"][0]
    rollout = gpus.stored(place["workspace"], place["endpoint"]).spec.rollout
    assert rollout is not None
    assert (rollout.base, rollout.strategy) == (1, Strategy.STOP_THEN_START)
    events = gpus.owner(
        "GET", f"{paths.ENDPOINT_EVENTS}?workspace={place['workspace']}&endpoint={place['endpoint']}"
    ).data["events"]
    [updated] = [each for each in events if each["kind"] == "EndpointUpdated"]
    assert "no room for both" in updated["message"]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"modelSpec": TWO, "canary": {"percent": 10}}, "NoRoomForBoth", "canary"),
        ({"modelSpec": TWO, "canary": {"mirrorPercent": 10}}, "NoRoomForBoth", "canary"),
        ({"modelSpec": TWO, "strategy": "startThenStop"}, "NoRoomForBoth", "strategy"),
        ({"autoscaling": {"maxReplicas": 2}}, "CannotChange", "autoscaling.maxReplicas"),
        ({"gpuSpec": SPEC}, "CannotChange", "gpuSpec"),
    ],
)
def test_what_needs_more_room_or_other_gpus_is_refused(
    gpus: GpuWorld, place: dict[str, str], change: dict[str, Any], reason: str, field: str
) -> None:
    error = gpus.owner("PATCH", paths.ENDPOINT, {**place, **change}).is_error(422, "INVALID", reason)
    assert error["field"] == field
    assert gpus.stored(place["workspace"], place["endpoint"]).spec.revision == 1
