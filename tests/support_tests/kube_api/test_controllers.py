"""The two ways in which InferenceServices come to life: by rules, and as recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from kube_api import Behaving, Failure, KubeApi, Player, needs_recordings, recording, recordings

Raw = dict[str, Any]


def isvc(**predictor: Any) -> Raw:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models.example.com/a"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "mine",
            "namespace": "here",
            "labels": {"inferplane.io/revision": "1"},
            "annotations": {"example.com/note": "kept"},
        },
        "spec": {"predictor": {"model": model, **predictor}},
    }


async def until(done: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110 - the cluster moves by itself; there is nothing to wait on
            await asyncio.sleep(0.005)


class Seen:
    """What a test asks about the cluster."""

    def __init__(self, api: KubeApi) -> None:
        self.api = api

    def service(self) -> Raw:
        found = self.api.store.get("InferenceService", "mine", "here")
        assert found is not None
        return found

    def condition(self, type_: str) -> str:
        conditions = (self.service().get("status") or {}).get("conditions") or ()
        return next((str(each["status"]) for each in conditions if each["type"] == type_), "")

    def pods(self) -> list[Raw]:
        return self.api.store.list("Pod", "here")

    def state(self) -> Raw:
        pods = self.pods()
        statuses = (pods[0].get("status") or {}).get("containerStatuses") or [] if pods else []
        return statuses[0] if statuses else {"state": {}, "lastState": {}, "restartCount": 0}

    def events(self) -> set[str]:
        return {each["reason"] for each in self.api.store.list("Event", "here")}


@pytest.fixture
def seen(api: KubeApi) -> Seen:
    return Seen(api)


@pytest.fixture
async def kserve(api: KubeApi) -> AsyncIterator[Behaving]:
    async with Behaving(api, pace_s=0.001) as behaving:
        yield behaving


async def test_a_service_becomes_ready_and_its_pods_carry_its_marks(
    api: KubeApi, seen: Seen, kserve: Behaving
) -> None:
    api.store.put(isvc())
    await until(lambda: seen.condition("Ready") == "True")
    pod = seen.pods()[0]
    assert pod["metadata"]["labels"]["inferplane.io/revision"] == "1"
    assert pod["metadata"]["annotations"]["example.com/note"] == "kept"
    assert pod["spec"]["nodeName"] == "node1"
    status = seen.service()["status"]
    assert status["url"] == "http://mine-here.example.com"
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert status["observedGeneration"] == seen.service()["metadata"]["generation"]
    assert {"Scheduled", "Started", "ScalingReplicaSet", "InferenceServiceReady"} <= seen.events()


async def test_it_rests_when_nothing_happens(api: KubeApi, seen: Seen, kserve: Behaving) -> None:
    api.store.put(isvc())
    await until(lambda: seen.condition("Ready") == "True")
    await until(lambda: not any(kserve.round() for _ in range(5)))


async def test_an_update_rolls_the_old_serving_until_the_new_does(
    api: KubeApi, seen: Seen, kserve: Behaving
) -> None:
    api.store.put(isvc())
    await until(lambda: seen.condition("Ready") == "True")
    first = seen.pods()[0]["metadata"]["name"]
    kserve.fail("here", Failure.CRASH_LOOP)

    def update(found: Raw) -> None:
        found["metadata"]["labels"]["inferplane.io/revision"] = "2"
        found["spec"]["predictor"]["model"]["args"] = ["--new"]

    api.store.edit("InferenceService", "mine", "here", update)
    await until(lambda: len(seen.pods()) == 2 and "BackOff" in seen.events())
    # A broken update looks perfect, as recorded.
    assert seen.condition("Ready") == "True"
    assert first in {each["metadata"]["name"] for each in seen.pods()}
    kserve.mend("here")
    await until(
        lambda: [each["metadata"]["name"] for each in seen.pods()] != [first] and len(seen.pods()) == 1
    )
    assert seen.pods()[0]["metadata"]["labels"]["inferplane.io/revision"] == "2"


async def test_it_scales_stops_and_starts(api: KubeApi, seen: Seen, kserve: Behaving) -> None:
    api.store.put(isvc(minReplicas=2, maxReplicas=3))
    await until(lambda: len(seen.pods()) == 2 and seen.condition("Ready") == "True")

    def mark(value: str) -> Callable[[Raw], None]:
        return lambda found: found["metadata"]["annotations"].update({"serving.kserve.io/stop": value})

    api.store.edit("InferenceService", "mine", "here", mark("true"))
    await until(lambda: not seen.pods() and seen.condition("Stopped") == "True")
    assert "url" not in seen.service()["status"]
    assert api.store.list("Deployment", "here") == []
    api.store.edit("InferenceService", "mine", "here", mark("false"))
    await until(lambda: seen.condition("Ready") == "True")
    api.store.edit(
        "InferenceService",
        "mine",
        "here",
        lambda found: found["spec"]["predictor"].update(minReplicas=1, maxReplicas=1),
    )
    await until(lambda: len(seen.pods()) == 1)


async def test_a_deleted_service_leaves_nothing(api: KubeApi, seen: Seen, kserve: Behaving) -> None:
    api.store.put(isvc())
    await until(lambda: seen.condition("Ready") == "True")
    api.store.delete("InferenceService", "mine", "here")
    kinds = ("InferenceService", "Deployment", "ReplicaSet", "Pod", "Service", "HorizontalPodAutoscaler")
    await until(lambda: not any(api.store.list(kind, "here") for kind in kinds))


async def test_a_namespace_goes_with_a_service_in_it(api: KubeApi, seen: Seen, kserve: Behaving) -> None:
    api.store.put(isvc())
    await until(lambda: seen.condition("Ready") == "True")
    api.store.delete("Namespace", "here")
    await until(lambda: api.store.get("Namespace", "here") is None)
    assert seen.pods() == []


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (
            Failure.IMAGE_PULL,
            lambda seen: seen.state()["state"].get("waiting", {}).get("reason") == "ImagePullBackOff",
        ),
        (
            Failure.CRASH_LOOP,
            lambda seen: (
                seen.state()["restartCount"] >= 2
                and "version 3" in seen.state()["lastState"]["terminated"]["message"]
                and seen.state()["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
            ),
        ),
        (
            Failure.OOM_KILLED,
            lambda seen: seen.state()["lastState"].get("terminated", {}).get("reason") == "OOMKilled",
        ),
        (Failure.UNSCHEDULABLE, lambda seen: "FailedScheduling" in seen.events()),
        (Failure.QUOTA, lambda seen: "FailedCreate" in seen.events() and not seen.pods()),
        (
            Failure.NEVER_READY,
            lambda seen: "Unhealthy" in seen.events() and "running" in seen.state()["state"],
        ),
        (
            Failure.DOWNLOAD,
            lambda seen: seen.service()["status"]["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad",
        ),
    ],
    ids=lambda each: each.value if isinstance(each, Failure) else "",
)
async def test_failures_show_as_recorded_and_can_be_mended(
    api: KubeApi, seen: Seen, kserve: Behaving, failure: Failure, shown: Callable[[Seen], bool]
) -> None:
    kserve.fail("here", failure)
    api.store.put(isvc())
    await until(lambda: bool(seen.service().get("status")) and shown(seen))
    assert seen.condition("Ready") == "False"
    kserve.mend("here")
    await until(lambda: seen.condition("Ready") == "True")


async def test_pods_land_where_affinity_and_gpus_let_them(api: KubeApi, seen: Seen) -> None:
    for name, gpus in (("a", "8"), ("b", "2")):
        api.store.put(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name},
                "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
                "status": {"allocatable": {"nvidia.com/gpu": gpus, "cpu": "8", "memory": "64Gi"}},
            }
        )
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    body = isvc(
        affinity={"nodeAffinity": required},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        minReplicas=2,
        maxReplicas=2,
    )
    body["spec"]["predictor"]["model"]["resources"] = {"limits": {"nvidia.com/gpu": "2"}}
    async with Behaving(api, pace_s=0.001):
        api.store.put(body)
        await until(lambda: "FailedScheduling" in seen.events())
        await until(lambda: {each["spec"].get("nodeName") for each in seen.pods()} == {"b", None})


async def test_a_running_server_that_ends_is_started_again(
    api: KubeApi, seen: Seen, kserve: Behaving
) -> None:
    api.store.put(isvc())
    await until(lambda: seen.condition("Ready") == "True")
    kserve.crash("here", seen.pods()[0]["metadata"]["name"], exit_code=137, reason="OOMKilled")
    await until(lambda: seen.state()["restartCount"] == 1 and seen.condition("Ready") == "True")
    assert seen.state()["lastState"]["terminated"]["reason"] == "OOMKilled"


# -- recordings ---------------------------------------------------------------------------------------


@needs_recordings
@pytest.mark.parametrize("name", recordings())
async def test_every_recording_can_be_played(api: KubeApi, name: str) -> None:
    player = Player(api, recording(name), namespace="there", name="mine")
    player.until(10_000)
    assert player.next_t is None
    await asyncio.sleep(0)
    left = [
        kind
        for kind in ("InferenceService", "Deployment", "ReplicaSet", "Pod")
        if api.store.list(kind, "there")
    ]
    last = recording(name).lines[-1]
    assert left == [] or last.type != "DELETED"


@needs_recordings
async def test_a_played_service_is_ours_with_the_recorded_status(api: KubeApi, seen: Seen) -> None:
    made = api.store.put(isvc())
    player = Player(
        api, recording("crashloop"), namespace="here", name="mine", start=datetime(2030, 1, 1, tzinfo=UTC)
    )
    player.until(20)
    service, pod = seen.service(), seen.pods()[0]
    assert service["spec"] == made["spec"]
    assert service["metadata"]["uid"] == made["metadata"]["uid"]
    assert service["status"]["url"].startswith("http://mine-here.")
    assert service["status"]["observedGeneration"] == service["metadata"]["generation"]
    assert pod["metadata"]["name"].startswith("mine-predictor-")
    assert pod["metadata"]["labels"]["inferplane.io/revision"] == "1"
    assert pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"] == "mine"
    replica_set = api.store.list("ReplicaSet", "here")[0]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == replica_set["metadata"]["uid"]
    deployment = api.store.list("Deployment", "here")[0]
    assert deployment["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    terminated = seen.state()["lastState"]["terminated"]
    assert terminated["finishedAt"].startswith("2030-01-01T00:00:")
    about = {each["involvedObject"]["name"] for each in api.store.list("Event", "here")}
    assert pod["metadata"]["name"] in about
    assert all("crashloop" not in each["message"] for each in api.store.list("Event", "here"))
    assert "version 3" in api.logs.answer(pod, {"container": "kserve-container", "previous": "true"})


@needs_recordings
async def test_a_recording_plays_on_over_a_delete_of_ours(api: KubeApi, seen: Seen) -> None:
    api.store.put(isvc())
    player = Player(api, recording("delete-while-creating"), namespace="here", name="mine")
    player.until(1.0)
    assert api.store.delete("InferenceService", "mine", "here")
    await player.run(speed=10_000)
    assert api.store.list("InferenceService", "here") == []
    assert seen.pods() == []
