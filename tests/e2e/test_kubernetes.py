"""A platform as a user starts it, and clusters of Kubernetes that come, go and fall silent while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kube_api import ApiInThread, Behaving, needs_recordings
from platform_stack import Stack, platform, wait_for

pytestmark = needs_recordings

GPU = {
    "gpuShape": "NVIDIA-A100-SXM4-80GB",
    "instanceType": "a2-ultragpu-4g",
    "memoryPerGPU": 80,
    "numberOfGPUs": 3,
    "numberOfGPUNodes": 1,
    "exitDuration": "1h",
}
INGRESS = "192.0.2.10:8080"
MODEL = {"modelName": "sklearn", "storageURI": "s3://models/iris"}


@pytest.fixture
def there() -> Iterator[ApiInThread]:
    """A cluster with one machine of four GPUs, and a KServe."""
    with ApiInThread() as there:
        there.call(there.api.add_nodes)
        kserve = there.call(lambda: Behaving(there.api, domain="models.example.com", ingress=True))
        there.run(kserve.start())
        yield there
        there.run(kserve.stop())


def test_a_cluster_comes_works_and_goes_without_a_restart(
    home: Path, there: ApiInThread, tmp_path: Path
) -> None:
    kubeconfig = there.call(lambda: there.api.kubeconfig(tmp_path / "kubeconfig"))
    with platform(home, "") as stack:
        status, answer = stack.request(
            "POST",
            "cluster",
            {
                "name": "east",
                "engine": "kserve",
                "kubeconfig": kubeconfig.read_text(),
                "ingressAddress": INGRESS,
            },
        )
        assert status == 200, answer
        assert answer["data"]["report"]["version"] == "v1.36.2"
        item = wait_for(
            lambda: next((each for each in clusters(stack) if each["capacity"]["gpus"]), None),
            "the GPUs of the cluster",
        )
        assert (item["reachable"], item["capacity"]) == (True, {"nodes": 1, "gpus": 4, "free": 4})
        assert [each["gpuShape"] for each in inventory(stack)] == ["NVIDIA-A100-SXM4-80GB"]

        add_workspace(stack, "east")
        create(stack, "iris")
        create(stack, "big", gpuSpec=GPU)
        service = wait_for(partial(inference_service, there, "iris"), "the InferenceService")
        assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://models/iris"
        on_gpus = wait_for(partial(inference_service, there, "big"), "the one with GPUs")["spec"]["predictor"]
        assert on_gpus["model"]["resources"]["limits"]["nvidia.com/gpu"] == "3"
        assert "node1" in str(on_gpus["affinity"]["nodeAffinity"])
        assert clusters(stack)[0]["capacity"]["free"] == 1
        endpoint = describe(stack, "iris")
        assert endpoint is not None
        assert endpoint["namespace"] == service["metadata"]["namespace"]
        for name in ("iris", "big"):
            endpoint = wait_for(partial(one_with, stack, "status", "Running", name), f"{name} to run")
            host = f"{name}-{endpoint['namespace']}.models.example.com"
            assert endpoint["endpoint"] == f"http://{host}/v1/models/{name}:predict"
            assert endpoint["dnsRecords"] == [{"dns": host, "type": "A", "value": "192.0.2.10"}]
            assert endpoint["tryCommand"][1] == f'-H "Host: {host}" \\'
            assert f'"http://{INGRESS}/v1/models/{name}:predict" \\' in endpoint["tryCommand"]
            assert endpoint["pathEndpoint"] == ""
        [held] = stack.request("GET", "gpr/list", sliceName="team")[1]["data"]["items"]
        assert (held["status"]["provisioningStatus"], held["status"]["numGpusAllocated"]) == ("Successful", 3)

        text = stack.request("POST", "slice-workspace/kube-config", {"workspaceName": "team"})[1]["data"]
        config = yaml.safe_load(text["kubeConfig"])
        token = config["users"][0]["user"]["token"]
        pods = f"{there.api.url}/api/v1/namespaces/{endpoint['namespace']}/pods"
        assert httpx.get(pods, headers={"authorization": f"Bearer {token}"}).status_code == 200
        nodes = f"{there.api.url}/api/v1/nodes"
        assert httpx.get(nodes, headers={"authorization": f"Bearer {token}"}).status_code == 403

        there.call(there.api.faults.away)
        away = wait_for(
            lambda: one_with(stack, "reason", "ClusterUnreachable"), "it to say that the cluster is away"
        )
        assert away["status"] == "Running", away
        assert "has not answered since" in away["message"]
        assert not checked(stack)["reachable"]
        assert "not reachable since" in clusters(stack)[0]["message"]
        there.run(there.api.faults.back())
        assert checked(stack)["reachable"]
        wait_for(
            lambda: (found := describe(stack, "iris")) and found["reason"] != "ClusterUnreachable",
            "the endpoint to go on",
        )

        wait_for(lambda: clusters(stack)[0]["capacity"]["free"] == 1, "its nodes to be healthy again")
        changes = inventory_changes(stack)
        stack.kill()
        stack.restart()
        assert clusters(stack)[0]["reachable"]
        assert inventory_changes(stack) == changes, "no node vanishes by a restart"
        assert inference_service(there, "iris") is not None

        for name in ("iris", "big"):
            delete(stack, name)
        for name in ("iris", "big"):
            wait_for(partial(gone, stack, name), f"{name} to be gone: {describe(stack, name)}")
            assert inference_service(there, name) is None
        assert clusters(stack)[0]["capacity"]["free"] == 4
        stack.request("DELETE", "slice-workspace", {"workspaceName": "team"})
        status, answer = stack.request("DELETE", "cluster", {"name": "east"})
        assert status == 200, answer
        assert inventory(stack) == []
        wait_for(lambda: there.call(lambda: there.api.watches) == 0, "nobody to watch it any more")


def clusters(stack: Stack) -> list[dict[str, Any]]:
    """Those of Kubernetes."""
    items: list[dict[str, Any]] = stack.request("GET", "cluster/list")[1]["data"]["items"]
    return [each for each in items if each["engine"] == "kserve"]


def checked(stack: Stack) -> dict[str, Any]:
    """What is found there right now."""
    report: dict[str, Any] = stack.request("POST", "cluster/check", {"name": "east"})[1]["data"]["report"]
    return report


def inventory(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.request("GET", "inventory/list")[1]["data"]["managedNodes"]
    return [each for each in found if each["clusterName"] == "east"]


def inventory_changes(stack: Stack) -> int:
    return len(stack.request("GET", "audit", kind="InventoryChanged")[1]["data"]["items"])


def inference_service(there: ApiInThread, name: str) -> dict[str, Any] | None:
    found = there.call(lambda: there.api.store.list("InferenceService"))
    return next((each for each in found if each["metadata"]["name"] == name), None)


def add_workspace(stack: Stack, *clusters: str) -> None:
    body = {
        "workspaceName": "team",
        "clusters": list(clusters),
        "namespaces": [],
        "username": "team",
        "email": "team@example.test",
    }
    status, answer = stack.request("POST", "slice-workspace", body)
    assert status == 200, answer


def create(stack: Stack, name: str, **more: object) -> None:
    body = {"endpointName": name, "workspace": "team", "modelSpec": MODEL, **more}
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer


def describe(stack: Stack, name: str) -> dict[str, Any] | None:
    status, answer = stack.request("GET", "inference-endpoint", workspace="team", endpoint=name)
    if status == 404:
        return None
    assert status == 200, answer
    endpoint: dict[str, Any] = answer["data"]["endpoint"]
    return endpoint


def gone(stack: Stack, name: str) -> bool:
    return describe(stack, name) is None


def one_with(stack: Stack, field: str, value: str, name: str = "iris") -> dict[str, Any] | None:
    endpoint = describe(stack, name)
    return endpoint if endpoint is not None and endpoint[field] == value else None


def delete(stack: Stack, name: str) -> None:
    status, answer = stack.request("DELETE", "inference-endpoint", {"endpoint": name, "workspace": "team"})
    assert status == 200, answer
