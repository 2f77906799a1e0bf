"""Every route, walked by every role, in its own workspace and in a foreign one.

The expectation comes from `PERMISSIONS`, not from what the routes happen to do. A call counts as
let in when it is answered by anything but 403, or 404 for a foreign workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from api_world import Client, World
from inferplane.api.routes import ROUTES
from inferplane.domain.access import PERMISSIONS, Role, Verb
from inferplane.wire import paths

Body = Callable[[str], Any]


@dataclass(frozen=True)
class Step:
    """One call: what it needs, and how it names a workspace (in its query or its body)."""

    method: str
    path: str
    verb: Verb
    query: str = ""
    body: Body | None = None
    names_workspace: bool = True
    place: str = ""  # the path with its parts filled in


def _gpr(team: str) -> dict[str, Any]:
    return {
        "gprName": "walked",
        "sliceName": team,
        "clusterName": "local",
        "numberOfGPUs": 1,
        "numberOfGPUNodes": 1,
        "enableAutoGpuSelection": True,
        "memoryPerGPU": 1,
        "exitDuration": "1h",
    }


def _template(team: str) -> dict[str, Any]:
    return {"name": f"{team}-t", "clusterName": "local", "exitDuration": "1h"}


def _place(team: str) -> dict[str, str]:
    return {"workspace": team, "endpoint": "walked"}


def _create(team: str) -> dict[str, Any]:
    return {
        "endpointName": "walked",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
    }


WALK = (
    Step("POST", paths.API_KEY, Verb.MANAGE_KEYS, body=lambda team: {"name": "x", "role": "Viewer", "validity": "1d", "workspaceName": team}, names_workspace=False),
    Step("DELETE", paths.API_KEY, Verb.MANAGE_KEYS, body=lambda team: {"apiKey": "nobody"}, names_workspace=False),
    Step("GET", paths.API_KEY_LIST, Verb.MANAGE_KEYS, names_workspace=False),
    Step("POST", paths.WORKSPACE, Verb.MANAGE_WORKSPACES, body=lambda team: {"workspaceName": team, "clusters": ["local"], "namespaces": [], "username": "", "email": ""}, names_workspace=False),
    Step("PUT", paths.WORKSPACE, Verb.MANAGE_WORKSPACES, body=lambda team: {"workspaceName": team}, names_workspace=False),
    Step("DELETE", paths.WORKSPACE, Verb.MANAGE_WORKSPACES, body=lambda team: {"workspaceName": team + "x"}, names_workspace=False),
    Step("GET", paths.WORKSPACE_LIST, Verb.READ_WORKSPACE, names_workspace=False),
    Step("POST", paths.WORKSPACE_KUBE_CONFIG, Verb.READ_WORKSPACE, body=lambda team: {"workspaceName": team}),
    Step("POST", paths.CLUSTER, Verb.MANAGE_CLUSTERS, body=lambda team: {"name": "local", "engine": "local"}, names_workspace=False),
    Step("PUT", paths.CLUSTER, Verb.MANAGE_CLUSTERS, body=lambda team: {"name": "local"}, names_workspace=False),
    Step("POST", paths.CLUSTER_CHECK, Verb.MANAGE_CLUSTERS, body=lambda team: {"name": "local"}, names_workspace=False),
    Step("DELETE", paths.CLUSTER, Verb.MANAGE_CLUSTERS, body=lambda team: {"name": "local"}, names_workspace=False),
    Step("GET", paths.CLUSTER_LIST, Verb.READ_CLUSTERS, names_workspace=False),
    Step("GET", paths.POLICIES, Verb.READ_WORKSPACE, names_workspace=False),
    Step("GET", paths.POLICY, Verb.READ_WORKSPACE, place=paths.POLICIES + "/{team}"),
    Step("PUT", paths.POLICY, Verb.MANAGE_GPUS, place=paths.POLICIES + "/{team}", body=lambda team: {"maxGPRs": 50}),
    Step("GET", paths.INVENTORY_LIST, Verb.READ_GPUS, names_workspace=False),
    Step("GET", paths.INVENTORY, Verb.READ_GPUS, query="sliceName={team}"),
    Step("POST", paths.GPR, Verb.WRITE_GPUS, body=_gpr),
    Step("GET", paths.GPR, Verb.READ_GPUS, query="gprId=gpr-12345678-1234", names_workspace=False),
    Step("PUT", paths.GPR, Verb.READ_GPUS, body=lambda team: {"gprId": "gpr-12345678-1234", "priority": 7}, names_workspace=False),
    Step("DELETE", paths.GPR, Verb.READ_GPUS, body=lambda team: {"gprId": "gpr-12345678-1234"}, names_workspace=False),
    Step("GET", paths.GPR_LIST, Verb.READ_GPUS, query="sliceName={team}"),
    Step("POST", paths.GPR_WAIT_TIME, Verb.READ_GPUS, body=_gpr),
    Step("POST", paths.TEMPLATE, Verb.MANAGE_GPUS, body=_template, names_workspace=False),
    Step("GET", paths.TEMPLATE, Verb.READ_WORKSPACE, query="gprTemplateName=nothing", names_workspace=False),
    Step("PUT", paths.TEMPLATE, Verb.MANAGE_GPUS, body=_template, names_workspace=False),
    Step("DELETE", paths.TEMPLATE, Verb.MANAGE_GPUS, body=lambda team: {"gprTemplateName": f"{team}-t"}, names_workspace=False),
    Step("GET", paths.TEMPLATE_LIST, Verb.READ_WORKSPACE, names_workspace=False),
    Step("POST", paths.BINDING, Verb.MANAGE_GPUS, body=lambda team: {"workspaceName": team, "clusters": []}, names_workspace=False),
    Step("GET", paths.BINDING, Verb.READ_WORKSPACE, query="gprTemplateBindingName={team}"),
    Step("PUT", paths.BINDING, Verb.MANAGE_GPUS, body=lambda team: {"workspaceName": team, "enableAutoGPR": True}, names_workspace=False),
    Step("DELETE", paths.BINDING, Verb.MANAGE_GPUS, body=lambda team: {"gprTemplateBindingName": team}, names_workspace=False),
    Step("GET", paths.BINDING_LIST, Verb.READ_WORKSPACE, names_workspace=False),
    Step("GET", paths.AUDIT, Verb.READ_AUDIT, names_workspace=False),
    Step("POST", paths.ENDPOINT_KEY, Verb.WRITE_ENDPOINT_KEYS, body=lambda team: {"workspace": team, "name": "k", "validity": "1d"}),
    Step("DELETE", paths.ENDPOINT_KEY, Verb.WRITE_ENDPOINT_KEYS, body=lambda team: {"keyId": "nobody"}, names_workspace=False),
    Step("GET", paths.ENDPOINT_KEY_LIST, Verb.READ_ENDPOINT_KEYS, query="workspace={team}"),
    Step("GET", paths.USAGE, Verb.READ_USAGE, query="workspace={team}"),
    Step("POST", paths.ENDPOINT, Verb.WRITE_ENDPOINT, body=_create),
    Step("POST", paths.ENDPOINT, Verb.WRITE_ENDPOINT, query="dryRun=true", body=_create),
    Step("GET", paths.ENDPOINT, Verb.READ_ENDPOINT, query="workspace={team}&endpoint=walked"),
    Step("GET", paths.ENDPOINT, Verb.READ_ENDPOINT, query="workspace={team}"),
    Step("GET", paths.ENDPOINT_LIST, Verb.READ_ENDPOINT, query="workspace={team}"),
    Step("GET", paths.ENDPOINT_EVENTS, Verb.READ_ENDPOINT, query="workspace={team}&endpoint=walked"),
    Step("GET", paths.ENDPOINT_EVENTS, Verb.READ_ENDPOINT, query="workspace={team}"),
    Step("GET", paths.ENDPOINT_LOGS, Verb.READ_LOGS, query="workspace={team}&endpoint=walked"),
    Step("GET", paths.ENDPOINT_LOGS, Verb.READ_LOGS, query="workspace={team}&endpoint=walked&follow=true"),
    Step("GET", paths.ENDPOINT_EXPLAIN, Verb.READ_ENDPOINT, query="workspace={team}&endpoint=walked"),
    Step("GET", paths.ENDPOINT_METRICS, Verb.READ_ENDPOINT, query="workspace={team}&endpoint=walked"),
    Step("GET", paths.ENDPOINT_WATCH, Verb.READ_ENDPOINT, query="workspace={team}&status=none"),
    Step("PATCH", paths.ENDPOINT, Verb.WRITE_ENDPOINT, body=lambda team: {**_place(team), "limits": {"timeoutSeconds": 30}}),
    Step("PATCH", paths.ENDPOINT, Verb.WRITE_ENDPOINT, query="dryRun=true", body=lambda team: {**_place(team), "limits": {"timeoutSeconds": 30}}),
    Step("POST", paths.ENDPOINT_PROMOTE, Verb.WRITE_ENDPOINT, body=_place),
    Step("POST", paths.ENDPOINT_ROLLBACK, Verb.WRITE_ENDPOINT, body=_place),
    Step("POST", paths.ENDPOINT_STOP, Verb.WRITE_ENDPOINT, body=_place),
    Step("POST", paths.ENDPOINT_START, Verb.WRITE_ENDPOINT, body=_place),
    Step("DELETE", paths.ENDPOINT, Verb.WRITE_ENDPOINT, body=_place),
)  # fmt: skip


def test_the_walk_covers_every_route() -> None:
    walked = {(step.method, step.path) for step in WALK}
    assert walked == {(method, route.path) for route in ROUTES if route.token for method in route.methods}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_every_role_may_what_the_table_says(world: World, role: Role, foreign: bool) -> None:
    own = world.workspace()
    other = world.workspace()
    client = world.client(role.value, "" if role is Role.OWNER else own)
    for team in (own, other):
        world.create(team, "walked")
    team = other if foreign else own
    for step in WALK:
        reply = _call(client, step, team)
        label = f"{role} {step.method} {step.path}?{step.query}: {reply.status} {reply.body['message']}"
        allowed = role in PERMISSIONS[step.verb]
        if foreign and step.names_workspace and role is not Role.OWNER:
            assert reply.status == 404, label
            assert reply.error["reason"] == "WorkspaceNotFound", label
        elif allowed:
            assert reply.status not in {401, 403}, label
            assert reply.body["message"] != f"workspace {team} does not exist", label
        else:
            assert reply.status == 403, label
            assert reply.error["errorKey"] == "FORBIDDEN", label
            assert role.value in reply.body["message"], label
    stranger = "nowhere-at-all"
    if foreign and role is not Role.OWNER:
        # What exists elsewhere and what exists nowhere look the same.
        for step in WALK:
            if step.names_workspace:
                here, nowhere = _call(client, step, team), _call(client, step, stranger)
                assert here.body["message"].replace(team, stranger) == nowhere.body["message"]


def _call(client: Client, step: Step, team: str) -> Any:
    query = f"?{step.query.format(team=team)}" if step.query else ""
    place = (step.place or step.path).format(team=team)
    return client(step.method, place + query, step.body(team) if step.body else None)


def test_lists_show_only_the_own_workspace(world: World) -> None:
    own, other = world.workspace(), world.workspace()
    for team in (own, other):
        world.create(team, "seen")
    for role in ("Editor", "Viewer"):
        client = world.client(role, own)
        assert [each["name"] for each in client("GET", paths.WORKSPACE_LIST).data["workspaces"]] == [own]
        items = client("GET", paths.ENDPOINT_LIST).data["endpoints"]
        assert [each["workspace"] for each in items] == [own]
        events = client("GET", paths.ENDPOINT_EVENTS).data["events"]
        assert {each["workspace"] for each in events} == {own}
