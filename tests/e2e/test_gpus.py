"""GPUs, on a machine without any: declared nodes, real control plane, real gateway, real model servers."""

from __future__ import annotations

import pickle
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from platform_stack import Stack, platform, wait_for

ROW = [[5.1, 3.5, 1.4, 0.2]]
A100 = """
[[cluster.node]]
name = "gpu"
instance_type = "a2-ultragpu-1g"
gpu_shape = "NVIDIA-A100"
gpus = 1
memory_gb = 80
"""
ONE_A100_HERE = f'[[cluster]]\nname = "local"\n{A100}'
GPU = {
    "gpuShape": "NVIDIA-A100",
    "instanceType": "a2-ultragpu-1g",
    "memoryPerGPU": 80,
    "numberOfGPUs": 1,
    "numberOfGPUNodes": 1,
    "exitDuration": "1h",
}
SIMULATED = f'[[cluster]]\nname = "worker-1"\nengine = "simulated"\n{A100}'


def test_a_simulated_endpoint_runs_and_says_that_nothing_is_behind_it(home: Path) -> None:
    with platform(home, SIMULATED) as stack:
        add_workspace(stack, "lab", "worker-1")
        create(stack, "lab", "pretend", "/nowhere/model.joblib", cluster="worker-1")
        endpoint = wait_until(stack, "lab", "pretend", "Running")
        assert "nothing" in endpoint["message"] or "simulated" in endpoint["message"]
        refused = predict(stack, "lab", "pretend")
        assert (refused.status_code, refused.json()["reason"]) == (503, "Simulated")
        assert "no model server is behind" in refused.json()["error"]
        stack.kill()
        stack.restart()
        wait_until(stack, "lab", "pretend", "Running")
        delete(stack, "lab", "pretend")
        wait_for(partial(is_gone, stack, "lab", "pretend"), "it to be gone")


def test_two_workspaces_share_one_gpu_one_after_the_other(home: Path, gpu_model: Path) -> None:
    with platform(home, ONE_A100_HERE) as stack:
        add_workspace(stack, "alpha")
        add_workspace(stack, "beta")
        create(stack, "alpha", "first", str(gpu_model), gpuSpec=GPU)
        wait_until(stack, "alpha", "first", "Running")
        assert predict(stack, "alpha", "first").json() == {"predictions": [0]}, "the index it was granted"

        create(stack, "beta", "second", str(gpu_model), gpuSpec=GPU)
        waiting = wait_until(stack, "beta", "second", "Queued")
        assert waiting["reason"] == "AwaitingGpu"
        request = wait_for(lambda: noted(stack, waiting), "the wait to be explained")
        assert request["queuePosition"] == 1
        assert request["estimatedStartTime"]
        assert request["explanation"]
        assert free_gpus(stack) == 0
        assert len(stack.model_servers()) == 1

        delete(stack, "alpha", "first")
        wait_until(stack, "beta", "second", "Running", 20)
        assert predict(stack, "beta", "second").json() == {"predictions": [0]}
        delete(stack, "beta", "second")
        assert_nothing_is_held(stack, ("alpha", "first"), ("beta", "second"))


def test_an_evicted_endpoint_says_by_whom_and_runs_again_afterwards(home: Path, gpu_model: Path) -> None:
    evictable = {**GPU, "enableEviction": True, "requeueOnFailure": True}
    with platform(home, ONE_A100_HERE) as stack:
        add_workspace(stack, "alpha")
        add_workspace(stack, "beta")
        create(stack, "alpha", "humble", str(gpu_model), gpuSpec={**evictable, "priority": 50})
        wait_until(stack, "alpha", "humble", "Running")
        create(stack, "beta", "urgent", str(gpu_model), gpuSpec={**evictable, "priority": 250})
        wait_until(stack, "beta", "urgent", "Running")
        humble = wait_until(stack, "alpha", "humble", "Queued")
        (request,) = humble["gpuRequests"]
        assert request["status"] == "Queued"
        by = gpr(stack, request["gprId"])["evictedBy"]
        urgent = describe(stack, "beta", "urgent")
        assert urgent is not None
        assert by == urgent["gpuRequests"][0]["gprId"]
        assert predict(stack, "alpha", "humble").status_code == 503

        delete(stack, "beta", "urgent")
        wait_until(stack, "alpha", "humble", "Running")
        assert predict(stack, "alpha", "humble").json() == {"predictions": [0]}
        delete(stack, "alpha", "humble")
        assert_nothing_is_held(stack, ("alpha", "humble"), ("beta", "urgent"))


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"idleTimeOutDuration": "3s", "enforceIdleTimeOut": True}, "IdleTimeout"),
        ({"exitDuration": "15s", "autoRenew": False}, "ExitDurationReached"),
    ],
)
def test_what_is_over_gives_back_its_gpu_and_says_why(
    wish: dict[str, object], reason: str, home: Path, gpu_model: Path
) -> None:
    with platform(home, ONE_A100_HERE) as stack:
        add_workspace(stack, "alpha")
        create(stack, "alpha", "brief", str(gpu_model), gpuSpec={**GPU, **wish})
        brief = wait_until(stack, "alpha", "brief", "Failed")
        assert brief["reason"] == reason
        assert brief["nextAction"]
        wait_for(lambda: free_gpus(stack) == 1, "the GPU to be free")
        assert gpr(stack, brief["gpuRequests"][0]["gprId"])["status"]["internalState"] == "Released"
        assert stack.model_servers() == {}
        delete(stack, "alpha", "brief")
        assert_nothing_is_held(stack, ("alpha", "brief"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_same_ends_whenever_the_control_plane_dies(seed: int, home: Path, gpu_model: Path) -> None:
    """`kill -9` at a random moment after each step; nobody acts on what is left but the platform."""
    chance = random.Random(seed)
    evictable = {**GPU, "enableEviction": True, "requeueOnFailure": True}

    def die(stack: Stack) -> None:
        timer = threading.Timer(chance.uniform(0.0, 1.0), stack.kill)
        timer.start()
        timer.join()
        stack.restart()

    with platform(home, ONE_A100_HERE) as stack:
        add_workspace(stack, "alpha")
        add_workspace(stack, "beta")
        create(stack, "alpha", "humble", str(gpu_model), gpuSpec={**evictable, "priority": 50})
        die(stack)
        wait_until(stack, "alpha", "humble", "Running")
        create(stack, "beta", "urgent", str(gpu_model), gpuSpec={**evictable, "priority": 250})
        die(stack)
        wait_until(stack, "beta", "urgent", "Running")
        wait_until(stack, "alpha", "humble", "Queued")
        assert len(stack.model_servers()) == 1
        delete(stack, "beta", "urgent")
        die(stack)
        wait_until(stack, "alpha", "humble", "Running")
        assert predict(stack, "alpha", "humble").json() == {"predictions": [0]}
        delete(stack, "alpha", "humble")
        die(stack)
        assert_nothing_is_held(stack, ("alpha", "humble"), ("beta", "urgent"))


# --- helpers ------------------------------------------------------------------------------------------


class Seen:
    """Unpickled, a model that predicts which GPU it sees; made where it is loaded, so nothing is imported."""

    def __reduce__(self) -> tuple[Any, ...]:
        index = "int(__import__('os').environ.get('CUDA_VISIBLE_DEVICES') or -1)"
        predict = f"lambda self, rows: __import__('numpy').full(len(rows), {index})"
        return eval, (f"type('Seen', (), {{'predict': {predict}}})()",)


@pytest.fixture(scope="session")
def gpu_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that predicts the index of the GPU it sees: -1 for none."""
    path = tmp_path_factory.mktemp("gpu") / "model.pkl"
    path.write_bytes(pickle.dumps(Seen()))
    return path


def add_workspace(stack: Stack, name: str, cluster: str = "local") -> None:
    body = {"workspaceName": name, "clusters": [cluster], "namespaces": []}
    status, answer = stack.request(
        "POST", "slice-workspace", body | {"username": name, "email": f"{name}@example.test"}
    )
    assert status == 200, answer


def gpr(stack: Stack, gpr_id: str) -> dict[str, Any]:
    status, answer = stack.request("GET", "gpr", gprId=gpr_id)
    assert status == 200, answer
    found: dict[str, Any] = answer["data"]
    return found


def noted(stack: Stack, endpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The endpoint's GPR once its place in the queue is known."""
    found = gpr(stack, endpoint["gpuRequests"][0]["gprId"])
    return found if found["queuePosition"] and found["estimatedStartTime"] else None


def free_gpus(stack: Stack) -> int:
    status, answer = stack.request("GET", "inventory/list")
    assert status == 200, answer
    return sum(node["availableGPUs"] for node in answer["data"]["managedNodes"])


def assert_nothing_is_held(stack: Stack, *endpoints: tuple[str, str]) -> None:
    for workspace, name in endpoints:
        wait_for(partial(is_gone, stack, workspace, name), f"{name} to be gone")
        status, answer = stack.request("GET", "gpr/list", sliceName=workspace)
        assert status == 200, answer
        assert all(each["status"]["numGpusAllocated"] == 0 for each in answer["data"]["items"]), answer
    assert free_gpus(stack) == 1
    assert stack.model_servers() == {}


def create(
    stack: Stack, workspace: str, name: str, uri: str, *, cluster: str = "local", **more: object
) -> None:
    body = {
        "endpointName": name,
        "workspace": workspace,
        "clusterName": cluster,
        "modelSpec": {"modelName": "sklearn", "storageURI": uri},
        **more,
    }
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer


def describe(stack: Stack, workspace: str, name: str) -> dict[str, Any] | None:
    status, answer = stack.request("GET", "inference-endpoint", workspace=workspace, endpoint=name)
    if status == 404:
        return None
    assert status == 200, answer
    endpoint: dict[str, Any] = answer["data"]["endpoint"]
    return endpoint


def is_gone(stack: Stack, workspace: str, name: str) -> bool:
    return describe(stack, workspace, name) is None


def wait_until(stack: Stack, workspace: str, name: str, status: str, seconds: float = 60.0) -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        endpoint = describe(stack, workspace, name)
        return endpoint if endpoint is not None and endpoint["status"] == status else None

    try:
        return wait_for(probe, f"{name} to be {status}", seconds)
    except pytest.fail.Exception:
        pytest.fail(f"{name} is not {status}: {describe(stack, workspace, name)}\n{stack.log_tail()}")


def delete(stack: Stack, workspace: str, name: str) -> None:
    status, answer = stack.request("DELETE", "inference-endpoint", {"endpoint": name, "workspace": workspace})
    assert status == 200, answer


def predict(stack: Stack, workspace: str, name: str) -> httpx.Response:
    url = f"{stack.gateway}/serving/{workspace}/{name}/v1/models/{name}:predict"
    return httpx.post(url, json={"instances": ROW}, timeout=30)
