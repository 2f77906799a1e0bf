"""Workspaces and clusters on the wire."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from api_world import Client, World, wait_for

WORKSPACE, LIST = "/api/v1/slice-workspace", "/api/v1/slice-workspace/list"
KUBE_CONFIG = "/api/v1/slice-workspace/kube-config"


def body(name: str, **change: Any) -> dict[str, Any]:
    return {
        "workspaceName": name,
        "clusters": ["local"],
        "namespaces": ["models", "data"],
        "username": "ada",
        "email": "ada@example.com",
        **change,
    }


def test_a_workspace_is_made_listed_and_deleted(world: World, owner: Client) -> None:
    name = world.name("team")
    assert owner("POST", WORKSPACE, body(name)).data == {"workspaceName": name}
    listed = owner("GET", LIST).data
    assert set(listed) == {"workspaces"}
    [item] = [each for each in listed["workspaces"] if each["name"] == name]
    assert item == {
        "name": name,
        "overlayNetworkDeploymentMode": "",
        "maxClusters": 1,
        "sliceDescription": "",
        "clusters": ["local"],
        "namespaces": [
            {"namespace": "models", "clusters": ["local"]},
            {"namespace": "data", "clusters": ["local"]},
        ],
    }
    assert owner("DELETE", WORKSPACE, {"workspaceName": name}).data == {}
    owner("DELETE", WORKSPACE, {"workspaceName": name}).is_error(404, "NOT_FOUND", "WorkspaceNotFound")


def test_default_exists_from_the_start(owner: Client) -> None:
    assert "default" in [each["name"] for each in owner("GET", LIST).data["workspaces"]]


def test_the_same_name_again_is_409(world: World, owner: Client) -> None:
    name = world.name("team")
    owner("POST", WORKSPACE, body(name)).ok()
    owner("POST", WORKSPACE, body(name)).is_error(409, "ALREADY_EXISTS", "WorkspaceExists")


def test_a_repeated_create_gives_the_same_answer(world: World, owner: Client) -> None:
    name = world.name("team")
    headers = {"Idempotency-Key": world.name("k")}
    for _ in range(2):
        assert owner("POST", WORKSPACE, body(name), headers=headers).data == {"workspaceName": name}
    other = body(world.name("team"))
    owner("POST", WORKSPACE, other, headers=headers).is_error(409, "CONFLICT", "IdempotencyKeyReused")
    owner("POST", WORKSPACE, other, headers={"Idempotency-Key": "k" * 300}).is_error(422, "INVALID")


@pytest.mark.parametrize("missing", ["workspaceName", "clusters", "namespaces", "username", "email"])
def test_a_missing_field_is_422(world: World, owner: Client, missing: str) -> None:
    error = owner("POST", WORKSPACE, body(world.name("t"), **{missing: None})).is_error(
        422, "INVALID", "Missing"
    )
    assert error["field"] == missing
    assert error["details"] == [{"reason": "Missing", "message": f"{missing} is needed", "field": missing}]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"clusters": ["nowhere"]}, "clusters[0]"),
        ({"clusters": ["local", "nowhere"]}, "clusters[1]"),
        ({"clusters": []}, "clusters"),
        ({"clusters": "local"}, "clusters"),
        ({"clusters": ["local"] * 60}, "clusters"),
        ({"namespaces": ["Not A Name"]}, "namespaces[0]"),
        ({"namespaces": ["n"] * 300}, "namespaces"),
        ({"workspaceName": "Team A"}, "workspaceName"),
        ({"workspaceName": "a" * 64}, "workspaceName"),
        ({"workspaceName": "-a"}, "workspaceName"),
        ({"email": "e" * 300}, "email"),
    ],
)
def test_what_cannot_be_meant_is_422(world: World, owner: Client, change: dict[str, Any], field: str) -> None:
    error = owner("POST", WORKSPACE, body(world.name("t"), **change)).is_error(422, "INVALID")
    assert field in [detail["field"] for detail in error["details"]]


def test_put_replaces_clusters_and_namespaces(world: World, owner: Client) -> None:
    name = world.name("team")
    owner("POST", WORKSPACE, body(name)).ok()
    change = {"workspaceName": name, "clusters": ["local", "edge"], "namespaces": []}
    assert owner("PUT", WORKSPACE, change).data == {"workspaceName": name}
    [item] = [each for each in owner("GET", LIST).data["workspaces"] if each["name"] == name]
    assert (item["clusters"], item["namespaces"]) == (["local", "edge"], [])
    owner("PUT", WORKSPACE, {"workspaceName": name, "clusters": ["nowhere"]}).is_error(422, "INVALID")
    owner("PUT", WORKSPACE, {"workspaceName": "nowhere", "clusters": ["local"]}).is_error(404, "NOT_FOUND")
    endpoint = world.create(name, clusterName="local")
    error = owner("PUT", WORKSPACE, {"workspaceName": name, "clusters": ["edge"]}).is_error(409, "CONFLICT")
    assert endpoint in error["message"]


def test_a_workspace_with_endpoints_is_not_deleted_unasked(world: World, owner: Client, team: str) -> None:
    names = {world.create(team), world.create(team)}
    error = owner("DELETE", WORKSPACE, {"workspaceName": team}).is_error(409, "CONFLICT", "WorkspaceNotEmpty")
    assert len(error["details"]) == 2
    assert all(any(name in detail["message"] for detail in error["details"]) for name in names)
    owner("DELETE", WORKSPACE, {"workspaceName": team, "force": False}).is_error(409, "CONFLICT")
    owner("DELETE", WORKSPACE, {"workspaceName": team, "force": "yes"}).is_error(422, "INVALID")


def test_force_undoes_the_endpoints_first(world: World, owner: Client, team: str) -> None:
    names = [world.create(team), world.create(team)]
    # Nobody undoes them: after the named wait it says so, and they are on their way.
    error = owner("DELETE", WORKSPACE, {"workspaceName": team, "force": True}).is_error(409, "CONFLICT")
    assert "Terminating" in error["details"][0]["message"]

    def controllers() -> None:
        wait_for(lambda: all(world.stored(team, name).deletion_requested_at for name in names), "the marks")
        for name in names:
            world.finish_deletion(team, name)

    undoing = threading.Thread(target=controllers)
    undoing.start()
    reply = wait_for(
        lambda: _done(owner("DELETE", WORKSPACE, {"workspaceName": team, "force": True})),
        "the workspace to go",
    )
    undoing.join()
    assert reply == {"data": {}}
    assert team not in [each["name"] for each in owner("GET", LIST).data["workspaces"]]


def _done(reply: Any) -> dict[str, Any] | None:
    return {"data": reply.data} if reply.status == 200 else None


def test_keys_of_a_deleted_workspace_are_gone(world: World, owner: Client, team: str) -> None:
    """Or they would open a later workspace of the same name."""
    editor = world.client("Editor", team)
    editor("GET", LIST).ok()
    owner("DELETE", WORKSPACE, {"workspaceName": team}).ok()
    owner("POST", WORKSPACE, body(team)).ok()
    editor("GET", LIST).is_error(401, "UNAUTHENTICATED")


def test_there_is_no_kube_config_without_kubernetes(world: World, owner: Client, team: str) -> None:
    for request in ({"workspaceName": team}, {"workspaceName": team, "clusterName": "local"}):
        error = owner("POST", KUBE_CONFIG, request).is_error(422, "INVALID", "NotKubernetes")
        assert "no Kubernetes" in error["message"]
    owner("POST", KUBE_CONFIG, {"workspaceName": team, "clusterName": "edge"}).is_error(
        422, "INVALID", "ClusterNotInWorkspace"
    )
    owner("POST", KUBE_CONFIG, {"workspaceName": "nowhere"}).is_error(404, "NOT_FOUND")
    owner("POST", KUBE_CONFIG, {}).is_error(422, "INVALID", "Missing")


def test_clusters_say_whether_they_can_be_used(world: World, owner: Client, team: str) -> None:
    data = owner("GET", "/api/v1/cluster/list").data
    assert set(data) == {"items"}
    items = {item["name"]: item for item in data["items"]}
    assert set(items) == {"local", "edge", "cloud"}
    assert items["local"]["reachable"] is True
    assert items["edge"]["reachable"] is False
    assert items["edge"]["message"]
    assert items["local"]["engine"] == "local"
    viewer = world.client("Viewer", team)
    assert [item["name"] for item in viewer("GET", "/api/v1/cluster/list").data["items"]] == ["local"]
