"""The audit log on the wire: complete, filtered, in order, and without a secret."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gpu_world import FIRST, GPR, GpuWorld

AUDIT = "/api/v1/audit"
ITEM = {
    *("seq", "at", "actor", "kind", "message", "keyId", "workspace", "endpoint", "reason"),
    *("before", "after", "data"),
}


def entries(gpus: GpuWorld, query: str) -> list[dict[str, Any]]:
    data = gpus.owner("GET", f"{AUDIT}?{query}").data
    assert set(data) <= {"items", "continue"}
    assert all(set(each) == ITEM for each in data["items"])
    items: list[dict[str, Any]] = data["items"]
    return items


def test_every_change_says_who_from_what_to_what(gpus: GpuWorld) -> None:
    team = gpus.name("team")
    made = {"workspaceName": team, "clusters": [FIRST], "namespaces": [], "username": "ada", "email": ""}
    gpus.owner("POST", "/api/v1/slice-workspace", made).ok()
    gpus.owner("PUT", "/api/v1/slice-workspace", {"workspaceName": team, "username": "bob"}).ok()
    editor = gpus.client("Editor", team)
    gpr_id = gpus.ask(team, editor, gprName="mine")
    editor("PUT", GPR, {"gprId": gpr_id, "priority": 7}).ok()
    editor("DELETE", GPR, {"gprId": gpr_id}).ok()
    gpus.owner("PUT", f"/api/v1/workspace-policies/{team}", {"maxGPRs": 3}).ok()
    name = gpus.name("e")
    endpoint = {
        "endpointName": name,
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib", "secret": {"K": "hunter2"}},
    }
    editor("POST", "/api/v1/inference-endpoint", endpoint).ok()
    editor("POST", "/api/v1/inference-endpoint/stop", {"workspace": team, "endpoint": name}).ok()
    items = entries(gpus, f"workspace={team}&limit=1000")
    by_kind = {each["kind"]: each for each in items}
    assert list(by_kind) == [
        *("WorkspaceCreated", "WorkspaceChanged", "ApiKeyCreated", "GprCreated", "GprChanged"),
        *("GprDeleted", "PolicyChanged", "EndpointCreated", "EndpointStopRequested"),
    ]
    assert by_kind["WorkspaceCreated"]["before"] is None
    assert by_kind["WorkspaceCreated"]["after"]["username"] == "ada"
    changed = by_kind["WorkspaceChanged"]
    assert (changed["before"], changed["after"]) == ({"username": "ada"}, {"username": "bob"})
    assert changed["keyId"] == gpus.owner.key_id
    assert by_kind["ApiKeyCreated"]["after"]["role"] == "Editor"
    gpr = by_kind["GprChanged"]
    assert (gpr["before"], gpr["after"]) == ({"priority": 101}, {"priority": 7})
    assert (gpr["keyId"], gpr["data"]) == (editor.key_id, {"gprId": gpr_id})
    assert by_kind["GprDeleted"]["before"]["name"] == "mine"
    policy = by_kind["PolicyChanged"]
    assert (policy["before"], policy["after"]) == ({"max_requests": None}, {"max_requests": 3})
    assert by_kind["EndpointCreated"]["after"]["storage_uri"].endswith("/m.joblib")
    stopped = by_kind["EndpointStopRequested"]
    assert (stopped["before"], stopped["after"]) == ({"stopped": False}, {"stopped": True})
    assert stopped["endpoint"] == name
    whole = str(items)
    assert "hunter2" not in whole
    assert editor.key not in whole


def test_templates_and_bindings_leave_their_trace(gpus: GpuWorld) -> None:
    team, name = gpus.team(), gpus.name("t")
    template = {
        "name": name,
        "clusterName": FIRST,
        "numberOfGPUs": 1,
        "numberOfGPUNodes": 1,
        "gpuShape": "NVIDIA-A100",
        "instanceType": "a2-ultragpu-1g",
        "exitDuration": "1h",
    }
    gpus.owner("POST", "/api/v1/gpr-template", template).ok()
    gpus.owner("PUT", "/api/v1/gpr-template", {"name": name, "priority": 5}).ok()
    bound = {"workspaceName": team, "clusters": [{"clusterName": FIRST, "defaultTemplateName": name}]}
    gpus.owner("POST", "/api/v1/gpr-template-binding", bound).ok()
    gpus.owner("PUT", "/api/v1/gpr-template-binding", {"workspaceName": team, "enableAutoGPR": True}).ok()
    gpus.owner("DELETE", "/api/v1/gpr-template-binding", {"gprTemplateBindingName": team}).ok()
    gpus.owner("DELETE", "/api/v1/gpr-template", {"gprTemplateName": name}).ok()
    [changed] = [
        each for each in entries(gpus, "kind=GprTemplateChanged&limit=1000") if name in each["message"]
    ]
    assert (changed["before"], changed["after"]) == ({"priority": 101}, {"priority": 5})
    kinds = [each["kind"] for each in entries(gpus, f"workspace={team}")]
    assert kinds == [
        *("GprTemplateBindingCreated", "GprTemplateBindingChanged", "GprTemplateBindingDeleted"),
    ]


def test_filters_and_pages(gpus: GpuWorld) -> None:
    team = gpus.team()
    editor = gpus.client("Editor", team)
    ids = [gpus.ask(team, editor) for _ in range(5)]
    found = entries(gpus, f"workspace={team}&kind=GprCreated")
    assert [each["data"]["gprId"] for each in found] == ids
    assert [each["data"]["gprId"] for each in entries(gpus, f"workspace={team}&limit=2")] == ids[-2:]
    actor = found[0]["actor"]
    assert {each["actor"] for each in entries(gpus, f"actor={actor}")} == {actor}
    seen: list[str] = []
    after = "0"
    while after:
        page = gpus.owner("GET", f"{AUDIT}?workspace={team}&kind=GprCreated&limit=2&after={after}").data
        seen += [each["data"]["gprId"] for each in page["items"]]
        after = page.get("continue", "")
    assert seen == ids
    now = gpus.now()
    stamp = (now - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    assert len(entries(gpus, f"workspace={team}&kind=GprCreated&since={stamp}")) == 5
    assert entries(gpus, f"workspace={team}&until={stamp}") == []
    assert entries(gpus, f"workspace={team}&since=2090-01-01") == []
    assert entries(gpus, "workspace=never-there") == []


def test_bad_questions_are_422(gpus: GpuWorld) -> None:
    for query in ("since=yesterday", "until=0001-01-01T00:00:00%2B23:59", "limit=x", "after=-1"):
        gpus.owner("GET", f"{AUDIT}?{query}").is_error(422, "INVALID")


def test_it_is_for_owners(gpus: GpuWorld) -> None:
    team = gpus.team()
    for role in ("Editor", "Viewer"):
        gpus.client(role, team)("GET", AUDIT).is_error(403, "FORBIDDEN")


def test_events_leave_to_the_audit_log_whose_key_it_was(gpus: GpuWorld) -> None:
    team = gpus.workspace(FIRST)
    name = gpus.create(team)
    viewer = gpus.client("Viewer", team)
    events = viewer("GET", f"/api/v1/inference-endpoint/events?workspace={team}&endpoint={name}").data
    assert [each["kind"] for each in events["events"]] == ["EndpointCreated"]
    assert not {"keyId", "before", "after"} & set(events["events"][0]["data"])
