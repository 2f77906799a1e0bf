"""Kinds of trouble that no recording shows: small pods by hand, as Kubernetes writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inferplane.controllers.endpoint_plan import plan
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    InferenceEndpoint,
    ModelSpec,
    PublicState,
    PublicStatus,
    ReplicaState,
    Scaling,
    public_state,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.kserve.observe import observe
from inferplane.engines.kserve.picture import Picture, log_key
from inferplane.engines.port import Observation

Raw = dict[str, Any]
UID = "0123456789ab"
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
OWNER = "set-1"
IMAGE = "registry.example.com/server:1"


def at(seconds: float) -> str:
    """A moment so many seconds before NOW, as objects have it."""
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def service(status: Mapping[str, Any] | None = None, **metadata: Any) -> Raw:
    ready = {
        "url": "http://demo.example.com",
        "observedGeneration": 1,
        "conditions": [{"type": "IngressReady", "status": "True"}],
    }
    return {
        "metadata": {
            "name": "demo",
            "namespace": "team-demo",
            "uid": "service",
            "generation": 1,
            "creationTimestamp": at(60),
            **metadata,
        },
        "spec": {"predictor": {"minReplicas": 1}},
        "status": ready if status is None else dict(status),
    }


def deployment(replicas: int = 1) -> Raw:
    return {
        "metadata": {"name": "demo-predictor", "uid": "deployment", "creationTimestamp": at(60)},
        "spec": {"replicas": replicas, "progressDeadlineSeconds": 600},
    }


def replica_set(**status: Any) -> Raw:
    return {
        "metadata": {
            "name": "demo-predictor-1",
            "uid": OWNER,
            "creationTimestamp": at(60),
            "annotations": {"deployment.kubernetes.io/revision": "1"},
            "ownerReferences": [{"uid": "deployment", "controller": True}],
        },
        "spec": {"replicas": 1},
        "status": status,
    }


def pod(
    name: str = "demo-1",
    *,
    age: float = 50,
    containers: Sequence[Raw] = (),
    inits: Sequence[Raw] = (),
    ready: bool = False,
    conditions: Sequence[Raw] = (),
    going: bool = False,
    **status: Any,
) -> Raw:
    metadata: Raw = {
        "name": name,
        "uid": f"uid-{name}",
        "creationTimestamp": at(age),
        "ownerReferences": [{"uid": OWNER, "controller": True}],
    }
    if going:
        metadata |= {"deletionTimestamp": at(-30), "deletionGracePeriodSeconds": 30}
    limits = {"limits": {"memory": "1Gi"}}
    return {
        "metadata": metadata,
        "spec": {
            "nodeName": "node-1",
            "initContainers": [
                {
                    "name": "storage-initializer",
                    "image": "init:1",
                    "args": ["s3://bucket/model", "/mnt/models"],
                }
            ],
            "containers": [{"name": "kserve-container", "image": IMAGE, "resources": limits}],
        },
        "status": {
            "phase": "Pending",
            "startTime": at(age),
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": str(ready), "lastTransitionTime": at(age)},
                {"type": "ContainersReady", "status": str(ready), "lastTransitionTime": at(age)},
                *conditions,
            ],
            "initContainerStatuses": list(inits),
            "containerStatuses": list(containers),
            **status,
        },
    }


def container(
    state: Raw, *, runs: int = 0, last: Raw | None = None, ready: bool = False, name: str = "kserve-container"
) -> Raw:
    before = {"terminated": last} if last is not None else {}
    return {
        "name": name,
        "image": IMAGE,
        "state": state,
        "lastState": before,
        "restartCount": runs,
        "ready": ready,
    }


def waits(reason: str, message: str = "", **more: Any) -> Raw:
    return container({"waiting": {"reason": reason, "message": message}}, **more)


def ended(code: int, reason: str = "Error", *, ago: float = 5, message: str = "", lasted: float = 1) -> Raw:
    return {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": at(ago + lasted),
        "finishedAt": at(ago),
    }


def running(ago: float) -> Raw:
    return {"running": {"startedAt": at(ago)}}


def event(
    reason: str,
    message: str,
    *,
    ago: float = 3,
    first: float | None = None,
    about: str = "Pod",
    name: str = "demo-1",
    container_name: str = "",
    warns: bool = True,
) -> Raw:
    uid = {"Pod": f"uid-{name}", "InferenceService": "service", "ReplicaSet": OWNER}[about]
    path = f"spec.containers{{{container_name}}}" if container_name else ""
    return {
        "involvedObject": {"kind": about, "name": name, "uid": uid, "fieldPath": path},
        "reason": reason,
        "message": message,
        "type": "Warning" if warns else "Normal",
        "firstTimestamp": at(ago if first is None else first),
        "lastTimestamp": at(ago),
        "eventTime": None,
    }


def picture(
    *pods: Raw, events: Sequence[Raw] = (), logs: Mapping[str, tuple[str, ...]] | None = None, **more: Any
) -> Picture:
    known = Picture(
        inference_service=service(),
        deployments=(deployment(),),
        replica_sets=(replica_set(replicas=len(pods)),),
        pods=pods,
        events=tuple(events),
        log_tails=logs or {},
    )
    return replace(known, **more)


def endpoint(replicas: int = 1, revision: int = 1) -> InferenceEndpoint:
    model = ModelSpec(format="sklearn", storage_uri="s3://bucket/model")
    spec = EndpointSpec(model=model, scaling=Scaling(replicas, replicas), revision=revision)
    return InferenceEndpoint(UID, "team", "worker-1", "demo", "team-demo", spec, 1, NOW, "ada")


def told(seen: Observation, *, replicas: int = 1, revision: int = 1) -> PublicState:
    """What a user is told after one pass of the controller."""
    before = endpoint(replicas, revision)
    present = {revision: ArtifactState(phase=ArtifactPhase.PRESENT)}
    after = plan(before, replace(seen, artifacts=present), None, NOW)
    return public_state(replace(before, status=after.status))


def said(*pods: Raw, **more: Any) -> PublicState:
    return told(observe(UID, picture(*pods, **more), NOW))


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (waits("ErrImagePull", "pull access denied"), ReasonCode.IMAGE_PULL_BACK_OFF, f"image {IMAGE}: pull access denied"),
        (waits("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"'), ReasonCode.IMAGE_PULL_BACK_OFF, IMAGE),
        (waits("InvalidImageName", "invalid reference format"), ReasonCode.IMAGE_PULL_BACK_OFF, "invalid reference"),
        (waits("CreateContainerConfigError", 'configmap "c" not found'), ReasonCode.CONTAINER_CONFIG_ERROR, '"c" not found'),
        (
            waits("CreateContainerConfigError", "couldn't find key TOKEN in Secret team/s"),
            ReasonCode.CONTAINER_CONFIG_ERROR,
            "couldn't find key TOKEN",
        ),
        (waits("CreateContainerError", "context deadline exceeded"), ReasonCode.CONTAINER_START_FAILED, "deadline exceeded"),
        (
            waits("RunContainerError", 'runc create failed: unable to start container process: exec: "x": not found'),
            ReasonCode.CONTAINER_START_FAILED,
            'could not be started: exec: "x": not found',
        ),
        (waits("SomeNewError", "what Kubernetes will say one day"), ReasonCode.CONTAINER_START_FAILED, "SomeNewError"),
        (container({"terminated": ended(137, "OOMKilled")}), ReasonCode.OUT_OF_MEMORY, "limit of 1Gi"),
        (container({"terminated": ended(3)}), ReasonCode.SERVER_EXITED, "exit code 3"),
        (container({"terminated": ended(139)}), ReasonCode.SERVER_EXITED, "SIGSEGV"),
        (container({"terminated": ended(0, "Completed")}), ReasonCode.SERVER_EXITED, "exit code 0"),
        (
            waits("CrashLoopBackOff", "back-off 40s restarting", runs=3, last=ended(1, message="boom\n")),
            ReasonCode.CRASH_LOOP,
            "exit code 1: boom",
        ),
        (
            container({"terminated": ended(1, message="torch.OutOfMemoryError: CUDA out of memory. Tried 20 GiB")}),
            ReasonCode.OUT_OF_GPU_MEMORY,
            "CUDA out of memory",
        ),
        (
            container({"terminated": ended(1, message="OSError: [Errno 98] Address already in use")}),
            ReasonCode.PORT_UNAVAILABLE,
            "in use",
        ),
    ],
    ids=lambda value: value.value if isinstance(value, ReasonCode) else "",
)  # fmt: skip
def test_a_container_in_trouble(status: Raw, reason: ReasonCode, words: str) -> None:
    state = said(pod(containers=[status]))
    assert (state.status, state.reason) == (PublicStatus.FAILED, reason)
    assert words in state.message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("RuntimeError: Failed to fetch model. No model found in s3://b/m.", ReasonCode.MODEL_NOT_FOUND),
        (
            "botocore.exceptions.NoCredentialsError: Unable to locate credentials",
            ReasonCode.STORAGE_UNAUTHORIZED,
        ),
        (
            "An error occurred (403) when calling the HeadObject operation: Forbidden",
            ReasonCode.STORAGE_FORBIDDEN,
        ),
        (
            "An error occurred (AccessDenied) when calling ListObjectsV2: Access Denied",
            ReasonCode.STORAGE_FORBIDDEN,
        ),
        ("An error occurred (NoSuchBucket) when calling ListObjectsV2", ReasonCode.MODEL_NOT_FOUND),
        (
            "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url",
            ReasonCode.STORAGE_UNAUTHORIZED,
        ),
        ("socket.gaierror: [Errno -2] Name or service not known", ReasonCode.HOST_NOT_FOUND),
        ("urllib3.exceptions.MaxRetryError: Max retries exceeded with url", ReasonCode.STORAGE_UNREACHABLE),
        ("ConnectTimeout: connection timed out", ReasonCode.STORAGE_UNREACHABLE),
        ("OSError: [Errno 28] No space left on device", ReasonCode.DISK_FULL),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.", ReasonCode.MODEL_NOT_FOUND),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error.", ReasonCode.STORAGE_FORBIDDEN),
        ("Exception: Cannot recognize storage type for ftp://x", ReasonCode.SCHEME_NOT_SUPPORTED),
        ("something that nobody has seen before", ReasonCode.SERVER_EXITED),
    ],
)
def test_why_a_model_could_not_be_fetched(line: str, reason: ReasonCode) -> None:
    init = container({"terminated": ended(1, message=f"INFO: copying\n{line}\n")}, name="storage-initializer")
    state = said(pod(inits=[init], containers=[waits("PodInitializing")]))
    assert (state.status, state.reason) == (PublicStatus.FAILED, reason)
    assert state.exit is not None
    assert state.exit.log_tail[-1] == line


def test_the_last_lines_of_the_log_are_evidence() -> None:
    lines = ("loading", "Traceback", "ValueError: bad model")
    status = container({"terminated": ended(1)}, runs=2)
    state = said(pod(containers=[status]), logs={log_key("demo-1", "kserve-container", 2): lines})
    assert state.message == "the model server ended with exit code 1: ValueError: bad model"
    assert state.exit is not None
    assert (state.exit.exit_code, state.exit.log_tail) == (1, lines)


def test_the_server_comes_before_what_runs_beside_it() -> None:
    beside = waits("ImagePullBackOff", 'Back-off pulling image "agent:1"', name="agent")
    crashed = container({"terminated": ended(1, message="boom")})
    state = said(pod(containers=[beside, crashed]))
    assert state.message.startswith("the model server ended with exit code 1: boom; also: image ")


def test_a_readiness_gate_is_no_lost_node() -> None:
    gated = pod(containers=[container(running(20), ready=True)], age=60)
    gated["spec"]["readinessGates"] = [{"conditionType": "example.com/balanced"}]
    gated["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": at(60)},
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": at(10)},
    ]
    assert said(gated).status is PublicStatus.LOADING


def test_a_paused_deployment_is_said() -> None:
    paused = deployment()
    paused["spec"]["paused"] = True
    state = said(deployments=(paused,), replica_sets=())
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.CHANGED_OUTSIDE)


def test_the_next_try_is_the_kubelets() -> None:
    status = waits("CrashLoopBackOff", "back-off 1m20s restarting failed", runs=4, last=ended(1, ago=20))
    assert said(pod(containers=[status])).next_retry_at == NOW + timedelta(seconds=60)


def test_a_failed_pull_is_told_by_its_event_before_the_container_says_so() -> None:
    events = [
        event("Pulling", f'Pulling image "{IMAGE}"', container_name="kserve-container", warns=False),
        event(
            "Failed", f'Failed to pull image "{IMAGE}": 401 Unauthorized', container_name="kserve-container"
        ),
    ]
    state = said(pod(containers=[waits("PodInitializing")]), events=events)
    assert state.reason is ReasonCode.IMAGE_PULL_BACK_OFF
    assert state.message == f"image {IMAGE}: 401 Unauthorized"


def test_a_pull_that_came_right_is_forgotten() -> None:
    events = [
        event(
            "Failed", f'Failed to pull image "{IMAGE}": timeout', ago=30, container_name="kserve-container"
        ),
        event("Pulled", "Successfully pulled image", ago=2, container_name="kserve-container", warns=False),
    ]
    assert (
        said(pod(containers=[waits("ContainerCreating")]), events=events).status is PublicStatus.PROVISIONING
    )


def test_a_large_image_is_on_its_way() -> None:
    events = [event("Pulling", "Pulling image", ago=400, container_name="kserve-container", warns=False)]
    state = said(pod(containers=[waits("ContainerCreating")], age=420), events=events)
    assert (state.status, state.reason) == (PublicStatus.PROVISIONING, ReasonCode.STARTING)
    assert state.message == f"node node-1 pulls image {IMAGE}"


@pytest.mark.parametrize("probe", ["liveness", "startup"])
def test_a_container_that_its_probe_ended(probe: str) -> None:
    killed = waits("CrashLoopBackOff", "back-off 10s", runs=2, last=ended(137, ago=5, lasted=60))
    message = f"Container kserve-container failed {probe} probe, will be restarted"
    events = [
        event(
            "Unhealthy",
            f"{probe.capitalize()} probe failed: HTTP 500",
            ago=36,
            container_name="kserve-container",
        ),
        event("Killing", message, ago=35, container_name="kserve-container", warns=False),
    ]
    state = said(pod(containers=[killed]), events=events)
    assert state.reason is {"liveness": ReasonCode.UNRESPONSIVE, "startup": ReasonCode.START_TIMEOUT}[probe]
    assert state.message == f"the model server was restarted because its {probe} probe failed: HTTP 500"


def test_a_server_that_keeps_ending_is_told_also_while_it_answers() -> None:
    status = container(running(20), runs=4, last=ended(1, ago=25), ready=True)
    state = said(pod(containers=[status], ready=True))
    assert (state.status, state.predict) == (PublicStatus.DEGRADED, "Ready")
    assert (
        state.message
        == "it answers, but it was restarted 4 times; the last time: the model server ended with exit code 1"
    )


def test_the_last_end_keeps_its_reason_while_the_next_one_begins() -> None:
    """The kubelet counts its kills in one event: the newest moves the last moment on, past the end before it."""
    status = container(running(20), runs=3, last=ended(137, ago=25, lasted=20), ready=True)
    message = "Container kserve-container failed liveness probe, will be restarted"
    events = [
        event(
            "Unhealthy", "Liveness probe failed: HTTP 500", ago=1, first=80, container_name="kserve-container"
        ),
        event("Killing", message, ago=1, first=70, container_name="kserve-container", warns=False),
    ]
    state = said(pod(containers=[status], ready=True), events=events)
    assert (state.status, state.reason) == (PublicStatus.DEGRADED, ReasonCode.UNRESPONSIVE)


def test_one_restart_long_ago_is_history() -> None:
    status = container(running(5000), runs=4, last=ended(1, ago=5005), ready=True)
    assert said(pod(containers=[status], ready=True, age=9000)).status is PublicStatus.RUNNING


def test_a_crash_loop_stays_one_while_it_tries_again() -> None:
    status = container(running(3), runs=5, last=ended(1, ago=30, lasted=2))
    assert said(pod(containers=[status])).status is PublicStatus.FAILED


def test_a_run_that_outlives_the_one_before_is_loading_again() -> None:
    status = container(running(90), runs=1, last=ended(1, ago=92))
    state = said(pod(containers=[status], age=200))
    assert (state.status, state.reason) == (PublicStatus.LOADING, ReasonCode.LOADING)


def test_a_readiness_that_never_comes_is_a_failure_only_at_the_deadline() -> None:
    events = [event("Unhealthy", "Readiness probe failed: HTTP 404", container_name="kserve-container")]
    early = said(pod(containers=[container(running(100))], age=110), events=events)
    late = said(pod(containers=[container(running(700))], age=710), events=events)
    assert (early.status, early.reason) == (PublicStatus.LOADING, ReasonCode.LOADING)
    assert (late.status, late.reason) == (PublicStatus.FAILED, ReasonCode.START_TIMEOUT)
    assert "HTTP 404" in early.message
    assert "HTTP 404" in late.message


@pytest.mark.parametrize(
    ("why", "words", "reason"),
    [
        ("Evicted", "The node was low on resource: memory.", ReasonCode.POD_EVICTED),
        ("Preempting", "Preempted in order to admit critical pod", ReasonCode.POD_EVICTED),
        (
            "UnexpectedAdmissionError",
            "Allocate failed due to no healthy devices present",
            ReasonCode.UNSCHEDULABLE,
        ),
        (
            "OutOfnvidia.com/gpu",
            "Pod was rejected: node didn't have enough resource",
            ReasonCode.UNSCHEDULABLE,
        ),
        ("NodeLost", "Node node-1 which was running pod demo-1 is unresponsive", ReasonCode.NODE_NOT_READY),
    ],
)
def test_a_pod_that_is_over_as_a_whole(why: str, words: str, reason: ReasonCode) -> None:
    state = said(pod(phase="Failed", reason=why, message=words))
    assert (state.status, state.reason) == (PublicStatus.FAILED, reason)
    assert words.rstrip(".") in state.message


def test_evicted_pods_that_were_replaced_are_no_replicas() -> None:
    old = [
        pod(f"old-{n}", age=500 + n, phase="Failed", reason="Evicted", message="low on memory")
        for n in range(3)
    ]
    new = pod("new", containers=[container(running(20), ready=True)], ready=True)
    seen = observe(UID, picture(*old, new), NOW)
    assert [(r.id.name, r.state) for r in seen.replicas] == [("r1-0", ReplicaState.READY)]
    assert told(seen).status is PublicStatus.RUNNING


def test_one_refused_pod_after_another_says_why() -> None:
    refused = [
        pod(
            f"old-{n}",
            age=10 + n,
            phase="Failed",
            reason="UnexpectedAdmissionError",
            message="no healthy devices",
        )
        for n in range(3)
    ]
    fresh = pod("new", age=1)
    fresh["spec"].pop("nodeName")
    fresh["status"]["conditions"] = []
    state = said(*refused, fresh)
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.UNSCHEDULABLE)
    assert "no healthy devices" in state.message


def unplaced(message: str) -> Raw:
    found = pod(conditions=[])
    found["spec"].pop("nodeName")
    found["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    ]
    return found


@pytest.mark.parametrize(
    ("message", "reason", "status", "told_as"),
    [
        (
            "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available: 3 No preemption victims found.",
            ReasonCode.UNSCHEDULABLE,
            PublicStatus.PENDING,
            "0/3 nodes are available: 3 Insufficient memory",
        ),
        (
            '0/1 nodes are available: persistentvolumeclaim "models" not found. no new claims to deallocate, preemption: 0/1',
            ReasonCode.VOLUME_NOT_READY,
            PublicStatus.FAILED,
            '0/1 nodes are available: persistentvolumeclaim "models" not found',
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/1 nodes",
            ReasonCode.VOLUME_NOT_READY,
            PublicStatus.PENDING,
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims",
        ),
    ],
)  # fmt: skip
def test_no_node_takes_it(message: str, reason: ReasonCode, status: PublicStatus, told_as: str) -> None:
    state = said(unplaced(message))
    assert (state.status, state.reason, state.message) == (status, reason, told_as)


@pytest.mark.parametrize(
    ("message", "reason", "status"),
    [
        (
            'pods "demo-x7k" is forbidden: exceeded quota: q, requested: limits.cpu=2, used: limits.cpu=3, limited: limits.cpu=4',
            ReasonCode.QUOTA_EXCEEDED,
            PublicStatus.PENDING,
        ),
        (
            'pods "demo-x7k" is forbidden: exceeded quota: q, requested: limits.cpu=8, used: limits.cpu=0, limited: limits.cpu=4',
            ReasonCode.QUOTA_EXCEEDED,
            PublicStatus.FAILED,
        ),
        (
            'pods "demo-x7k" is forbidden: error looking up service account team/sa: serviceaccount "sa" not found',
            ReasonCode.POD_REFUSED,
            PublicStatus.FAILED,
        ),
        (
            'pods "demo-x7k" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            ReasonCode.POD_REFUSED,
            PublicStatus.FAILED,
        ),
        ('admission webhook "policy.example.com" denied the request: no', ReasonCode.POD_REFUSED, PublicStatus.FAILED),
        (
            'Internal error occurred: failed calling webhook "policy.example.com": connection refused',
            ReasonCode.POD_REFUSED,
            PublicStatus.PENDING,
        ),
    ],
)  # fmt: skip
def test_pods_that_may_not_be_made(message: str, reason: ReasonCode, status: PublicStatus) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    by_condition = said(replica_sets=(replica_set(conditions=[failure]),))
    by_event = said(events=[event("FailedCreate", f"Error creating: {message}", about="ReplicaSet")])
    assert (by_condition.status, by_condition.reason) == (status, reason)
    assert (by_event.status, by_event.reason) == (status, reason)
    assert "demo-x7k" not in by_condition.message
    assert by_condition.message == by_event.message


def test_a_refused_pod_beside_one_that_serves_is_degraded() -> None:
    message = 'pods "x" is forbidden: exceeded quota: q, requested: cpu=8, used: cpu=0, limited: cpu=4'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    seen = observe(UID, picture(serving, replica_sets=(replica_set(replicas=1, conditions=[failure]),)), NOW)
    state = told(seen, replicas=2)
    assert (state.status, state.reason, state.predict) == (
        PublicStatus.DEGRADED,
        ReasonCode.QUOTA_EXCEEDED,
        "Ready",
    )


@pytest.mark.parametrize(
    ("message", "first", "status"),
    [
        ('MountVolume.SetUp failed for volume "v" : secret "s" not found', 20, PublicStatus.FAILED),
        (
            'MountVolume.SetUp failed for volume "v" : configmap "kube-root-ca.crt" not found',
            2,
            PublicStatus.PENDING,
        ),
        ("Unable to attach or mount volumes: timed out waiting for the condition", 20, PublicStatus.PENDING),
        ("Multi-Attach error for volume: already used by pod", 200, PublicStatus.FAILED),
    ],
)
def test_a_volume_that_cannot_be_mounted(message: str, first: float, status: PublicStatus) -> None:
    events = [event("FailedMount", message, ago=1, first=first)]
    state = said(pod(containers=[waits("ContainerCreating")], age=210), events=events)
    assert (state.status, state.reason) == (status, ReasonCode.VOLUME_NOT_READY)


def test_a_node_that_does_not_answer_is_named() -> None:
    lost = pod(containers=[container(running(500), ready=True)], age=600, phase="Running")
    lost["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": at(30)},
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": at(590)},
    ]
    state = said(lost, events=[event("NodeNotReady", "Node is not ready", ago=30)])
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.NODE_NOT_READY)
    assert state.message == "node node-1 does not answer"


def test_its_replacement_says_which_node_was_lost() -> None:
    lost = pod("lost", containers=[container(running(500), ready=True)], age=600, going=True)
    lost["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": at(330)},
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": at(590)},
    ]
    state = said(lost, unplaced("0/1 nodes are available: 1 node(s) had untolerated taint(s)."))
    assert state.reason is ReasonCode.UNSCHEDULABLE
    assert state.message.endswith("; the pod before it: node node-1 does not answer")


def test_scaled_to_nothing_by_hand_is_not_running() -> None:
    status = {
        "url": "http://x",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "IngressReady", "status": "True"}],
    }
    seen = observe(UID, picture(deployments=(deployment(0),), inference_service=service(status)), NOW)
    state = told(seen)
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.CHANGED_OUTSIDE)
    assert "demo-predictor to 0 replicas" in state.message
    assert seen.drift


def test_knative_asleep_is_idle() -> None:
    status = {
        "url": "http://x",
        "deploymentMode": "Knative",
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    state = said(deployments=(), replica_sets=(), inference_service=service(status))
    assert (state.status, state.reason) == (PublicStatus.IDLE, ReasonCode.SCALED_TO_ZERO)


def test_a_revision_that_knative_cannot_bring_up() -> None:
    message = 'Revision "demo-00001" failed with message: Unable to fetch image "x": 404 Not Found.'
    failed = {"type": "PredictorReady", "status": "False", "reason": "RevisionFailed", "message": message}
    status = {"deploymentMode": "Knative", "observedGeneration": 1, "conditions": [failed]}
    state = said(deployments=(), replica_sets=(), inference_service=service(status))
    assert (state.status, state.reason) == (PublicStatus.FAILED, ReasonCode.IMAGE_PULL_BACK_OFF)


def invalid(generation: int, seen: int | None) -> Raw:
    failure = {
        "reason": "NoSupportingRuntime",
        "message": "No runtime found to support specified framework/version",
    }
    status: Raw = {
        "url": "http://x",
        "modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure},
    }
    status["conditions"] = [{"type": "IngressReady", "status": "True"}]
    if seen is not None:
        status["observedGeneration"] = seen
    return service(status, generation=generation)


def test_a_complaint_of_an_earlier_generation_is_not_believed() -> None:
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    assert said(serving, inference_service=invalid(2, 1)).status is PublicStatus.RUNNING


def test_a_complaint_about_a_change_leaves_what_serves() -> None:
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    about = event(
        "InternalError", "no runtime found to support predictor", about="InferenceService", name="demo"
    )
    state = said(serving, inference_service=invalid(2, 1), events=[about])
    assert (state.status, state.reason, state.predict) == (
        PublicStatus.DEGRADED,
        ReasonCode.NO_RUNTIME,
        "Ready",
    )


def test_a_complaint_that_was_mended_is_history() -> None:
    labels = {"inferplane.io/revision": "2"}
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    serving["metadata"]["labels"] = labels
    made = replica_set(replicas=1)
    made["metadata"]["labels"] = labels
    about = event(
        "InternalError", "no runtime found to support predictor", about="InferenceService", name="demo"
    )
    seen = picture(
        serving, replica_sets=(made,), inference_service=service(labels=labels, generation=3), events=[about]
    )
    assert told(observe(UID, seen, NOW), revision=2).status is PublicStatus.RUNNING


def test_what_kserve_refuses_of_a_new_revision_is_told_beside_the_one_that_serves() -> None:
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    serving["metadata"]["labels"] = {"inferplane.io/revision": "1"}
    made = replica_set(replicas=1)
    made["metadata"]["labels"] = {"inferplane.io/revision": "1"}
    about = event("InternalError", "StorageURI not supported: ftp", about="InferenceService", name="demo")
    wished = service(labels={"inferplane.io/revision": "2"}, generation=2)
    seen = picture(serving, replica_sets=(made,), inference_service=wished, events=[about])
    state = told(observe(UID, seen, NOW), revision=2)
    assert (state.status, state.reason) == (PublicStatus.DEGRADED, ReasonCode.SCHEME_NOT_SUPPORTED)
    assert state.message.startswith("revision 1 serves while revision 2 is not there yet; ")


def test_pods_without_our_label_are_of_no_later_revision_than_is_wished() -> None:
    made = replica_set(replicas=1)
    made["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "4"
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    wished = service(labels={"inferplane.io/revision": "2"})
    seen = observe(UID, picture(serving, replica_sets=(made,), inference_service=wished), NOW)
    assert [each.id.name for each in seen.replicas] == ["r2-0"]


def test_a_race_of_controllers_is_no_complaint() -> None:
    message = (
        "fails to update InferenceService status: the object has been modified; please apply your changes"
    )
    about = event("InternalError", message, about="InferenceService", name="demo")
    state = said(deployments=(), replica_sets=(), events=[about])
    assert (state.status, state.reason) == (PublicStatus.PROVISIONING, ReasonCode.STARTING)


def test_a_controller_that_does_nothing_is_said() -> None:
    state = said(deployments=(), replica_sets=(), inference_service=service({}))
    assert (state.status, state.reason) == (PublicStatus.PENDING, ReasonCode.KSERVE_NOT_READY)


def test_an_ingress_that_is_refused_is_not_running() -> None:
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    conditions = [
        {"type": "PredictorReady", "status": "True"},
        {"type": "IngressReady", "status": "False", "message": "HTTPRoute is not accepted by its Gateway"},
    ]
    state = said(serving, inference_service=service({"url": "http://x", "conditions": conditions}))
    assert (state.status, state.reason, state.predict) == (
        PublicStatus.LOADING,
        ReasonCode.ROUTE_NOT_READY,
        "Ready",
    )
    assert "HTTPRoute is not accepted by its Gateway" in state.message


def test_one_of_two_that_answers_is_reached_although_kserve_calls_the_ingress_missing() -> None:
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    other = pod("demo-2", containers=[container(running(5))], age=10)
    conditions = [
        {"type": "PredictorReady", "status": "False"},
        {"type": "IngressReady", "status": "False", "reason": "Predictor ingress not created"},
    ]
    status = {"url": "http://x", "conditions": conditions}
    seen = observe(UID, picture(serving, other, inference_service=service(status)), NOW)
    assert told(seen, replicas=2).status is PublicStatus.RUNNING


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (None, "its InferenceService is not there"),
        (service(deletionTimestamp=at(1)), "its InferenceService is being deleted"),
        (service(annotations={"serving.kserve.io/stop": "true"}), "its InferenceService is stopped"),
    ],
)
def test_what_still_answers_of_an_inference_service_that_goes_gets_no_requests(
    known: Raw | None, message: str
) -> None:
    serving = pod(containers=[container(running(20), ready=True)], ready=True)
    state = said(serving, inference_service=known)
    assert (state.status, state.reason) == (PublicStatus.LOADING, ReasonCode.ROUTE_NOT_READY)
    assert state.message == f"the model answers; {message}"


def test_nothing_in_the_cluster_is_nothing() -> None:
    seen = observe(UID, Picture(), NOW)
    assert (seen.replicas, seen.left, seen.drift) == ((), (), "")
    assert seen.ingress is not None
    assert not seen.ingress.ready


@pytest.mark.parametrize(
    "odd", [{}, {"status": None}, {"status": {"containerStatuses": "no"}}, {"metadata": []}, {"spec": 3}]
)
def test_odd_objects_are_read_as_far_as_they_go(odd: Raw) -> None:
    strange = {"metadata": {"name": "demo-1"}, **odd}
    known = Picture(
        inference_service=strange,
        deployments=(strange,),
        replica_sets=(strange,),
        pods=(strange,),
        events=(odd,),
    )
    assert observe(UID, known, NOW).ingress is not None
