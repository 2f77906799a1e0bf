"""Endpoints on GPUs: asked for together, on the cluster where it goes fastest, and told as one thing."""

from __future__ import annotations

import re
import threading
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from api_world import wait_for
from gpu_world import A100, A100_TYPE, BIG, BIG_TYPE, FIRST, GPR, SECOND, GpuWorld
from inferplane.domain.endpoint import GpuNote
from inferplane.domain.gpu_request import ProvisioningStatus

ENDPOINT, WORKSPACE = "/api/v1/inference-endpoint", "/api/v1/slice-workspace"
TEMPLATE, BINDING = "/api/v1/gpr-template", "/api/v1/gpr-template-binding"
SPEC = {
    "gpuShape": A100,
    "instanceType": A100_TYPE,
    "memoryPerGPU": 80,
    "numberOfGPUs": 1,
    "numberOfGPUNodes": 1,
}
ANY_GPU = {"enableAutoGpuSelection": True, "memoryPerGPU": 40}
MANIFEST = """
spec:
  predictor:
    model:
      modelFormat: {name: sklearn}
      storageUri: /models/iris.joblib
      resources: {limits: {nvidia.com/gpu: '1'}}
"""


@pytest.fixture
def team(gpus: GpuWorld) -> str:
    return gpus.team()


def request(gpus: GpuWorld, team: str, **change: Any) -> dict[str, Any]:
    return {
        "endpointName": gpus.name("e"),
        "workspace": team,
        "clusterName": FIRST,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/models/iris.joblib"},
        "gpuSpec": SPEC,
        **change,
    }


def create(gpus: GpuWorld, team: str, **change: Any) -> str:
    body = request(gpus, team, **change)
    data = gpus.owner("POST", ENDPOINT, body).data
    assert data == {"endpointName": body["endpointName"]}
    name: str = body["endpointName"]
    return name


def described(gpus: GpuWorld, team: str, name: str) -> dict[str, Any]:
    endpoint: dict[str, Any] = gpus.owner("GET", f"{ENDPOINT}?workspace={team}&endpoint={name}").data[
        "endpoint"
    ]
    return endpoint


def place(team: str, name: str) -> dict[str, str]:
    return {"workspace": team, "endpoint": name}


def test_an_endpoint_and_its_request_are_made_together(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team, endpointName="a-name-that-is-longer-than-gpr-names-may-be")
    endpoint = described(gpus, team, name)
    [item] = endpoint["gpuRequests"]
    assert item == {
        "gprName": item["gprName"],
        "gprId": item["gprId"],
        "instanceType": A100_TYPE,
        "gpuShape": A100,
        "numberOfGPUs": 1,
        "numberOfGPUNodes": 1,
        "memoryPerGPU": "81920",
        "status": "Queued",
    }
    assert re.fullmatch(r"a-name-that-is-longer-than-gp[a-z]?-gpr-[a-z0-9]{6}", item["gprName"])
    gpr = gpus.gpr(item["gprId"])
    assert (gpr["endpointName"], gpr["clusterName"], gpr["exitDuration"]) == (name, FIRST, "168h0m0s")
    stored = gpus.stored(team, name)
    assert stored.spec.gpu is not None
    assert stored.spec.gpu.auto_renew is True
    assert gpus.request(item["gprId"]).endpoint_uid == stored.uid
    assert endpoint["gpu"] is None  # no controller has looked yet


def test_what_is_given_is_kept(gpus: GpuWorld, team: str) -> None:
    spec = {
        **SPEC,
        "memoryPerGPU": None,
        "memoryPerGpu": 40,
        "exitDuration": "3h",
        "priority": 250,
        "idleTimeOutDuration": "10m",
        "enforceIdleTimeOut": True,
        "enableEviction": True,
        "requeueOnFailure": True,
        "autoRenew": False,
    }
    name = create(gpus, team, gpuSpec=spec)
    [request_] = gpus.requests_of(gpus.stored(team, name).uid)
    assert request_.exit_duration == timedelta(hours=3)
    assert (request_.priority, request_.selection.memory_gb) == (250, 40)
    assert (request_.enforce_idle, request_.enable_eviction, request_.requeue_on_failure) == (True,) * 3
    assert request_.auto_renew is False


def test_a_queued_endpoint_says_where_it_stands(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team)
    [item] = described(gpus, team, name)["gpuRequests"]
    start = gpus.now() + timedelta(minutes=5)
    gpus.tell_endpoint(
        team,
        name,
        GpuNote(
            item["gprId"],
            ProvisioningStatus.QUEUED,
            position=2,
            message="position 2; 1 GPU is needed; 0 are free",
            estimated_start=start,
        ),
    )
    endpoint = described(gpus, team, name)
    assert (endpoint["status"], endpoint["reason"]) == ("Queued", "AwaitingGpu")
    assert "position 2" in endpoint["message"]
    assert set(endpoint["gpu"]) == {
        *("gprId", "status", "clusterName", "nodes", "queuePosition", "message"),
        *("estimatedStartTime", "since", "endedReason"),
    }
    assert (endpoint["gpu"]["gprId"], endpoint["gpu"]["queuePosition"]) == (item["gprId"], 2)
    [listed] = gpus.owner("GET", f"{ENDPOINT}/list?workspace={team}").data["endpoints"]
    assert (listed["status"], listed["queuePosition"]) == ("Queued", 2)
    gpus.grant(item["gprId"], run=False)
    gpus.tell_endpoint(
        team,
        name,
        GpuNote(
            item["gprId"],
            ProvisioningStatus.PROVISIONING,
            cluster=FIRST,
            nodes=(("gpu-0", (0,)),),
            since=gpus.now(),
        ),
    )
    endpoint = described(gpus, team, name)
    assert endpoint["status"] == "Provisioning"
    assert endpoint["gpu"]["nodes"] == [{"node": "gpu-0", "indexes": [0]}]
    assert endpoint["gpuRequests"][0]["status"] == "Provisioned"


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        (
            {"gpuShape": "hello", "instanceType": "world", "memoryPerGPU": 1024},
            "gpuSpec.gpuShape",
            "NoSuchShape",
        ),
        ({"numberOfGPUs": 0}, "gpuSpec.numberOfGPUs", "OutOfRange"),
        ({"numberOfGPUs": 2}, "gpuSpec.numberOfGPUs", "LargerThanCluster"),
        ({"gpuShape": None}, "gpuSpec.gpuShape", "Missing"),
        ({"exitDuration": "x"}, "gpuSpec.exitDuration", "InvalidDuration"),
        ({"priority": 500}, "gpuSpec.priority", "OutOfRange"),
        ({"enforceIdleTimeOut": True}, "gpuSpec.idleTimeOutDuration", "Missing"),
        ({"enableAutoGpuSelection": True}, "gpuSpec.gpuShape", "Contradiction"),
        ({"numberOfGPUs": "many"}, "gpuSpec.numberOfGPUs", "WrongType"),
    ],
)
def test_what_cannot_be_meant_is_422_and_stores_nothing(
    gpus: GpuWorld, team: str, spec: dict[str, Any], field: str, reason: str
) -> None:
    body = request(gpus, team, gpuSpec={**SPEC, **spec})
    error = gpus.owner("POST", ENDPOINT, body).is_error(422, "INVALID")
    told = [(each["field"], each["reason"]) for each in error["details"]]
    assert (field, reason) in [*told, (error["field"], error["reason"])]
    assert gpus.owner("GET", f"{ENDPOINT}/list?workspace={team}").data == {"endpoints": []}
    assert gpus.owner("GET", f"{GPR}/list?sliceName={team}").data == {"items": []}


def test_the_soonest_of_the_candidates_is_taken(gpus: GpuWorld, team: str) -> None:
    either = {"clusterName": "", "clusterPrecedence": [FIRST, SECOND], "gpuSpec": ANY_GPU}
    name = create(gpus, team, **either)  # both are free: the one named first
    assert described(gpus, team, name)["clusterName"] == FIRST
    for node in ("gpu-0", "gpu-1"):
        gpus.grant(gpus.ask(team), node)
    name = create(gpus, team, **either)
    assert described(gpus, team, name)["clusterName"] == SECOND
    [request_] = gpus.requests_of(gpus.stored(team, name).uid)
    assert request_.selection.cluster_name == SECOND  # fixed
    name = create(gpus, team, clusterName=None, gpuSpec={**ANY_GPU, "enableAutoClusterSelection": True})
    assert described(gpus, team, name)["clusterName"] == SECOND
    error = gpus.owner("POST", ENDPOINT, request(gpus, team, clusterName="", gpuSpec=ANY_GPU)).is_error(
        422, "INVALID", "Missing"
    )
    assert "enableAutoClusterSelection" in error["nextAction"]
    nowhere = request(gpus, team, **{**either, "clusterPrecedence": ["nowhere"]})
    gpus.owner("POST", ENDPOINT, nowhere).is_error(422, "INVALID", "ClusterNotInWorkspace")
    none = request(gpus, team, **{**either, "gpuSpec": {**ANY_GPU, "memoryPerGPU": 500}})
    gpus.owner("POST", ENDPOINT, none).is_error(422, "INVALID", "NoSuchShape")


async def _ask_everything(gpus: GpuWorld) -> AsyncExitStack:
    """As others who take every place that there is for questions."""
    stack = AsyncExitStack()
    for number in range(gpus.limits.questions_max):
        place = gpus.platform.questions.place(f"other-{number}", gpus.limits.questions_max, 1)
        await stack.enter_async_context(place)
    return stack


def test_others_questions_stop_nobody_from_creating(gpus: GpuWorld, team: str) -> None:
    for node in ("gpu-0", "gpu-1"):
        gpus.grant(gpus.ask(team), node)
    either = {"clusterName": "", "clusterPrecedence": [FIRST, SECOND], "gpuSpec": ANY_GPU}
    only_second = {**SPEC, "gpuShape": BIG, "instanceType": BIG_TYPE}
    busy = gpus.do(_ask_everything(gpus))
    try:
        gpus.owner("POST", f"{ENDPOINT}?dryRun=true", request(gpus, team, **either)).ok()
        data = gpus.owner("POST", ENDPOINT, request(gpus, team, **either)).data
        (warning,) = data["warnings"]
        assert warning == (
            f"so many ask how long GPUs take that clusters were not compared: {FIRST} is the first of "
            f"{FIRST}, {SECOND}, and another one may have GPUs sooner"
        )
        assert described(gpus, team, data["endpointName"])["clusterName"] == FIRST
        name = create(gpus, team, **{**either, "gpuSpec": only_second})  # nothing to compare, so no warning
        assert described(gpus, team, name)["clusterName"] == SECOND
    finally:
        gpus.do(busy.aclose())


def test_policies_hold_for_endpoints(gpus: GpuWorld, team: str) -> None:
    policy = f"/api/v1/workspace-policies/{team}"
    gpus.owner("PUT", policy, {"maxInferenceEndpoints": 1, "priorityRange": "low"}).ok()
    error = gpus.owner("POST", ENDPOINT, request(gpus, team, gpuSpec={**SPEC, "priority": 150})).is_error(
        403, "QUOTA_EXCEEDED", "PriorityNotAllowed"
    )
    assert error["field"] == "gpuSpec.priority"
    name = create(gpus, team)
    [request_] = gpus.requests_of(gpus.stored(team, name).uid)
    assert request_.priority == 100
    gpus.owner("POST", ENDPOINT, request(gpus, team, gpuSpec=None)).is_error(
        403, "QUOTA_EXCEEDED", "QuotaExceeded"
    )
    checks = gpus.owner("POST", f"{ENDPOINT}?dryRun=true", request(gpus, team)).data["preflight"]
    assert {each["check"]: each["reason"] for each in checks if not each["ok"]}["quota"] == "QuotaExceeded"


def test_a_dry_run_says_how_long_it_would_wait(gpus: GpuWorld, team: str) -> None:
    def gpu(**change: Any) -> dict[str, Any]:
        data = gpus.owner("POST", f"{ENDPOINT}?dryRun=true", request(gpus, team, **change)).data
        [check] = [each for each in data["preflight"] if each["check"] == "gpu"]
        found: dict[str, Any] = check
        return found

    assert gpu(gpuSpec=None)["message"] == "runs on CPU"
    assert "free now" in gpu()["message"]
    for node in ("gpu-0", "gpu-1"):
        gpus.grant(gpus.ask(team), node)
    waiting = gpu()
    assert waiting["ok"] is True
    assert re.search(r"starts in about (0h59m|1h0m)", waiting["message"])
    assert "1 GPU is needed; none is free; " in waiting["message"]
    refused = gpu(gpuSpec={**SPEC, "gpuShape": "hello"})
    assert (refused["ok"], refused["reason"]) == (False, "NoSuchShape")
    assert gpu(gpuSpec={"numberOfGPUs": 1})["reason"] == "Missing"
    assert gpus.owner("GET", f"{ENDPOINT}/list?workspace={team}").data == {"endpoints": []}


def test_a_manifest_that_asks_for_gpus_gets_the_default_template(gpus: GpuWorld, team: str) -> None:
    def ask(**change: Any) -> Any:
        body = {"endpointName": gpus.name("e"), "workspace": team, "clusterName": SECOND, **change}
        return gpus.owner("POST", ENDPOINT, {**body, "rawModelSpec": MANIFEST}), body["endpointName"]

    ask()[0].is_error(422, "INVALID", "Missing")
    template = gpus.name("t")
    gpus.owner(
        "POST",
        TEMPLATE,
        {
            "name": template,
            "clusterName": SECOND,
            "numberOfGPUs": 4,
            "numberOfGPUNodes": 1,
            "memoryPerGpu": 80,
            "gpuShape": BIG,
            "instanceType": BIG_TYPE,
            "exitDuration": "2h",
            "priority": 33,
            "enableEviction": True,
        },
    ).ok()
    bound = [{"clusterName": SECOND, "defaultTemplateName": template}]
    gpus.owner("POST", BINDING, {"workspaceName": team, "clusters": bound}).ok()
    ask()[0].is_error(422, "INVALID", "Missing")  # bound, but not by itself
    gpus.owner("PUT", BINDING, {"workspaceName": team, "enableAutoGPR": True}).ok()
    reply, name = ask()
    reply.ok()
    [request_] = gpus.requests_of(gpus.stored(team, name).uid)
    assert (request_.selection.gpu_shape, request_.selection.gpus_per_node) == (BIG, 4)
    assert (request_.priority, request_.exit_duration) == (33, timedelta(hours=2))
    assert request_.enable_eviction is True
    ask(clusterName=FIRST)[0].is_error(422, "INVALID", "Missing")
    reply, name = ask(gpuSpec={**ANY_GPU})  # what is said counts more
    [request_] = gpus.requests_of(gpus.stored(team, name).uid)
    assert request_.selection.auto_gpu is True


def test_start_asks_again_for_what_was_given_back(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team)
    uid = gpus.stored(team, name).uid
    [first] = gpus.requests_of(uid)
    gpus.grant(first.id)
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert len(gpus.requests_of(uid)) == 1  # it runs
    gpus.owner("POST", f"{ENDPOINT}/stop", place(team, name)).ok()
    gpus.owner("PUT", GPR, {"gprId": first.id, "earlyRelease": True}).ok()
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert [each.status for each in gpus.requests_of(uid)] == ["Draining", "Queued"]
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert len(gpus.requests_of(uid)) == 2
    statuses = [each["status"] for each in described(gpus, team, name)["gpuRequests"]]
    assert statuses == ["Released", "Queued"]


def test_start_helps_an_endpoint_that_lost_its_gpus(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team)
    uid = gpus.stored(team, name).uid
    [first] = gpus.requests_of(uid)
    gpus.grant(first.id)
    gpus.drain(first.id, ProvisioningStatus.COMPLETE)
    gpus.end(first.id)
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert [each.status for each in gpus.requests_of(uid)] == ["Complete", "Queued"]
    kinds = [
        each["kind"]
        for each in gpus.owner("GET", f"{ENDPOINT}/events?workspace={team}&endpoint={name}").data["events"]
    ]
    assert "EndpointStartRequested" in kinds
    policy = f"/api/v1/workspace-policies/{team}"
    second = gpus.requests_of(uid)[-1]
    gpus.owner("DELETE", GPR, {"gprId": second.id}).ok()
    gpus.owner("PUT", policy, {"maxGPRs": 0}).ok()
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).is_error(
        403, "QUOTA_EXCEEDED", "TooManyRequests"
    )
    assert gpus.stored(team, name).spec.stopped is True


def test_a_clock_that_goes_back_confuses_no_start(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team)
    uid = gpus.stored(team, name).uid
    [first] = gpus.requests_of(uid)
    gpus.grant(first.id)
    gpus.drain(first.id, ProvisioningStatus.COMPLETE)
    gpus.end(first.id)
    gpus.later = timedelta(hours=-1)
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert [each.status for each in gpus.requests_of(uid)] == ["Complete", "Queued"]
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert len(gpus.requests_of(uid)) == 2  # the one that waits is found, older or not
    gpus.owner("DELETE", GPR, {"gprId": gpus.requests_of(uid)[-1].id}).ok()
    assert gpus.stored(team, name).spec.stopped is True


def test_one_that_comes_back_by_itself_is_not_asked_for_twice(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team, gpuSpec={**SPEC, "requeueOnFailure": True})
    uid = gpus.stored(team, name).uid
    [first] = gpus.requests_of(uid)
    gpus.grant(first.id)
    gpus.drain(first.id, ProvisioningStatus.EVICTED)
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert len(gpus.requests_of(uid)) == 1


def test_one_that_was_stopped_while_it_was_evicted_can_be_started_again(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team, gpuSpec={**SPEC, "requeueOnFailure": True})
    uid = gpus.stored(team, name).uid
    [first] = gpus.requests_of(uid)
    gpus.grant(first.id)
    gpus.drain(first.id, ProvisioningStatus.EVICTED)
    gpus.owner("POST", f"{ENDPOINT}/stop", place(team, name)).ok()
    gpus.end(first.id)  # nobody wants it just now, so it is not put back into the queue
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert [each.status for each in gpus.requests_of(uid)] == ["Evicted", "Queued"]


def test_a_stopped_manifest_asks_for_nothing_yet(gpus: GpuWorld, team: str) -> None:
    manifest = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: m\n  annotations:\n"
        "    serving.kserve.io/stop: 'true'\n" + MANIFEST.replace("nvidia.com/gpu: '1'", "cpu: '1'")
    )
    name = create(gpus, team, modelSpec=None, rawModelSpec=manifest)
    uid = gpus.stored(team, name).uid
    assert gpus.requests_of(uid) == []
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert len(gpus.requests_of(uid)) == 1


def test_deleting_the_request_that_an_endpoint_waits_for_stops_it(gpus: GpuWorld, team: str) -> None:
    name = create(gpus, team)
    [request_] = gpus.requests_of(gpus.stored(team, name).uid)
    gpus.owner("DELETE", GPR, {"gprId": request_.id}).ok()
    stored = gpus.stored(team, name)
    assert stored.spec.stopped is True
    assert stored.generation == 2
    assert (
        stored.spec.stopped_because
        == f"its GPU request {request_.name} was deleted by {stored.spec.stopped_by}"
    )
    gpus.owner("POST", f"{ENDPOINT}/start", place(team, name)).ok()
    assert len(gpus.requests_of(stored.uid)) == 1
    gpus.owner("POST", f"{ENDPOINT}/stop", place(team, name)).ok()
    assert gpus.stored(team, name).spec.stopped_because == ""


def test_a_repeated_create_asks_once(gpus: GpuWorld, team: str) -> None:
    body, headers = request(gpus, team), {"Idempotency-Key": gpus.name("k")}
    for _ in range(2):
        gpus.owner("POST", ENDPOINT, body, headers=headers).ok()
    assert len(gpus.owner("GET", f"{GPR}/list?sliceName={team}").data["items"]) == 1


# Workspaces with GPUs in them


def test_a_workspace_with_requests_is_not_deleted_unasked(gpus: GpuWorld, team: str) -> None:
    waits, runs = gpus.ask(team, gprName="waits"), gpus.ask(team, gprName="runs")
    gpus.grant(runs)
    name = {"workspaceName": team}
    error = gpus.owner("DELETE", WORKSPACE, name).is_error(409, "CONFLICT", "WorkspaceNotEmpty")
    assert "waits" in error["message"]
    assert {each["reason"] for each in error["details"]} == {"GprActive"}
    assert len(error["details"]) == 2
    error = gpus.owner("DELETE", WORKSPACE, {**name, "force": True}).is_error(409, "CONFLICT")
    assert "Draining" in error["details"][0]["message"]  # what waited is gone, what ran is ending
    gpus.owner("GET", f"{GPR}?gprId={waits}").is_error(404, "NOT_FOUND")

    ending = threading.Thread(target=gpus.end, args=(runs,))
    ending.start()
    wait_for(
        lambda: gpus.owner("DELETE", WORKSPACE, {**name, "force": True}).status == 200, "the workspace to go"
    )
    ending.join()
    gpus.owner("GET", f"{GPR}?gprId={runs}").is_error(404, "NOT_FOUND")


def test_a_cluster_that_a_request_uses_is_not_taken_away(gpus: GpuWorld, team: str) -> None:
    gpr_id = gpus.ask(team)
    change = {"workspaceName": team, "clusters": [SECOND]}
    gpus.owner("PUT", WORKSPACE, change).is_error(409, "CONFLICT", "WorkspaceNotEmpty")
    gpus.owner("DELETE", GPR, {"gprId": gpr_id}).ok()
    gpus.owner("PUT", WORKSPACE, change).ok()
