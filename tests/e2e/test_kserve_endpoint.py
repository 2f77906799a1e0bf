"""The life of an endpoint on a cluster of Kubernetes with KServe, through the API, exactly as on any other engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kube_api import ApiInThread, Behaving, Failure, needs_recordings
from platform_stack import Stack, platform, wait_for

pytestmark = needs_recordings

NAME = {"endpoint": "iris", "workspace": "team"}


@dataclass
class Cluster:
    """A cluster with a KServe that works, and a platform that was told of it."""

    there: ApiInThread
    kserve: Behaving
    stack: Stack

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        status, answer = self.stack.request(method, path, body, **query)
        assert status == 200, answer
        return answer["data"]

    def endpoint(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "inference-endpoint", **NAME)["endpoint"]
        return found

    def until(self, status: str, reason: str = "") -> dict[str, Any]:
        """Wait for it to be told so."""

        def probe() -> dict[str, Any] | None:
            found = self.endpoint()
            fits = found["status"] == status and (not reason or found["reason"] == reason)
            return found if fits else None

        try:
            return wait_for(probe, f"{status} {reason}")
        except BaseException:
            print(self.endpoint())
            raise

    def objects(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.there.call(lambda: self.there.api.store.list(kind))
        return found

    def pods(self) -> list[dict[str, Any]]:
        return [each for each in self.objects("Pod") if "deletionTimestamp" not in each["metadata"]]


@pytest.fixture
def cluster(home: Path, tmp_path: Path) -> Iterator[Cluster]:
    with ApiInThread() as there:
        kserve = there.call(lambda: Behaving(there.api))
        there.run(kserve.start())
        kubeconfig = there.call(lambda: there.api.kubeconfig(tmp_path / "kubeconfig"))
        with platform(home, "") as stack:
            one = Cluster(there, kserve, stack)
            one.ask(
                "POST", "cluster", {"name": "east", "engine": "kserve", "kubeconfig": kubeconfig.read_text()}
            )
            one.ask(
                "POST",
                "slice-workspace",
                {
                    "workspaceName": "team",
                    "clusters": ["east"],
                    "namespaces": [],
                    "username": "team",
                    "email": "team@example.test",
                },
            )
            yield one
        there.run(kserve.stop())


def test_an_endpoint_lives_on_a_cluster_as_anywhere_else(cluster: Cluster) -> None:
    model = {"modelName": "sklearn", "storageURI": "s3://models/iris/1"}
    cluster.ask(
        "POST", "inference-endpoint", {"endpointName": "iris", "workspace": "team", "modelSpec": model}
    )
    running = cluster.until("Running")
    service = cluster.objects("InferenceService")[0]
    assert service["metadata"]["namespace"] == running["namespace"]
    assert service["status"]["url"] in str(running)
    assert len(cluster.pods()) == 1
    assert cluster.pods()[0]["metadata"]["labels"]["inferplane.io/revision"] == "1"

    # A second revision comes while the first serves.
    model["storageURI"] = "s3://models/iris/2"
    cluster.ask("PATCH", "inference-endpoint", {**NAME, "modelSpec": model})

    def serves_second() -> bool:
        labels = [each["metadata"]["labels"]["inferplane.io/revision"] for each in cluster.pods()]
        return labels == ["2"] and cluster.endpoint()["status"] == "Running"

    wait_for(serves_second, "the second revision")

    # A broken one does not take the place of the one that serves.
    cluster.there.call(lambda: cluster.kserve.fail(running["namespace"], Failure.CRASH_LOOP))
    model["storageURI"] = "s3://models/iris/3"
    cluster.ask("PATCH", "inference-endpoint", {**NAME, "modelSpec": model})
    degraded = cluster.until("Degraded")
    assert "revision 2 serves" in degraded["message"]
    assert "ValueError" in str(degraded)
    cluster.there.call(lambda: cluster.kserve.mend(running["namespace"]))
    cluster.ask("POST", "inference-endpoint/rollback", {**NAME, "revision": 2})
    wait_for(serves_second_again(cluster), "the way back")

    cluster.ask("POST", "inference-endpoint/stop", NAME)
    cluster.until("Stopped")
    wait_for(lambda: cluster.pods() == [], "no pod to be left")
    cluster.ask("POST", "inference-endpoint/start", NAME)
    cluster.until("Running")

    cluster.ask("PATCH", "inference-endpoint", {**NAME, "autoscaling": {"minReplicas": 3, "maxReplicas": 3}})
    wait_for(lambda: len(cluster.pods()) == 3, "three pods")
    cluster.until("Running")

    cluster.ask("DELETE", "inference-endpoint", NAME)
    wait_for(
        lambda: cluster.stack.request("GET", "inference-endpoint", **NAME)[0] == 404,
        "the endpoint to be gone",
    )
    assert cluster.objects("InferenceService") == []
    assert cluster.objects("Pod") == []
    assert all(each["metadata"]["name"] != running["namespace"] for each in cluster.objects("Namespace"))


def serves_second_again(cluster: Cluster) -> Any:
    def probe() -> bool:
        specs = [
            each["spec"]["predictor"]["model"]["storageUri"] for each in cluster.objects("InferenceService")
        ]
        return specs == ["s3://models/iris/2"] and cluster.endpoint()["status"] == "Running"

    return probe
