"""Templates and their bindings on the wire, strict shapes byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_world import A100, A100_TYPE, BIG, BIG_TYPE, FIRST, SECOND, GpuWorld

TEMPLATE, BINDING = "/api/v1/gpr-template", "/api/v1/gpr-template-binding"
FIVE = {"clusterName", "defaultTemplateName", "templates", "defaultTemplateStatus", "templateStatus"}


@pytest.fixture
def team(gpus: GpuWorld) -> str:
    return gpus.team()


def body(name: str, **change: Any) -> dict[str, Any]:
    return {
        "name": name,
        "clusterName": FIRST,
        "numberOfGPUs": 1,
        "numberOfGPUNodes": 1,
        "memoryPerGpu": 80,
        "gpuShape": A100,
        "instanceType": A100_TYPE,
        "exitDuration": "0d2h0m",
        "priority": 150,
        "enforceIdleTimeOut": True,
        "idleTimeOutDuration": "30m",
        "enableEviction": True,
        "requeueOnFailure": True,
        **change,
    }


def made(gpus: GpuWorld, **change: Any) -> str:
    name = gpus.name("t")
    assert gpus.owner("POST", TEMPLATE, body(name, **change)).data == {"gprTemplateName": name}
    return name


def shown(gpus: GpuWorld, name: str) -> dict[str, Any]:
    data: dict[str, Any] = gpus.owner("GET", f"{TEMPLATE}?gprTemplateName={name}").data
    return data


def test_a_template_is_made_shown_changed_and_deleted(gpus: GpuWorld) -> None:
    name = made(gpus)
    expected = body(name, exitDuration="2h0m0s", idleTimeOutDuration="0h30m0s")
    assert shown(gpus, name) == expected
    listed = gpus.owner("GET", f"{TEMPLATE}/list").data
    assert set(listed) == {"items"}
    assert expected in listed["items"]
    change = {"name": name, "priority": 20, "memoryPerGPU": 40, "enableEviction": False}
    assert gpus.owner("PUT", TEMPLATE, change).data == {"gprTemplateName": name}
    assert shown(gpus, name) == {**expected, "priority": 20, "memoryPerGpu": 40, "enableEviction": False}
    assert gpus.owner("DELETE", TEMPLATE, {"gprTemplateName": name}).data == {}
    for method, request in (
        ("DELETE", {"gprTemplateName": name}),
        ("PUT", change),
    ):
        gpus.owner(method, TEMPLATE, request).is_error(404, "NOT_FOUND", "GprTemplateNotFound")
    gpus.owner("GET", f"{TEMPLATE}?gprTemplateName={name}").is_error(404, "NOT_FOUND", "GprTemplateNotFound")
    gpus.owner("GET", TEMPLATE).is_error(422, "INVALID", "Missing")


def test_what_is_optional_may_be_left_out(gpus: GpuWorld) -> None:
    name = gpus.name("t")
    least = {
        key: value
        for key, value in body(name).items()
        if key
        in {
            *("name", "clusterName", "numberOfGPUs", "numberOfGPUNodes", "gpuShape", "instanceType"),
            "exitDuration",
        }
    }
    gpus.owner("POST", TEMPLATE, least).ok()
    item = shown(gpus, name)
    assert set(item) == set(body(name))
    assert (item["priority"], item["idleTimeOutDuration"], item["enforceIdleTimeOut"]) == (101, "", False)


def test_names_are_taken_once(gpus: GpuWorld) -> None:
    name = made(gpus)
    gpus.owner("POST", TEMPLATE, body(name)).is_error(409, "ALREADY_EXISTS", "GprTemplateExists")
    other, headers = body(gpus.name("t")), {"Idempotency-Key": gpus.name("k")}
    for _ in range(2):
        gpus.owner("POST", TEMPLATE, other, headers=headers).ok()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"name": None}, "name"),
        ({"clusterName": None}, "clusterName"),
        ({"clusterName": "nowhere"}, "clusterName"),
        ({"numberOfGPUs": 0}, "numberOfGPUs"),
        ({"numberOfGPUNodes": 101}, "numberOfGPUNodes"),
        ({"memoryPerGpu": -1}, "memoryPerGPU"),
        ({"gpuShape": ""}, "gpuShape"),
        ({"instanceType": None}, "instanceType"),
        ({"exitDuration": None}, "exitDuration"),
        ({"exitDuration": "never"}, "exitDuration"),
        ({"priority": 500}, "priority"),
        ({"idleTimeOutDuration": None}, "idleTimeOutDuration"),
    ],
)
def test_what_cannot_be_meant_is_422(gpus: GpuWorld, change: dict[str, Any], field: str) -> None:
    error = gpus.owner("POST", TEMPLATE, {**body(gpus.name("t")), **change}).is_error(422, "INVALID")
    assert field in [error["field"], *(each["field"] for each in error["details"])]


def binding(team: str, default: str, *more: str, **change: Any) -> dict[str, Any]:
    return {
        "workspaceName": team,
        "clusters": [{"clusterName": FIRST, "defaultTemplateName": default, "templates": list(more)}],
        "enableAutoGPR": False,
        **change,
    }


def test_a_binding_is_made_shown_changed_and_deleted(gpus: GpuWorld, team: str) -> None:
    first, second = made(gpus), made(gpus)
    item = {
        "clusterName": FIRST,
        "defaultTemplateName": first,
        "templates": [second, first],
        "defaultTemplateStatus": "Valid",
        "templateStatus": ["Valid", "Valid"],
    }
    assert set(item) == FIVE
    data = gpus.owner("POST", BINDING, binding(team, first, second)).data
    assert data == {"name": team, "namespace": team, "clusters": [item], "enableAutoGPR": False}
    place = f"{BINDING}?gprTemplateBindingName={team}"
    assert gpus.owner("GET", place).data == {"name": team, "clusters": [item], "enableAutoGPR": False}
    changed = gpus.owner("PUT", BINDING, {"workspaceName": team, "enableAutoGPR": True}).data
    assert changed == {"name": team, "namespace": team, "clusters": [item], "enableAutoGPR": True}
    changed = gpus.owner("PUT", BINDING, binding(team, second, enableAutoGPR=None)).data
    assert changed["clusters"][0]["templates"] == [second]
    assert changed["enableAutoGPR"] is True
    listed = gpus.owner("GET", f"{BINDING}/list").data
    assert set(listed) == {"templateBindings"}
    [mine] = [each for each in listed["templateBindings"] if each["name"] == team]
    assert mine == {"name": team, "clusters": changed["clusters"], "enableAutoGPR": True}
    assert gpus.owner("DELETE", BINDING, {"gprTemplateBindingName": team}).data == {}
    missing = (404, "NOT_FOUND", "GprTemplateBindingNotFound")
    gpus.owner("DELETE", BINDING, {"gprTemplateBindingName": team}).is_error(*missing)
    gpus.owner("GET", place).is_error(*missing)
    gpus.owner("PUT", BINDING, binding(team, second)).is_error(*missing)


def test_a_workspace_has_one_binding(gpus: GpuWorld, team: str) -> None:
    name = made(gpus)
    gpus.owner("POST", BINDING, binding(team, name)).ok()
    gpus.owner("POST", BINDING, binding(team, name)).is_error(
        409, "ALREADY_EXISTS", "GprTemplateBindingExists"
    )
    error = gpus.owner("DELETE", TEMPLATE, {"gprTemplateName": name}).is_error(409, "CONFLICT")
    assert team in error["message"]


def test_bindings_that_cannot_be(gpus: GpuWorld, team: str) -> None:
    there, elsewhere = made(gpus), made(gpus, clusterName=SECOND, gpuShape=BIG, instanceType=BIG_TYPE)

    def refused(request: dict[str, Any]) -> list[tuple[str, str]]:
        error = gpus.owner("POST", BINDING, request).is_error(422, "INVALID")
        return [(each["field"], each["reason"]) for each in error["details"]] or [
            (error["field"], error["reason"])
        ]

    assert refused(binding(team, "none")) == [("clusters[0].defaultTemplateName", "GprTemplateNotFound")]
    assert refused(binding(team, there, elsewhere)) == [("clusters[0].templates[0]", "WrongCluster")]
    other = [{"clusterName": "local", "defaultTemplateName": there}]
    assert refused(binding(team, there, clusters=other)) == [
        ("clusters[0].clusterName", "ClusterNotInWorkspace")
    ]
    twice = binding(team, there)["clusters"] * 2
    assert refused(binding(team, there, clusters=twice)) == [("clusters[1].clusterName", "Duplicate")]
    assert refused(binding(team, there, clusters=[])) == [("clusters", "Missing")]
    assert refused(binding(team, there, clusters=[{}]))[0][0].startswith("clusters")
    assert refused(binding("", there)) == [("workspaceName", "Missing")]
    gpus.owner("POST", BINDING, binding("nowhere", there)).is_error(404, "NOT_FOUND", "WorkspaceNotFound")


def test_a_binding_says_what_has_become_unusable(gpus: GpuWorld, team: str) -> None:
    name = made(gpus)
    gpus.owner("POST", BINDING, binding(team, name)).ok()

    def status() -> str:
        [cluster] = gpus.owner("GET", f"{BINDING}?gprTemplateBindingName={team}").data["clusters"]
        assert cluster["templateStatus"] == [cluster["defaultTemplateStatus"]]
        said: str = cluster["defaultTemplateStatus"]
        return said

    assert status() == "Valid"
    gpus.owner("PUT", TEMPLATE, {"name": name, "gpuShape": "gone"}).ok()
    assert "gone" in status()
    gpus.owner("PUT", TEMPLATE, {"name": name, "gpuShape": A100, "numberOfGPUNodes": 3}).ok()
    assert "3 nodes" in status()
    gpus.owner("PUT", "/api/v1/slice-workspace", {"workspaceName": team, "clusters": [SECOND]}).ok()
    assert "does not use cluster" in status()


def test_templates_are_seen_through_ones_binding(gpus: GpuWorld, team: str) -> None:
    bound, unbound = made(gpus), made(gpus)
    gpus.owner("POST", BINDING, binding(team, bound)).ok()
    for role in ("Editor", "Viewer"):
        client = gpus.client(role, team)
        assert [each["name"] for each in client("GET", f"{TEMPLATE}/list").data["items"]] == [bound]
        client("GET", f"{TEMPLATE}?gprTemplateName={bound}").ok()
        client("GET", f"{TEMPLATE}?gprTemplateName={unbound}").is_error(404, "NOT_FOUND")
        assert client("GET", BINDING).data["name"] == team
        assert [each["name"] for each in client("GET", f"{BINDING}/list").data["templateBindings"]] == [team]
        client("POST", TEMPLATE, body(gpus.name("t"))).is_error(403, "FORBIDDEN")
        client("DELETE", BINDING, {"gprTemplateBindingName": team}).is_error(403, "FORBIDDEN")
    stranger = gpus.client("Viewer", gpus.team())
    stranger("GET", f"{BINDING}?gprTemplateBindingName={team}").is_error(404, "NOT_FOUND")
    assert stranger("GET", f"{BINDING}/list").data == {"templateBindings": []}
    assert stranger("GET", f"{TEMPLATE}/list").data == {"items": []}
