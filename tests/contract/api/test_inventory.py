"""The inventory on the wire, in both its forms."""

from __future__ import annotations

from typing import Any

from gpu_world import A100, A100_TYPE, BIG, BIG_TYPE, FIRST, SECOND, GpuWorld

INVENTORY = "/api/v1/inventory"
NODE = {
    *("gpuNodeName", "gpuShape", "gpuModelName", "instanceType", "clusterName", "memory", "gpuCount"),
    *("availableGPUs", "gpuTempThreshold", "gpuPowerThreshold", "cloudProvider", "cloud", "region"),
    *("nodeHealth", "gpuNodeState", "gpuNodeStatus", "allocation", "gpuSlicingProfile"),
}
NODE_OURS = {"simulated", "gpus"}
DEVICE = {
    *("index", "uuid", "modelName", "healthy", "gprId", "gprName", "sliceName", "endpointName"),
    *("held", "until"),
}


def nodes(client: Any) -> dict[tuple[str, str], dict[str, Any]]:
    data = client("GET", f"{INVENTORY}/list").data
    assert set(data) == {"managedNodes", "unmanagedNodes"}
    assert data["unmanagedNodes"] == []
    found = {(each["clusterName"], each["gpuNodeName"]): each for each in data["managedNodes"]}
    for each in found.values():
        assert set(each) == NODE | NODE_OURS
        assert all(set(device) == DEVICE for device in each["gpus"])
    return found


def test_every_node_and_every_gpu(gpus: GpuWorld) -> None:
    found = nodes(gpus.owner)
    assert sorted(found) == [(FIRST, "gpu-0"), (FIRST, "gpu-1"), (SECOND, "big"), (SECOND, "small")]
    node = found[FIRST, "gpu-0"]
    assert node["gpus"] == [
        {
            "index": 0,
            "uuid": "",
            "modelName": "",
            "healthy": True,
            "gprId": "",
            "gprName": "",
            "sliceName": "",
            "endpointName": "",
            "held": False,
            "until": None,
        }
    ]
    assert (node["memory"], node["gpuCount"], node["availableGPUs"]) == (80, 1, 1)
    assert (node["gpuNodeState"], node["gpuNodeStatus"]) == ("NODE_AVAILABLE", "NODE_AVAILABLE")
    assert (node["nodeHealth"], node["simulated"], node["region"]) == ("Healthy", True, "here")
    assert node["allocation"] == []
    assert len(found[SECOND, "big"]["gpus"]) == 8


def test_who_holds_what_is_told_to_those_who_may_know(gpus: GpuWorld) -> None:
    team, other = gpus.team(), gpus.team()
    gpr_id = gpus.ask(team, clusterName=SECOND, gpuShape=BIG, instanceType=BIG_TYPE, numberOfGPUs=2)
    gpus.grant(gpr_id, "big", (0, 3))
    for client in (gpus.owner, gpus.client("Viewer", team)):
        node = nodes(client)[SECOND, "big"]
        assert (node["availableGPUs"], node["gpuNodeState"]) == (6, "NODE_RESERVED")
        [allocation] = node["allocation"]
        assert set(allocation) == {"gprName", "sliceName", "totalGPUsAllocated", "allocationTimeStamp"}
        assert (allocation["gprName"], allocation["sliceName"]) == (gpr_id, team)
        assert allocation["totalGPUsAllocated"] == 2
        assert allocation["allocationTimeStamp"]["seconds"].isdigit()
        assert isinstance(allocation["allocationTimeStamp"]["nanos"], int)
        assert [each["gprId"] for each in node["gpus"]] == [gpr_id, "", "", gpr_id, "", "", "", ""]
        assert node["gpus"][0]["until"]
    node = nodes(gpus.client("Viewer", other))[SECOND, "big"]
    assert node["availableGPUs"] == 6
    assert node["allocation"][0]["totalGPUsAllocated"] == 2
    assert node["gpus"][3]["held"] is True
    assert gpr_id not in str(node)
    assert team not in str(node)


def test_a_workspace_sees_its_clusters(gpus: GpuWorld) -> None:
    team = gpus.team(FIRST)
    assert {cluster for cluster, _ in nodes(gpus.client("Editor", team))} == {FIRST}
    assert nodes(gpus.client("Viewer", gpus.workspace("local"))) == {}


def test_shapes_that_a_workspace_can_ask_for(gpus: GpuWorld) -> None:
    team = gpus.team()
    data = gpus.owner("GET", f"{INVENTORY}?sliceName={team}").data
    assert set(data) == {"items"}
    assert data["items"][0] == {
        "instanceType": A100_TYPE,
        "gpuShape": A100,
        "gpuSlicingProfile": [],
        "memoryPerGpu": 80,
        "gpuPerNode": 1,
        "totalGpuNodes": 2,
        "clusterName": FIRST,
    }
    assert len(data["items"]) == 3
    only = gpus.client("Viewer", gpus.team(FIRST))
    assert [each["clusterName"] for each in only("GET", INVENTORY).data["items"]] == [FIRST]
    only("GET", f"{INVENTORY}?sliceName={team}").is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    gpus.owner("GET", f"{INVENTORY}?sliceName=nowhere").is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    assert len(gpus.owner("GET", INVENTORY).data["items"]) == 3


# Clusters

CLUSTER = "/api/v1/cluster"


def test_clusters_say_what_they_have(gpus: GpuWorld) -> None:
    gpus.grant(gpus.ask(gpus.team()))
    items = {each["name"]: each for each in gpus.owner("GET", f"{CLUSTER}/list").data["items"]}
    assert items[FIRST]["capacity"] == {"nodes": 2, "gpus": 2, "free": 1}
    assert items[SECOND]["capacity"] == {"nodes": 2, "gpus": 9, "free": 9}
    assert items["local"]["capacity"] == {"nodes": 0, "gpus": 0, "free": 0}
    assert (items["local"]["engineVersion"], items[FIRST]["engineVersion"]) == ("1.2.3", "")


def test_a_cluster_is_registered_used_and_forgotten(gpus: GpuWorld) -> None:
    name = gpus.name("c")
    body = {"name": name, "engine": "simulated", "domain": "models.example.com"}
    assert gpus.owner("POST", CLUSTER, body).data == {"name": name}
    gpus.owner("POST", CLUSTER, body).is_error(409, "ALREADY_EXISTS", "ClusterExists")
    [item] = [each for each in gpus.owner("GET", f"{CLUSTER}/list").data["items"] if each["name"] == name]
    assert (item["engine"], item["domain"], item["reachable"]) == ("simulated", "models.example.com", False)
    assert "configuration file" in item["message"]
    team = gpus.team(name)
    error = gpus.owner("DELETE", CLUSTER, {"name": name}).is_error(409, "CONFLICT", "ClusterInUse")
    assert team in error["message"]
    gpus.owner("DELETE", "/api/v1/slice-workspace", {"workspaceName": team}).ok()
    assert gpus.owner("DELETE", CLUSTER, {"name": name}).data == {}
    gpus.owner("DELETE", CLUSTER, {"name": name}).is_error(404, "NOT_FOUND", "ClusterNotFound")
    gpus.owner("DELETE", CLUSTER, {"name": "local"}).is_error(409, "CONFLICT", "ClusterDeclared")


def test_clusters_that_cannot_be(gpus: GpuWorld) -> None:
    for body, field, reason in (
        ({"name": "Not A Name", "engine": "local"}, "name", "InvalidName"),
        ({"name": "c", "engine": "kserve"}, "kubeconfig", "Missing"),
        ({"name": "c", "engine": "simulated", "kubeconfigRef": "x"}, "kubeconfigRef", "NotKubernetes"),
        ({"name": "c", "engine": "magic"}, "engine", "UnknownEngine"),
        ({"name": "c", "engine": "local", "domain": "d" * 300}, "domain", "TooLong"),
    ):
        error = gpus.owner("POST", CLUSTER, body).is_error(422, "INVALID", reason)
        assert error["field"] == field
    gpus.owner("POST", CLUSTER, {}).is_error(422, "INVALID", "Missing")
