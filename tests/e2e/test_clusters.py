"""Several clusters of one platform: one name on two of them, and one that is configured no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from platform_stack import Stack, platform, wait_for

ROW = {"instances": [[5.1, 3.5, 1.4, 0.2]]}
TWO_CLUSTERS = '[[cluster]]\nname = "east"\nengine = "local"\n'

def test_one_name_on_two_clusters_answers_on_both(home: Path, iris_model: Path) -> None:
    with platform(home, TWO_CLUSTERS) as stack:
        add_workspace(stack, "team", "local", "east")
        for cluster in ("local", "east"):
            create(stack, cluster, iris_model)
        here, there = (running(stack, cluster) for cluster in ("local", "east"))
        assert [each["dnsRecords"][0]["dns"] for each in (here, there)] == [
            "iris.team.localhost",
            "iris.team.east.localhost",
        ]
        for endpoint in (here, there):
            by_path = httpx.post(endpoint["pathEndpoint"], json=ROW, timeout=30)
            by_host = httpx.post(
                f"{stack.gateway}/v1/models/iris:predict",
                headers={"host": endpoint["dnsRecords"][0]["dns"]},
                json=ROW,
                timeout=30,
            )
            assert (by_path.status_code, by_host.status_code) == (200, 200), (by_path.text, by_host.text)
        delete(stack, "local")
        wait_for(lambda: describe(stack, "local") is None, "the first to be gone")
        assert httpx.post(there["pathEndpoint"], json=ROW, timeout=30).status_code == 200
        assert running(stack, "east")["pathEndpoint"] == there["pathEndpoint"]


def add_workspace(stack: Stack, name: str, *clusters: str) -> None:
    body = {
        "workspaceName": name,
        "clusters": list(clusters),
        "namespaces": [],
        "username": name,
        "email": f"{name}@example.test",
    }
    status, answer = stack.request("POST", "slice-workspace", body)
    assert status == 200, answer


def create(stack: Stack, cluster: str, model: Path) -> None:
    body = {
        "endpointName": "iris",
        "workspace": "team",
        "clusterName": cluster,
        "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
    }
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer


def describe(stack: Stack, cluster: str) -> dict[str, Any] | None:
    status, answer = stack.request(
        "GET", "inference-endpoint", workspace="team", endpoint="iris", cluster=cluster
    )
    if status == 404:
        return None
    assert status == 200, answer
    endpoint: dict[str, Any] = answer["data"]["endpoint"]
    return endpoint


def running(stack: Stack, cluster: str) -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        endpoint = describe(stack, cluster)
        return endpoint if endpoint is not None and endpoint["status"] == "Running" else None

    return wait_for(probe, f"iris to run on {cluster}: {describe(stack, cluster)}")


def delete(stack: Stack, cluster: str) -> None:
    status, answer = stack.request(
        "DELETE", "inference-endpoint", {"endpoint": "iris", "workspace": "team", "cluster": cluster}
    )
    assert status == 200, answer
