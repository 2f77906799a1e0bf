"""Policies on the wire, and each of them in force."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_world import A100, BIG, BIG_TYPE, FIRST, GPR, SECOND, GpuWorld

POLICIES = "/api/v1/workspace-policies"
ITEM = {
    *("workspaceName", "PriorityRange", "maxGPRs", "maxExitDurationPerGPR", "requeueOnFailure"),
    *("enableAutoEviction", "globalGPUConstraints", "maxInferenceEndpoints"),
    *("enforceIdleTimeOut", "maxQueuedGPRs"),
}
AUTO = {"enableAutoGpuSelection": True, "gpuShape": "", "instanceType": ""}


@pytest.fixture
def team(gpus: GpuWorld) -> str:
    return gpus.team()


def put(gpus: GpuWorld, team: str, **change: Any) -> dict[str, Any]:
    data = gpus.owner("PUT", f"{POLICIES}/{team}", change).data
    assert set(data) == {"item"}
    assert set(data["item"]) == ITEM
    assert gpus.owner("GET", f"{POLICIES}/{team}").data == data
    item: dict[str, Any] = data["item"]
    return item


def test_without_a_policy_there_are_no_limits(gpus: GpuWorld, team: str) -> None:
    item = gpus.owner("GET", f"{POLICIES}/{team}").data["item"]
    assert item == {
        "workspaceName": team,
        "PriorityRange": "1-299",
        "maxGPRs": None,
        "maxExitDurationPerGPR": "",
        "requeueOnFailure": False,
        "enableAutoEviction": False,
        "globalGPUConstraints": None,
        "maxInferenceEndpoints": None,
        "enforceIdleTimeOut": False,
        "maxQueuedGPRs": 100,
    }
    listed = gpus.owner("GET", POLICIES).data
    assert set(listed) == {"items"}
    assert item in listed["items"]


def test_null_leaves_a_field_alone_and_a_limit_can_be_taken_away(gpus: GpuWorld, team: str) -> None:
    item = put(
        gpus,
        team,
        priorityRange="low",
        maxGPRs=3,
        maxExitDurationPerGPR="1W",
        requeueOnFailure=True,
        enableAutoEviction=True,
        enforceIdleTimeOut=True,
        gpuShapes=[A100, A100],
        maxGpuPerGpr=4,
        maxMemoryPerGpr=320,
        maxInferenceEndpoints=2,
    )
    assert item == {
        "workspaceName": team,
        "PriorityRange": "low",
        "maxGPRs": 3,
        "maxExitDurationPerGPR": "168h0m0s",
        "requeueOnFailure": True,
        "enableAutoEviction": True,
        "globalGPUConstraints": {"gpuShapes": [A100], "maxGPUPerGpr": 4, "maxMemoryPerGpr": 320},
        "maxInferenceEndpoints": 2,
        "enforceIdleTimeOut": True,
        "maxQueuedGPRs": 100,
    }
    assert put(gpus, team, priorityRange=None, maxGPRs=None) == item
    assert put(gpus, team) == item
    item = put(
        gpus,
        team,
        priorityRange="",
        maxGPRs=-1,
        maxExitDurationPerGPR="",
        globalGPUConstraints={"gpuShapes": [], "maxGPUPerGpr": -1, "maxMemoryPerGpr": -1},
        maxInferenceEndpoints=-1,
    )
    assert (item["PriorityRange"], item["maxGPRs"], item["maxExitDurationPerGPR"]) == ("1-299", None, "")
    assert (item["globalGPUConstraints"], item["maxInferenceEndpoints"]) == (None, None)


@pytest.mark.parametrize(
    ("text", "shown"), [("medium", "medium"), ("201-299", "high"), (" 5 - 50 ", "5-50"), ("HIGH", "high")]
)
def test_priority_ranges(gpus: GpuWorld, team: str, text: str, shown: str) -> None:
    assert put(gpus, team, priorityRange=text)["PriorityRange"] == shown


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"priorityRange": "tall"}, "priorityRange"),
        ({"priorityRange": "0-10"}, "priorityRange"),
        ({"priorityRange": "20-10"}, "priorityRange"),
        ({"priorityRange": "1-301"}, "priorityRange"),
        ({"maxGPRs": -2}, "maxGPRs"),
        ({"maxGPRs": "3"}, "maxGPRs"),
        ({"maxInferenceEndpoints": 10**9}, "maxInferenceEndpoints"),
        ({"maxGpuPerGpr": 0}, "maxGpuPerGpr"),
        ({"maxMemoryPerGpr": 0}, "maxMemoryPerGpr"),
        ({"maxExitDurationPerGPR": "2y"}, "maxExitDurationPerGPR"),
        ({"maxExitDurationPerGPR": "0d"}, "maxExitDurationPerGPR"),
        ({"maxExitDurationPerGPR": "13M"}, "maxExitDurationPerGPR"),
        ({"maxExitDurationPerGPR": "366d"}, "maxExitDurationPerGPR"),
        ({"gpuShapes": ["x"] * 101}, "gpuShapes"),
        ({"gpuShapes": [""]}, "gpuShapes[0]"),
    ],
)
def test_what_cannot_be_meant_is_422(gpus: GpuWorld, team: str, change: dict[str, Any], field: str) -> None:
    error = gpus.owner("PUT", f"{POLICIES}/{team}", change).is_error(422, "INVALID")
    assert field in [each["field"] for each in error["details"]]
    assert gpus.owner("GET", f"{POLICIES}/{team}").data["item"]["maxGPRs"] is None


def test_a_month_is_thirty_days(gpus: GpuWorld, team: str) -> None:
    assert put(gpus, team, maxExitDurationPerGPR="1M")["maxExitDurationPerGPR"] == "720h0m0s"


def test_unknown_and_foreign_workspaces_look_the_same(gpus: GpuWorld, team: str) -> None:
    gpus.owner("GET", f"{POLICIES}/nowhere").is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    gpus.owner("PUT", f"{POLICIES}/nowhere", {"maxGPRs": 1}).is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    editor = gpus.client("Editor", gpus.team())
    editor("GET", f"{POLICIES}/{team}").is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    assert [each["workspaceName"] for each in editor("GET", POLICIES).data["items"]] != []
    assert team not in str(editor("GET", POLICIES).data)
    own = gpus.client("Viewer", team)
    own("GET", f"{POLICIES}/{team}").ok()
    own("PUT", f"{POLICIES}/{team}", {"maxGPRs": 1}).is_error(403, "FORBIDDEN")
    reply = gpus.owner("POST", f"{POLICIES}/{team}", {})
    assert (reply.status, reply.error["reason"]) == (405, "MethodNotAllowed")
    assert "PUT" in reply.headers["allow"]


@pytest.mark.parametrize(
    ("policy", "change", "field", "reason"),
    [
        ({"priorityRange": "low"}, {"priority": 101}, "priority", "PriorityNotAllowed"),
        ({"maxExitDurationPerGPR": "1h"}, {"exitDuration": "61m"}, "exitDuration", "DurationNotAllowed"),
        ({"gpuShapes": [BIG]}, {}, "gpuShape", "ShapeNotAllowed"),
        (
            {"gpuShapes": ["other"]},
            {**AUTO, "memoryPerGPU": 40},
            "gpuShape",
            "ShapeNotAllowed",
        ),
        ({"maxGpuPerGpr": 1}, {"numberOfGPUNodes": 2}, "numberOfGPUs", "TooManyGpus"),
        ({"maxMemoryPerGpr": 40}, {}, "memoryPerGPU", "TooMuchMemory"),
        ({"maxMemoryPerGpr": 40}, {"memoryPerGPU": None}, "gpuShape", "ShapeNotAllowed"),
        ({"maxGPRs": 0}, {}, "gprName", "TooManyRequests"),
        ({"maxQueuedGPRs": 0}, {}, "gprName", "QueueFull"),
    ],
)
def test_what_a_policy_forbids_is_403(
    gpus: GpuWorld, team: str, policy: dict[str, Any], change: dict[str, Any], field: str, reason: str
) -> None:
    put(gpus, team, **policy)
    error = gpus.owner("POST", GPR, gpus.body(team, **change)).is_error(403, "QUOTA_EXCEEDED")
    told = [(each["field"], each["reason"]) for each in error["details"]]
    assert (field, reason) in [*told, (error["field"], error["reason"])]
    assert "Owner" in error["nextAction"]


def test_counts_are_kept(gpus: GpuWorld, team: str) -> None:
    put(gpus, team, maxGPRs=2)
    first = gpus.ask(team)
    gpus.ask(team)
    gpus.owner("POST", GPR, gpus.body(team)).is_error(403, "QUOTA_EXCEEDED", "TooManyRequests")
    gpus.owner("DELETE", GPR, {"gprId": first}).ok()
    gpus.ask(team)
    gpus.ask(gpus.team())  # another workspace has its own count


def test_defaults_keep_within_the_policy(gpus: GpuWorld, team: str) -> None:
    put(gpus, team, priorityRange="low")
    assert gpus.gpr(gpus.ask(team))["priority"] == 100
    put(gpus, team, priorityRange="high")
    assert gpus.gpr(gpus.ask(team))["priority"] == 201
    gpr_id = gpus.ask(team)
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "priority": 7}).is_error(403, "QUOTA_EXCEEDED")
    put(gpus, team, maxExitDurationPerGPR="2h")
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "exitDuration": "3h"}).is_error(403, "QUOTA_EXCEEDED")
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "exitDuration": "2h"}).ok()


def test_an_idle_timeout_can_be_demanded(gpus: GpuWorld, team: str) -> None:
    put(gpus, team, enforceIdleTimeOut=True)
    error = gpus.owner("POST", GPR, gpus.body(team)).is_error(422, "INVALID")
    assert error["field"] == "idleTimeOutDuration"
    assert gpus.gpr(gpus.ask(team, idleTimeOutDuration="10m"))["enforceIdleTimeOut"] is True


def test_the_shapes_of_the_inventory_are_those_that_are_allowed(gpus: GpuWorld, team: str) -> None:
    put(gpus, team, gpuShapes=[BIG])
    items = gpus.owner("GET", f"/api/v1/inventory?sliceName={team}").data["items"]
    assert [(each["gpuShape"], each["instanceType"]) for each in items] == [(BIG, BIG_TYPE)]
    assert items[0]["clusterName"] == SECOND
    assert FIRST not in str(items)
