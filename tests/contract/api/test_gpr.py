"""GPU requests on the wire: every variant of asking, every shape, every change and refusal."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import pytest

from gpu_world import A100, A100_TYPE, BIG, BIG_TYPE, FIRST, GPR, SECOND, GpuWorld
from inferplane.domain.gpu_request import ProvisioningStatus, requeued

ITEM = {
    *("gprId", "sliceName", "clusterName", "numberOfGPUs", "numberOfGPUNodes", "instanceType"),
    *("memoryPerGPU", "priority", "gpuSharingMode", "estimatedStartTime", "estimatedWaitTime"),
    *("exitDuration", "earlyRelease", "gprName", "gpuShape", "multiNode", "dedicatedNodes", "enableRDMA"),
    *("enableSecondaryNetwork", "enforceIdleTimeOut", "idleTimeOutDuration", "status"),
}
ITEM_OURS = {"queuePosition", "explanation", "endpointName", "remainingDuration", "evictedBy"}
STATUS = {
    *("provisioningStatus", "failureReason", "numGpusAllocated", "startTimestamp", "completionTimestamp"),
    *("cost", "nodes", "internalState", "retryCount", "delayedCount"),
}
WAIT = {
    *("clusterName", "instanceType", "gpuShape", "memoryPerGpu", "estimatedWaitTime"),
    *("estimatedStartTime", "queuePosition", "explanation"),
}
AUTO = {"enableAutoGpuSelection": True, "gpuShape": "", "instanceType": ""}


@pytest.fixture
def team(gpus: GpuWorld) -> str:
    return gpus.team()


def test_a_new_request_has_every_key(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team, gprName="train", idleTimeOutDuration="30m", enforceIdleTimeOut=True)
    assert re.fullmatch(r"gpr-[0-9a-f]{8}-[0-9a-f]{4}", gpr_id)
    item = gpus.gpr(gpr_id)
    assert set(item) == ITEM | ITEM_OURS
    assert item == {
        "gprId": gpr_id,
        "sliceName": team,
        "clusterName": FIRST,
        "numberOfGPUs": 1,
        "numberOfGPUNodes": 1,
        "instanceType": A100_TYPE,
        "memoryPerGPU": 80,
        "priority": 101,
        "gpuSharingMode": "Virtual Machine",
        "estimatedStartTime": "",
        "estimatedWaitTime": "",
        "exitDuration": "1h0m0s",
        "earlyRelease": False,
        "gprName": "train",
        "gpuShape": A100,
        "multiNode": False,
        "dedicatedNodes": False,
        "enableRDMA": False,
        "enableSecondaryNetwork": False,
        "enforceIdleTimeOut": True,
        "idleTimeOutDuration": "0h30m0s",
        "status": {
            "provisioningStatus": "Queued",
            "failureReason": "",
            "numGpusAllocated": 0,
            "startTimestamp": "",
            "completionTimestamp": "",
            "cost": "",
            "nodes": [],
            "internalState": "",
            "retryCount": 0,
            "delayedCount": 0,
        },
        "queuePosition": 0,
        "explanation": item["explanation"],
        "endpointName": "",
        "remainingDuration": "1h0m0s",
        "evictedBy": "",
    }
    assert item["explanation"]
    listed = gpus.owner("GET", f"{GPR}/list?sliceName={team}").data
    assert set(listed) == {"items"}
    assert listed["items"] == [item]


def test_a_wait_says_where_it_stands_and_never_no_time(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)
    gpus.note(gpr_id, 2, timedelta(minutes=5), "position 2; 1 GPU is needed; 0 are free")
    item = gpus.gpr(gpr_id)
    assert item["queuePosition"] == 2
    assert re.fullmatch(r"0h[45]m\d+s", item["estimatedWaitTime"])
    assert datetime.fromisoformat(item["estimatedStartTime"]) > gpus.now() + timedelta(minutes=4)
    assert "position 2" in item["explanation"]
    assert "assuming that every request ahead runs" in item["explanation"]
    gpus.note(gpr_id, 1, timedelta(minutes=-5), "position 1")  # a note of long ago
    assert gpus.gpr(gpr_id)["estimatedWaitTime"] == "0h0m1s"
    gpus.note(gpr_id, 1, None, "position 1")
    item = gpus.gpr(gpr_id)
    assert (item["estimatedWaitTime"], item["estimatedStartTime"]) == ("", "")


def test_a_request_through_its_life(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)
    gpus.grant(gpr_id, run=False)
    item = gpus.gpr(gpr_id)
    assert item["status"]["provisioningStatus"] == "Provisioning"
    assert (item["status"]["internalState"], item["status"]["numGpusAllocated"]) == ("Reserved", 1)
    assert item["status"]["nodes"] == ["gpu-0"]
    assert "GPU 0 of gpu-0" in item["explanation"]
    gpus.admit(gpr_id, lambda each: gpus_started(gpus, each))
    item = gpus.gpr(gpr_id)
    assert item["status"]["provisioningStatus"] == "Successful"
    assert item["status"]["startTimestamp"].endswith("Z")
    assert item["estimatedWaitTime"] == "0h0m0s"
    assert item["remainingDuration"].startswith("0h59m")
    gpus.drain(gpr_id, ProvisioningStatus.EVICTED, evicted_by="gpr-ffffffff-ffff")
    item = gpus.gpr(gpr_id)
    assert item["status"]["provisioningStatus"] == "Draining"
    assert item["status"]["internalState"] == "Reserved"
    gpus.end(gpr_id)
    item = gpus.gpr(gpr_id)
    assert (item["status"]["provisioningStatus"], item["evictedBy"]) == ("Evicted", "gpr-ffffffff-ffff")
    assert (item["status"]["internalState"], item["status"]["numGpusAllocated"]) == ("Released", 0)
    assert "gpr-ffffffff-ffff" in item["explanation"]
    gpus.admit(gpr_id, lambda each: requeued(each, gpus.now()))
    gpus.note(gpr_id, 1, None, "position 1")
    item = gpus.gpr(gpr_id)
    assert (item["status"]["retryCount"], item["status"]["delayedCount"]) == (1, 1)
    assert "evicted before by gpr-ffffffff-ffff" in item["explanation"]


def gpus_started(gpus: GpuWorld, request: Any) -> Any:
    from inferplane.domain.gpu_request import started

    return started(request, gpus.now())


@pytest.mark.parametrize(
    ("ending", "word"),
    [
        (ProvisioningStatus.COMPLETE, "exit duration of 1h0m0s"),
        (ProvisioningStatus.TIMED_OUT, "idle timeout of 0h5m0s"),
        (ProvisioningStatus.EARLY_RELEASED, "released early"),
        (ProvisioningStatus.FAILED, "the node burned"),
    ],
)
def test_how_a_request_ended_is_said(
    gpus: GpuWorld, team: str, ending: ProvisioningStatus, word: str
) -> None:
    gpr_id = gpus.ask(team, idleTimeOutDuration="5m")
    gpus.grant(gpr_id)
    failed = ending is ProvisioningStatus.FAILED
    gpus.drain(gpr_id, ending, failure_reason="the node burned" if failed else "")
    gpus.end(gpr_id)
    item = gpus.gpr(gpr_id)
    assert item["status"]["provisioningStatus"] == ending.value
    assert item["status"]["completionTimestamp"]
    assert word in item["explanation"]


@pytest.mark.parametrize(
    "change",
    [
        {
            "clusterName": None,
            "preferredClusters": [SECOND, FIRST],
            "memoryPerGPU": 40,
            "instanceType": A100_TYPE,
        },
        {"clusterName": "", "enableAutoClusterSelection": True},
        {**AUTO, "clusterName": SECOND, "memoryPerGPU": 30},
        {**AUTO, "clusterName": None, "enableAutoClusterSelection": True, "memoryPerGPU": 80},
        {"clusterName": SECOND, "gpuShape": BIG, "instanceType": BIG_TYPE, "numberOfGPUs": 8},
        {"memoryPerGPU": None, "memoryPerGpu": 80},
        {"memoryPerGPU": None},
        {"numberOfGPUNodes": 2, "multiNode": True},
        {"priority": 299, "exitDuration": "365d"},
        {"exitDuration": "5m", "priority": None, "idleTimeOutDuration": "", "unknown": {"a": 1}},
    ],
)
def test_every_way_to_choose(gpus: GpuWorld, team: str, change: dict[str, Any]) -> None:
    gpus.gpr(gpus.ask(team, **change))
    body = {"requestName": "asked", **gpus.body(team, gprName=None, **change)}
    data = gpus.owner("POST", f"{GPR}/waittime", body).data
    assert set(data) == {"items"}
    assert data["items"]
    assert all(set(each) == WAIT for each in data["items"])


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"gprName": ""}, "gprName", "Missing"),
        ({"gprName": "g" * 41}, "gprName", "TooLong"),
        ({"gprName": "a\x01b"}, "gprName", "InvalidText"),
        ({"numberOfGPUs": 0}, "numberOfGPUs", "OutOfRange"),
        ({"numberOfGPUs": 101}, "numberOfGPUs", "OutOfRange"),
        ({"numberOfGPUs": None}, "numberOfGPUs", "Missing"),
        ({"numberOfGPUs": "1"}, "numberOfGPUs", "WrongType"),
        ({"numberOfGPUNodes": 0}, "numberOfGPUNodes", "OutOfRange"),
        ({"numberOfGPUNodes": None}, "numberOfGPUNodes", "Missing"),
        ({"exitDuration": None}, "exitDuration", "Missing"),
        ({"exitDuration": ""}, "exitDuration", "Missing"),
        ({"exitDuration": "0m"}, "exitDuration", "OutOfRange"),
        ({"exitDuration": "366d"}, "exitDuration", "OutOfRange"),
        ({"exitDuration": "365d1s"}, "exitDuration", "OutOfRange"),
        ({"idleTimeOutDuration": "366d"}, "idleTimeOutDuration", "OutOfRange"),
        ({"exitDuration": "soon"}, "exitDuration", "InvalidDuration"),
        ({"priority": 0}, "priority", "OutOfRange"),
        ({"priority": 300}, "priority", "OutOfRange"),
        ({"memoryPerGPU": -1}, "memoryPerGPU", "OutOfRange"),
        ({"enforceIdleTimeOut": True}, "idleTimeOutDuration", "Missing"),
        ({"idleTimeOutDuration": "x"}, "idleTimeOutDuration", "InvalidDuration"),
        ({"clusterName": None}, "clusterName", "Missing"),
        ({"clusterName": "nowhere"}, "clusterName", "ClusterNotInWorkspace"),
        ({"preferredClusters": [FIRST, "no"]}, "preferredClusters[1]", "ClusterNotInWorkspace"),
        (
            {"enableAutoClusterSelection": True, "preferredClusters": [FIRST]},
            "preferredClusters",
            "Contradiction",
        ),
        ({"enableAutoGpuSelection": True}, "gpuShape", "Contradiction"),
        ({**AUTO, "memoryPerGPU": None}, "memoryPerGPU", "Missing"),
        ({"gpuShape": None}, "gpuShape", "Missing"),
        ({"instanceType": None}, "instanceType", "Missing"),
        ({"gpuShape": "hello"}, "gpuShape", "NoSuchShape"),
        ({"gpuShape": "s" * 200}, "gpuShape", "InvalidText"),
        ({**AUTO, "memoryPerGPU": 100}, "memoryPerGPU", "NoSuchShape"),
        ({"memoryPerGPU": 1024}, "memoryPerGPU", "NoSuchShape"),
        ({"numberOfGPUs": 2}, "numberOfGPUs", "LargerThanCluster"),
        ({"numberOfGPUNodes": 3}, "numberOfGPUNodes", "LargerThanCluster"),
    ],
)
def test_what_cannot_be_meant_is_422(
    gpus: GpuWorld, team: str, change: dict[str, Any], field: str, reason: str
) -> None:
    error = gpus.owner("POST", GPR, gpus.body(team, **change)).is_error(422, "INVALID")
    assert (field, reason) in [(each["field"], each["reason"]) for each in error["details"]] or (
        error["field"],
        error["reason"],
    ) == (field, reason)
    if field != "gprName" or reason == "InvalidText":  # a question needs no name
        body = gpus.body(team, **change)
        gpus.owner("POST", f"{GPR}/waittime", body).is_error(422, "INVALID")
    assert gpus.owner("GET", f"{GPR}/list?sliceName={team}").data == {"items": []}


def test_every_problem_is_told_at_once(gpus: GpuWorld, team: str) -> None:
    body = {"sliceName": team, "gprName": "x" * 50, "priority": 400}
    error = gpus.owner("POST", GPR, body).is_error(422, "INVALID")
    fields = {each["field"] for each in error["details"]}
    assert fields >= {"numberOfGPUs", "numberOfGPUNodes", "exitDuration", "gprName", "priority", "gpuShape"}
    gpus.owner("POST", GPR, {}).is_error(422, "INVALID", "Missing")
    gpus.owner("POST", GPR, b"{").is_error(400, "INVALID")
    gpus.owner("POST", GPR, gpus.body("nowhere")).is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    gpus.owner("GET", f"{GPR}/list?sliceName=nowhere").is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    gpus.owner("GET", GPR).is_error(422, "INVALID", "Missing")
    gpus.owner("GET", f"{GPR}?gprId=gpr-1").is_error(404, "NOT_FOUND", "GprNotFound")


def test_what_is_there_is_named_where_something_else_was_asked_for(gpus: GpuWorld, team: str) -> None:
    error = gpus.owner("POST", GPR, gpus.body(team, gpuShape="hello")).is_error(422, "INVALID")
    assert "hello" in error["message"]
    assert f"{A100} ({A100_TYPE}, 80 GB) on {FIRST}" in error["nextAction"]
    empty = gpus.workspace("local")
    error = gpus.owner("POST", GPR, gpus.body(empty, clusterName="local")).is_error(422, "INVALID")
    assert "no GPUs" in error["message"]


def test_a_repeated_create_is_one_request(gpus: GpuWorld, team: str) -> None:
    body, headers = gpus.body(team), {"Idempotency-Key": gpus.name("k")}
    first, second = (gpus.owner("POST", GPR, body, headers=headers).data for _ in range(2))
    assert first == second
    assert len(gpus.owner("GET", f"{GPR}/list?sliceName={team}").data["items"]) == 1


def test_what_waits_is_renamed_reprioritised_and_extended(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)

    def put(**change: Any) -> Any:
        return gpus.owner("PUT", GPR, {"gprId": gpr_id, **change})

    assert put(priority=250).data == {}
    assert put(gprName="other").data == {}
    assert put(exitDuration="2h").data == {}
    item = gpus.gpr(gpr_id)
    assert (item["priority"], item["gprName"], item["exitDuration"]) == (250, "other", "2h0m0s")
    put().is_error(422, "INVALID", "Missing")
    put(earlyRelease=None).is_error(422, "INVALID", "Missing")
    put(priority=0).is_error(422, "INVALID", "OutOfRange")
    put(gprName="x" * 41).is_error(422, "INVALID", "TooLong")
    put(exitDuration="long").is_error(422, "INVALID", "InvalidDuration")
    put(exitDuration="400d").is_error(422, "INVALID", "OutOfRange")
    error = put(earlyRelease=True, priority=7).is_error(409, "CONFLICT")
    assert error["message"] == "Cannot update early release of GPR in Queued state"
    assert gpus.gpr(gpr_id)["priority"] == 250  # together or not at all
    gpus.owner("PUT", GPR, {"gprId": "gpr-1", "priority": 7}).is_error(404, "NOT_FOUND", "GprNotFound")
    gpus.owner("PUT", GPR, {"priority": 7}).is_error(422, "INVALID", "Missing")


def test_not_to_be_released_early_changes_nothing_whatever_its_state(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)

    def put(**change: Any) -> Any:
        return gpus.owner("PUT", GPR, {"gprId": gpr_id, **change})

    before = gpus.request(gpr_id)
    assert put(earlyRelease=False).data == {}
    assert gpus.request(gpr_id) == before
    assert put(earlyRelease=False, priority=7).data == {}
    assert gpus.gpr(gpr_id)["priority"] == 7
    gpus.grant(gpr_id)
    gpus.drain(gpr_id, ProvisioningStatus.EARLY_RELEASED)
    for _ in range(2):
        before = gpus.request(gpr_id)
        assert put(earlyRelease=False).data == {}
        assert gpus.request(gpr_id) == before
        if before.status is ProvisioningStatus.DRAINING:
            gpus.end(gpr_id)
    unknown = gpus.owner("PUT", GPR, {"gprId": "gpr-00000000-aaaa", "earlyRelease": False})
    unknown.is_error(404, "NOT_FOUND", "GprNotFound")
    gpus.client("Viewer", team)("PUT", GPR, {"gprId": gpr_id, "earlyRelease": False}).is_error(
        403, "FORBIDDEN"
    )


def test_what_has_no_effect_here_is_echoed(gpus: GpuWorld, team: str) -> None:
    names = ("dedicatedNodes", "enableRDMA", "enableSecondaryNetwork", "multiNode")
    given: dict[str, Any] = dict.fromkeys(names, True)
    item = gpus.gpr(gpus.ask(team, **given))
    assert {name: item[name] for name in given} == given


def test_an_idle_timeout_that_nothing_can_measure_is_accepted_and_says_so(gpus: GpuWorld, team: str) -> None:
    idle = {"enforceIdleTimeOut": True, "idleTimeOutDuration": "5m"}
    gpr_id, plain = gpus.ask(team, gpus.owner, **idle), gpus.ask(team)
    gpus.grant(gpr_id)
    gpus.grant(plain, "gpu-1")
    assert gpus.gpr(gpr_id)["enforceIdleTimeOut"] is True
    assert "its idle timeout has no effect: nothing measures" in gpus.gpr(gpr_id)["explanation"]
    listed = gpus.owner("GET", f"{GPR}/list?sliceName={team}").data["items"]
    assert ["no effect" in each["explanation"] for each in listed] == [True, False]
    gpus.grants_measured = True
    assert "no effect" not in gpus.gpr(gpr_id)["explanation"]
    gpus.grants_measured = False


def test_what_runs_is_released_and_then_deleted(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)
    gpus.grant(gpr_id)
    delete = {"gprId": gpr_id}
    error = gpus.owner("DELETE", GPR, delete).is_error(409, "CONFLICT")
    assert "Cannot delete GPR in Successful state" in error["message"]
    assert error["nextAction"]
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "priority": 7}).is_error(409, "CONFLICT")
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "gprName": "x"}).is_error(409, "CONFLICT")
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "exitDuration": "3h"}).ok()
    assert gpus.gpr(gpr_id)["remainingDuration"].startswith("2h59m")
    assert gpus.owner("PUT", GPR, {"gprId": gpr_id, "earlyRelease": True}).data == {}
    item = gpus.gpr(gpr_id)
    assert item["earlyRelease"] is True
    assert (item["status"]["provisioningStatus"], item["status"]["internalState"]) == ("Draining", "Reserved")
    gpus.owner("DELETE", GPR, delete).is_error(409, "CONFLICT")
    gpus.owner("PUT", GPR, {"gprId": gpr_id, "earlyRelease": True}).is_error(409, "CONFLICT")
    gpus.end(gpr_id)
    assert gpus.gpr(gpr_id)["status"]["provisioningStatus"] == "EarlyReleased"
    assert re.search("it was released early by .+", gpus.gpr(gpr_id)["explanation"])
    assert gpus.owner("DELETE", GPR, delete).data == {}
    gpus.owner("DELETE", GPR, delete).is_error(404, "NOT_FOUND", "GprNotFound")


def test_what_waits_is_deleted_at_once(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)
    assert gpus.owner("DELETE", GPR, {"gprId": gpr_id}).data == {}
    gpus.owner("GET", f"{GPR}?gprId={gpr_id}").is_error(404, "NOT_FOUND", "GprNotFound")
    gpus.owner("DELETE", GPR, {}).is_error(422, "INVALID", "Missing")


def test_wait_times_are_soonest_first_and_store_nothing(gpus: GpuWorld, team: str) -> None:
    for node in ("gpu-0", "gpu-1"):
        gpus.grant(gpus.ask(team), node)
    body = gpus.body(team, clusterName=None, enableAutoClusterSelection=True, memoryPerGPU=40, **AUTO)
    before = gpus.owner("GET", f"{GPR}/list?sliceName={team}").data
    items = gpus.owner("POST", f"{GPR}/waittime", body).data["items"]
    assert gpus.owner("GET", f"{GPR}/list?sliceName={team}").data == before
    kinds = [(each["clusterName"], each["instanceType"]) for each in items]
    assert kinds[-1] == (FIRST, A100_TYPE)
    assert set(kinds[:2]) == {(SECOND, "a2-highgpu-1g"), (SECOND, BIG_TYPE)}
    assert [each["estimatedWaitTime"] for each in items[:2]] == ["0h0m0s", "0h0m0s"]
    assert re.fullmatch(r"(0h59m|1h0m).*s", items[-1]["estimatedWaitTime"])
    assert items[-1]["queuePosition"] == 1
    assert all(each["explanation"] for each in items)
    starts = [datetime.fromisoformat(each["estimatedStartTime"]) for each in items]
    assert starts == sorted(starts)
    assert "1 GPU is needed; none is free; " in items[-1]["explanation"]
    assert "a-question" not in str(items)


def test_too_many_questions_at_once_are_told_to_come_back(gpus: GpuWorld, team: str) -> None:
    busy = gpus.do(_ask_all_at_once(gpus))
    try:
        refused = gpus.owner("POST", f"{GPR}/waittime", gpus.body(team))
        refused.is_error(429, "RATE_LIMITED", "TooManyQuestions")
        assert int(refused.headers["Retry-After"]) >= 1
    finally:
        gpus.do(busy.aclose())
    gpus.owner("POST", f"{GPR}/waittime", gpus.body(team)).ok()


async def _ask_all_at_once(gpus: GpuWorld) -> AsyncExitStack:
    """Take every place that there is for questions."""
    stack = AsyncExitStack()
    for number in range(gpus.limits.questions_max):
        place = gpus.platform.questions.place(f"other-{number}", gpus.limits.questions_max, 1)
        await stack.enter_async_context(place)
    return stack


def test_another_workspaces_requests_do_not_exist(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)
    for role in ("Editor", "Viewer"):
        stranger = gpus.client(role, gpus.team())
        unknown = "gpr-00000000-aaaa"
        for method, body in (("GET", {}), ("PUT", {"priority": 7}), ("DELETE", {})):
            replies = [
                stranger(method, f"{GPR}?gprId={each}" if method == "GET" else GPR, {**body, "gprId": each})
                for each in (gpr_id, unknown)
            ]
            for reply in replies:
                reply.is_error(404, "NOT_FOUND", "GprNotFound")
            assert replies[0].body["message"].replace(gpr_id, unknown) == replies[1].body["message"]
        assert stranger("GET", f"{GPR}/list").data == {"items": []}
    assert gpus.gpr(gpr_id)["priority"] == 101


def test_a_viewer_looks_and_an_editor_acts(gpus: GpuWorld, team: str) -> None:
    editor, viewer = gpus.client("Editor", team), gpus.client("Viewer", team)
    gpr_id = gpus.ask(team, editor)
    assert gpus.gpr(gpr_id, viewer)["gprId"] == gpr_id
    assert [each["gprId"] for each in viewer("GET", f"{GPR}/list").data["items"]] == [gpr_id]
    viewer("POST", f"{GPR}/waittime", gpus.body(team)).ok()
    viewer("POST", GPR, gpus.body(team)).is_error(403, "FORBIDDEN")
    viewer("PUT", GPR, {"gprId": gpr_id, "priority": 7}).is_error(403, "FORBIDDEN")
    viewer("DELETE", GPR, {"gprId": gpr_id}).is_error(403, "FORBIDDEN")
    editor("PUT", GPR, {"gprId": gpr_id, "priority": 7}).ok()
    editor("DELETE", GPR, {"gprId": gpr_id}).ok()
