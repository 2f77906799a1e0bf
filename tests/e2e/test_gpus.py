"""GPUs, on a machine without any: declared nodes, real control plane, real gateway, real model servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from platform_stack import Stack, wait_for

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
SIMULATED = f'[[cluster]]\nname = "worker-1"\nengine = "simulated"\n{A100}'


@contextmanager
def platform(home: Path, configuration: str) -> Iterator[Stack]:
    """A platform with these clusters; whatever happens, nothing of it survives the test."""
    file = home.parent / "inferplane.toml"
    file.write_text(configuration)
    one = Stack(home, {"INFERPLANE_CONFIG": str(file)})
    try:
        one.start()
        yield one
        assert one.stop() == 0
        assert one.processes() == []
    finally:
        for process in one.processes():
            process.kill()


def test_a_simulated_endpoint_runs_and_says_that_nothing_is_behind_it(home: Path) -> None:
    with platform(home, SIMULATED) as stack:
        status, answer = stack.request(
            "POST",
            "slice-workspace",
            {
                "workspaceName": "lab",
                "clusters": ["worker-1"],
                "namespaces": [],
                "username": "u",
                "email": "u@example.test",
            },
        )
        assert status == 200, answer
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
        wait_for(lambda: describe(stack, "lab", "pretend") is None, "it to be gone")


# --- helpers ------------------------------------------------------------------------------------------


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
