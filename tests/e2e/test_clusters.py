"""Several clusters of one platform: one name on two of them, and one that is configured no longer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from platform_stack import Stack, platform, wait_for

ROW = {"instances": [[5.1, 3.5, 1.4, 0.2]]}
TWO_CLUSTERS = '[[cluster]]\nname = "east"\nengine = "local"\n'
GPU_NODE = """
[[cluster.node]]
name = "gpu"
instance_type = "a2-ultragpu-1g"
gpu_shape = "NVIDIA-A100"
gpus = 1
memory_gb = 80
"""
GPU = {
    "gpuShape": "NVIDIA-A100",
    "instanceType": "a2-ultragpu-1g",
    "memoryPerGPU": 80,
    "numberOfGPUs": 1,
    "numberOfGPUNodes": 1,
    "exitDuration": "1h",
}


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


def test_a_cluster_that_is_configured_no_longer_leaves_no_process_no_gpu_and_no_endpoint(
    home: Path, iris_model: Path
) -> None:
    with platform(home, TWO_CLUSTERS + GPU_NODE) as stack:
        add_workspace(stack, "team", "local", "east")
        create(stack, "east", iris_model, gpuSpec=GPU)
        create(stack, "local", iris_model)
        for cluster in ("east", "local"):
            running(stack, cluster)
        assert len(held_gpus(stack)) == 1
        left = servers_of(home / "clusters" / "east")
        assert left

        stack.kill()  # its servers go on, as they should
        (home.parent / "inferplane.toml").write_text("")
        stack.restart()
        wait_for(lambda: not any(process.is_running() for process in left), "what is left to end")
        stranded = wait_for(partial(shown_as, stack, "east", "Failed"), "it to say that it cannot run")
        assert stranded["reason"] == "ClusterUnreachable"
        assert "no engine is configured for cluster east" in stranded["message"]
        assert stranded["nextAction"]
        running(stack, "local")

        delete(stack, "east")
        wait_for(lambda: describe(stack, "east") is None, f"it to be gone: {describe(stack, 'east')}")
        assert held_gpus(stack) == []
        stack.stop()
        stack.restart()
        assert not (home / "clusters" / "east").exists(), "an empty folder goes at the next start"
        running(stack, "local")


def test_a_cluster_that_comes_back_goes_on(home: Path, iris_model: Path) -> None:
    with platform(home, TWO_CLUSTERS) as stack:
        add_workspace(stack, "team", "east")
        create(stack, "east", iris_model)
        running(stack, "east")
        stack.stop()
        file = home.parent / "inferplane.toml"
        file.write_text("")
        stack.restart()
        wait_for(partial(shown_as, stack, "east", "Failed"), "it to say that it cannot run")
        stack.stop()
        file.write_text(TWO_CLUSTERS)
        stack.restart()
        assert httpx.post(running(stack, "east")["pathEndpoint"], json=ROW, timeout=30).status_code == 200


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


def create(stack: Stack, cluster: str, model: Path, **more: object) -> None:
    body = {
        **more,
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


def shown_as(stack: Stack, cluster: str, status: str) -> dict[str, Any] | None:
    endpoint = describe(stack, cluster)
    return endpoint if endpoint is not None and endpoint["status"] == status else None


def running(stack: Stack, cluster: str) -> dict[str, Any]:
    return wait_for(
        partial(shown_as, stack, cluster, "Running"), f"iris to run on {cluster}: {describe(stack, cluster)}"
    )


def held_gpus(stack: Stack) -> list[dict[str, Any]]:
    """Requests of the workspace that hold GPUs."""
    status, answer = stack.request("GET", "gpr/list", sliceName="team")
    assert status == 200, answer
    found: list[dict[str, Any]] = answer["data"]["items"]
    return [each for each in found if each["status"]["numGpusAllocated"]]


def servers_of(folder: Path) -> list[psutil.Process]:
    """Processes that hold the lock of a replica in this folder."""
    locks = {str(lock) for lock in folder.glob("replicas/*/*/lock")}
    found = []
    for process in psutil.process_iter():
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if locks & set(links):
            found.append(process)
    return found


def delete(stack: Stack, cluster: str) -> None:
    status, answer = stack.request(
        "DELETE", "inference-endpoint", {"endpoint": "iris", "workspace": "team", "cluster": cluster}
    )
    assert status == 200, answer
