"""The SDK's GPU calls against the real API, with a test in the admission controller's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpu_world import GpuWorld
from inferplane import (
    AlreadyExistsError,
    AsyncClient,
    BoundCluster,
    Client,
    ConflictError,
    GprEndedError,
    GpuWish,
    InvalidError,
    NotFoundError,
    QuotaExceededError,
    WaitTimeoutError,
)
from inferplane.domain.gpu_request import ProvisioningStatus
from inferplane.wire.gpus import GprItem

A100 = GpuWish(
    gpus=1, nodes=1, shape="NVIDIA-A100", instance_type="a2-ultragpu-1g", memory_gb=80, exit_duration="1h"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuWorld]:
    with GpuWorld(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def client(world: GpuWorld) -> Iterator[Client]:
    with Client(world.url, world.owner.key) as owner:
        yield owner


@pytest.fixture
def workspace(world: GpuWorld) -> str:
    return world.workspace("worker-1", "worker-2")


def test_the_inventory_whole_and_as_kinds(client: Client, workspace: str) -> None:
    nodes = client.inventory().managed_nodes
    assert {node.cluster_name for node in nodes} >= {"worker-1", "worker-2"}
    assert all(node.simulated and len(node.gpus) == node.gpu_count for node in nodes)
    kinds = client.gpu_shapes(workspace=workspace)
    assert {kind.cluster_name for kind in kinds} == {"worker-1", "worker-2"}


def test_a_requests_life(client: Client, workspace: str) -> None:
    gpr_id = client.create_gpr("train", A100, workspace=workspace, cluster="worker-1")
    found = client.describe_gpr(gpr_id)
    assert (found.gpr_name, found.status.provisioning_status) == ("train", "Queued")
    assert found.explanation
    client.change_gpr(gpr_id, name="renamed", priority=150)
    (listed,) = client.list_gprs(workspace=workspace)
    assert (listed.gpr_name, listed.priority) == ("renamed", 150)
    with pytest.raises(ConflictError, match="Queued state"):
        client.release_gpr(gpr_id)
    client.delete_gpr(gpr_id)
    with pytest.raises(NotFoundError):
        client.describe_gpr(gpr_id)


def test_a_request_is_found_by_its_name(client: Client, workspace: str, world: GpuWorld) -> None:
    first = client.create_gpr("train", A100, workspace=workspace, cluster="worker-1")
    assert client.find_gpr("train", workspace=workspace) == client.find_gpr(first) == first
    with pytest.raises(NotFoundError, match="no GPU request named 'test'"):
        client.find_gpr("test", workspace=workspace)
    second = client.create_gpr("train", A100, workspace=workspace, cluster="worker-1")
    with pytest.raises(InvalidError) as caught:
        client.find_gpr("train", workspace=workspace)
    assert caught.value.reason == "AmbiguousName"
    assert first in caught.value.message
    assert second in caught.value.message
    world.grant(first)
    world.drain(first, ProvisioningStatus.COMPLETE)
    with pytest.raises(InvalidError):  # it still holds its GPUs
        client.find_gpr("train", workspace=workspace)
    world.end(first)
    assert client.find_gpr("train", workspace=workspace) == second
    world.grant(second)
    world.drain(second, ProvisioningStatus.COMPLETE)
    world.end(second)
    with pytest.raises(InvalidError) as caught:
        client.find_gpr("train", workspace=workspace)
    assert f"{first} (Complete)" in caught.value.message


def test_waiting_for_a_requests_gpus(client: Client, workspace: str, world: GpuWorld) -> None:
    gpr_id = client.create_gpr("train", A100, workspace=workspace, cluster="worker-1")
    with pytest.raises(WaitTimeoutError, match="train is still Queued after 0 s"):
        client.wait_until_granted(gpr_id, 0)
    seen: list[str] = []

    def report(item: GprItem) -> None:
        seen.append(item.status.provisioning_status)
        if len(seen) == 2:
            world.grant(gpr_id)

    found = client.wait_until_granted(gpr_id, progress=report)
    assert (found.status.nodes, seen) == (("gpu-0",), ["Queued", "Queued", "Successful"])
    world.drain(gpr_id, ProvisioningStatus.COMPLETE)
    world.end(gpr_id)
    with pytest.raises(GprEndedError, match="exit duration of 1h0m0s was reached") as caught:
        client.wait_until_granted(gpr_id)
    assert caught.value.reason == "Complete"


def test_a_cluster_is_made_known_and_forgotten(client: Client, world: GpuWorld) -> None:
    name = world.name("cluster")
    assert client.register_cluster(name, engine="simulated") == name
    (found,) = [each for each in client.list_clusters() if each.name == name]
    assert (found.engine, found.reachable) == ("simulated", False)
    with pytest.raises(AlreadyExistsError):
        client.register_cluster(name, engine="simulated")
    with pytest.raises(InvalidError, match="needs a kubeconfig"):
        client.register_cluster(f"{name}-k", engine="kserve")
    client.delete_cluster(name)
    assert name not in {each.name for each in client.list_clusters()}


def test_how_long_it_would_wait_stores_nothing(client: Client, workspace: str) -> None:
    wish = GpuWish(gpus=1, nodes=1, auto=True, memory_gb=40, exit_duration="1h")
    found = client.wait_times(wish, workspace=workspace, auto_cluster=True)
    assert len(found) >= 2
    assert all(each.explanation for each in found)
    assert client.list_gprs(workspace=workspace) == ()


def test_what_cannot_be_had_is_refused_with_what_there_is(client: Client, workspace: str) -> None:
    with pytest.raises(InvalidError) as caught:
        client.create_gpr("x", replace(A100, shape="NVIDIA-B9"), workspace=workspace, cluster="worker-1")
    assert caught.value.reason == "NoSuchShape"
    assert "a2-ultragpu-1g" in caught.value.next_action


def test_a_request_that_names_no_memory_has_its_shapes(client: Client, workspace: str) -> None:
    gpr_id = client.create_gpr("x", replace(A100, memory_gb=None), workspace=workspace, cluster="worker-1")
    assert client.describe_gpr(gpr_id).memory_per_gpu == 80
    client.deploy(
        "iris",
        format="sklearn",
        uri="/m.joblib",
        workspace=workspace,
        cluster="worker-1",
        gpu=replace(A100, memory_gb=None),
    )
    (request,) = client.describe("iris", workspace=workspace).gpu_requests
    assert request.memory_per_gpu == "81920"


def test_what_is_too_much_is_said_in_words_that_agree(client: Client, workspace: str) -> None:
    def refusal(wish: GpuWish) -> tuple[str, str]:
        with pytest.raises(InvalidError) as caught:
            client.create_gpr("x", wish, workspace=workspace, cluster="worker-1")
        return caught.value.field, caught.value.message

    assert refusal(replace(A100, memory_gb=500))[0] == "memoryPerGPU"
    two = "asked for: 2 GPUs on 1 node; the largest of these nodes has 1 GPU"
    assert refusal(replace(A100, gpus=2)) == ("numberOfGPUs", two)
    three = "asked for: 1 GPU on each of 3 nodes; there are 2 such nodes in one cluster"
    assert refusal(replace(A100, nodes=3)) == ("numberOfGPUNodes", three)


def test_policies_are_changed_and_hold(client: Client, workspace: str) -> None:
    changed = client.change_policy(workspace, {"max_gprs": 1, "priority_range": "1-200"})
    assert (changed.max_gprs, client.describe_policy(workspace)) == (1, changed)
    assert workspace in {each.workspace_name for each in client.list_policies()}
    with pytest.raises(QuotaExceededError):
        client.create_gpr("x", replace(A100, priority=250), workspace=workspace, cluster="worker-1")
    assert client.change_policy(workspace, {"max_gprs": -1}).max_gprs is None
    with pytest.raises(InvalidError, match="maxgprs"):
        client.change_policy(workspace, {"maxgprs": 1})


def test_templates_and_bindings(client: Client, workspace: str, world: GpuWorld) -> None:
    name = world.name("template")
    wish = replace(A100, priority=100, enforce_idle=False, evictable=False, requeue=False)
    assert client.create_template(name, wish, cluster="worker-1") == name
    assert client.change_template(name, GpuWish(priority=120)) == name
    template = client.describe_template(name)
    assert (template.priority, template.gpu_shape) == (120, "NVIDIA-A100")
    assert name in {each.name for each in client.list_templates()}

    written = client.create_binding(workspace, [BoundCluster("worker-1", name)], auto_gpr=True)
    assert (written.name, written.enable_auto_gpr) == (workspace, True)
    with pytest.raises(ConflictError):
        client.delete_template(name)
    assert client.change_binding(workspace, auto_gpr=False).enable_auto_gpr is False
    assert client.describe_binding(workspace).clusters[0].default_template_name == name
    assert workspace in {each.name for each in client.list_bindings()}
    client.delete_binding(workspace)
    client.delete_template(name)


def test_an_endpoint_that_waits_for_gpus(client: Client, workspace: str) -> None:
    made = client.deploy(
        "iris",
        format="sklearn",
        uri="/models/iris.joblib",
        workspace=workspace,
        cluster="worker-1",
        gpu=A100,
    )
    assert made.name == "iris"
    (request,) = client.describe("iris", workspace=workspace).gpu_requests
    assert (request.gpu_shape, request.memory_per_gpu) == ("NVIDIA-A100", "81920")
    assert client.describe_gpr(request.gpr_id).endpoint_name == "iris"


def test_the_audit_log_says_who_changed_what(client: Client, workspace: str) -> None:
    client.change_policy(workspace, {"max_gprs": 3})
    (entry,) = client.audit(workspace=workspace, kind="PolicyChanged", limit=5)
    assert entry.after is not None
    assert entry.key_id
    assert client.audit(workspace=workspace, since="2100-01-01") == ()


async def test_the_awaiting_client_has_the_same_calls(world: GpuWorld) -> None:
    async with AsyncClient(world.url, world.owner.key) as client:
        assert (await client.inventory()).managed_nodes
        assert await client.list_policies()
