"""What a look at a cluster says, and what a workspace is given there, over an API server that is a dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferplane.domain.cluster import ClusterReport
from inferplane.domain.kubeconfig import check_alone
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.clusters import WorkspaceAccess
from inferplane.engines.kserve import access as pages
from inferplane.engines.kserve.link import KubernetesLink
from inferplane.engines.port import EngineError

NODES = Path(__file__).parents[2] / "golden" / "kserve" / "nodes"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = "/api/v1/namespaces/kserve/configmaps/inferenceservice-config"
CONTROLLER = "/apis/apps/v1/namespaces/kserve/deployments/kserve-controller-manager"
RUNTIMES = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
WRITER = pages.account_of("team", may_write=True)
INGRESS = {"ingressDomain": "models.example.com", "disableIngressCreation": False}


class Answered(EngineError):
    """An answer that is a refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DictionaryApi:
    """Objects by path. `denied` are verbs and resources that may not be done; `away` is what nobody answers."""

    server = "https://192.0.2.1:6443"
    authority = b"-----BEGIN CERTIFICATE-----"

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {
            "/version": {"gitVersion": "v1.36.2"},
            "/apis/serving.kserve.io/v1beta1": {"resources": [{"name": "inferenceservices"}]},
            CONFIG: {
                "metadata": {"namespace": "kserve"},
                "data": {
                    "deploy": '{"defaultDeploymentMode": "RawDeployment"}',
                    "ingress": json.dumps(INGRESS),
                    "storageInitializer": '{"image": "example.com/kserve/storage-initializer:v0.20.1"}',
                },
            },
            CONTROLLER: {"status": {"availableReplicas": 1}},
            RUNTIMES: {"items": [_runtime("kserve-sklearnserver"), _runtime("old", disabled=True)]},
            "/api/v1/nodes": json.loads((NODES / "gpu.json").read_text()),
        }
        self.denied: set[tuple[str, str]] = set()
        self.failure: Answered | None = None
        self.calls: list[tuple[str, str]] = []

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str
    ) -> dict[str, Any]:
        self.calls.append((method, path))
        if self.failure is not None:
            raise self.failure
        if path.endswith("/selfsubjectaccessreviews"):
            assert body is not None
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return {"status": {"allowed": (asked["verb"], resource) not in self.denied}}
        if path.endswith("/token"):
            assert body is not None
            return {"status": {"token": f"expires-in-{body['spec']['expirationSeconds']}"}}
        if method == "PATCH":
            assert body is not None
            self.objects[path] = deepcopy(dict(body))
        elif method == "DELETE":
            if self.objects.pop(path, None) is None:
                raise Answered(404, "not found")
            return {}
        if path in self.objects:
            return deepcopy(self.objects[path])
        if selector := query.get("labelSelector", ""):
            return {"items": [each for each in self._kind(path) if _matches(each, selector)]}
        raise Answered(404, f"{path} not found")

    def _kind(self, path: str) -> list[dict[str, Any]]:
        plural = path.rsplit("/", 1)[1]
        return [value for key, value in self.objects.items() if key.split("/")[-2:-1] == [plural]]

    async def close(self) -> None:
        pass


def _runtime(name: str, *, disabled: bool = False) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"disabled": True} if disabled else {}}


def _matches(raw: dict[str, Any], selector: str) -> bool:
    name, _, value = selector.partition("=")
    labels = raw["metadata"].get("labels", {})
    return labels.get(name) == value if value else name in labels


def link(api: DictionaryApi) -> KubernetesLink:
    return KubernetesLink("east", api, lambda: NOW, ingress_address="192.0.2.10")


async def look(api: DictionaryApi) -> ClusterReport:
    return await link(api).look()


def check(report: ClusterReport, name: str) -> Check:
    [found] = [each for each in report.checks if each.check == name]
    return found


async def test_a_cluster_as_it_should_be() -> None:
    report = await look(DictionaryApi())
    assert (report.reachable, report.problems, report.message) == (True, (), "")
    assert (report.version, report.kserve_version, report.kserve_mode) == ("v1.36.2", "v0.20.1", "Standard")
    assert report.runtimes == ("kserve-sklearnserver",)
    assert [(each.check, each.message) for each in report.checks] == [
        ("api", "Kubernetes v1.36.2 at https://192.0.2.1:6443"),
        ("permissions", "everything that the platform needs"),
        ("kserve", "KServe v0.20.1, mode Standard"),
        ("runtimes", "1: kserve-sklearnserver"),
        ("ingress", "names end in models.example.com; requests go to 192.0.2.10"),
        ("gpus", "4 on 1 of 1 node: NVIDIA-A100-SXM4-80GB"),
    ]


async def test_what_is_not_allowed_is_named() -> None:
    api = DictionaryApi()
    api.denied = {("create", "inferenceservices"), ("patch", "inferenceservices"), ("get", "pods/log")}
    found = check(await look(api), "permissions")
    assert (found.ok, found.reason) == (False, ReasonCode.CLUSTER_FORBIDDEN)
    assert found.message == (
        "the credentials may not: get pods/log (logs);"
        " create, patch inferenceservices.serving.kserve.io (endpoints)"
    )


async def test_what_is_only_for_more_is_said_and_no_problem() -> None:
    api = DictionaryApi()
    api.denied = {("create", "serviceaccounts/token")}
    report = await look(api)
    assert report.problems == ()
    assert "create serviceaccounts/token (kubeconfigs of workspaces)" in check(report, "permissions").message


@pytest.mark.parametrize(
    ("lost", "instead", "failing", "reason", "said"),
    [
        ("/apis/serving.kserve.io/v1beta1", None, "kserve", ReasonCode.KSERVE_NOT_READY, "not installed"),
        (CONTROLLER, {"status": {}}, "kserve", ReasonCode.KSERVE_NOT_READY, "no available pod"),
        (RUNTIMES, {"items": []}, "runtimes", ReasonCode.NO_RUNTIME, "no ClusterServingRuntime"),
        (
            CONFIG,
            {
                "metadata": {"namespace": "kserve"},
                "data": {
                    "deploy": '{"defaultDeploymentMode": "Standard"}',
                    "ingress": '{"disableIngressCreation": true}',
                },
            },
            "ingress",
            ReasonCode.ROUTE_NOT_READY,
            "disableIngressCreation",
        ),
    ],
)
async def test_what_keeps_kserve_from_serving_is_said(
    lost: str, instead: dict[str, Any] | None, failing: str, reason: ReasonCode, said: str
) -> None:
    api = DictionaryApi()
    del api.objects[lost]
    if instead is not None:
        api.objects[lost] = instead
    report = await look(api)
    assert report.reachable
    assert [each.check for each in report.problems] == [failing]
    found = check(report, failing)
    assert found.reason is reason
    assert said in found.message
    assert found.next_action


@pytest.mark.parametrize(
    "config",
    [None, {"data": {"deploy": "{", "ingress": "[]", "agent": '{"image": "x:latest"}'}}, {"data": []}],
)
async def test_settings_that_say_nothing_are_no_problem(config: dict[str, Any] | None) -> None:
    api = DictionaryApi()
    del api.objects[CONFIG]
    if config is not None:
        api.objects[CONFIG] = config
    report = await look(api)
    assert (report.kserve_version, report.kserve_mode, report.problems) == ("", "", ())


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Answered(401, "Unauthorized"), ReasonCode.CLUSTER_UNAUTHORIZED),
        (Answered(403, "forbidden"), ReasonCode.CLUSTER_FORBIDDEN),
        (Answered(0, "connection refused"), ReasonCode.CLUSTER_UNREACHABLE),
        (Answered(500, "etcd is away"), ReasonCode.CLUSTER_UNREACHABLE),
    ],
)
async def test_a_cluster_that_cannot_be_used(failure: Answered, reason: ReasonCode) -> None:
    api = DictionaryApi()
    api.failure = failure
    report = await look(api)
    assert (report.reachable, report.message) == (False, f"https://192.0.2.1:6443: {failure.message}")
    assert [each.reason for each in report.problems] == [reason]


async def test_a_quick_look_is_one_request_and_keeps_what_is_known() -> None:
    api = DictionaryApi()
    there = link(api)
    whole = await there.look(thorough=False)
    assert whole.checks  # nothing was known, so everything was asked
    api.calls.clear()
    again = await there.look(thorough=False)
    assert again == whole
    assert api.calls == [("GET", "/version")]


async def test_nodes_are_told_or_why_not() -> None:
    api = DictionaryApi()
    nodes, problem = await link(api).nodes()
    assert ([each.name for each in nodes], problem) == (["node1"], "")
    api.failure = Answered(0, "no route to host")
    nodes, problem = await link(api).nodes()
    assert nodes == ()
    assert "no route to host" in problem


# --- a workspace's way in -------------------------------------------------------------------------------


def asked(*namespaces: str, of_endpoints: tuple[str, ...] = (), may_write: bool = True) -> WorkspaceAccess:
    return WorkspaceAccess("team", namespaces, of_endpoints, may_write, 28_800)


async def test_a_workspace_gets_its_namespaces_and_nothing_else() -> None:
    api = DictionaryApi()
    api.objects["/api/v1/namespaces/team-iris-000001"] = {"metadata": {"name": "team-iris-000001"}}
    access = asked("team-data", of_endpoints=("team-iris-000001", "team-new-000002"))
    text = await link(api).workspace_kubeconfig(access)
    config = yaml.safe_load(text)
    assert check_alone(config, "") == "team@east"
    assert config["users"][0]["user"] == {"token": "expires-in-28800"}
    assert config["clusters"][0]["cluster"]["server"] == api.server
    assert config["contexts"][0]["context"]["namespace"] == "team-data"
    bound = sorted(path for path in api.objects if "/rolebindings/" in path)
    assert bound == [
        f"{RBAC}/namespaces/{name}/rolebindings/{WRITER}"
        for name in ("inferplane-ws-team", "team-data", "team-iris-000001")
    ]
    assert api.objects[bound[0]]["subjects"] == [
        {"kind": "ServiceAccount", "name": WRITER, "namespace": "inferplane-ws-team"}
    ]
    assert "/api/v1/namespaces/team-new-000002" not in api.objects, "what is not there yet is not made"


@pytest.mark.parametrize("may_write", [True, False])
async def test_rights_follow_the_role(may_write: bool) -> None:
    api = DictionaryApi()
    await link(api).workspace_kubeconfig(asked(may_write=may_write))
    [role] = [value for path, value in api.objects.items() if "/roles/" in path]
    verbs = {
        (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }
    assert ("pods/log", "get") in verbs
    assert (("inferenceservices", "delete") in verbs) is may_write
    assert not {resource for resource, _ in verbs} & {"secrets", "roles", "rolebindings", "namespaces"}
    if not may_write:
        assert {verb for _, verb in verbs} <= {"get", "list", "watch"}


async def test_a_namespace_that_the_workspace_lost_is_closed_again() -> None:
    api = DictionaryApi()
    await link(api).workspace_kubeconfig(asked("a", "b"))
    api.objects[f"{RBAC}/namespaces/a/roles/others"] = {
        "metadata": {"name": "others", "namespace": "a", "labels": {}}
    }
    await link(api).workspace_kubeconfig(asked("b"))
    left = {path for path in api.objects if path.startswith(f"{RBAC}/namespaces/a/")}
    assert left == {f"{RBAC}/namespaces/a/roles/others"}
    assert f"{RBAC}/namespaces/b/roles/{WRITER}" in api.objects


async def test_a_workspace_is_revoked_whole() -> None:
    api = DictionaryApi()
    there = link(api)
    await there.workspace_kubeconfig(asked("a"))
    await there.workspace_kubeconfig(asked("a", may_write=False))
    assert await there.workspaces() == frozenset({"team"})
    await there.revoke_workspace("team")
    assert await there.workspaces() == frozenset()
    assert not [path for path in api.objects if "/roles/" in path or "/rolebindings/" in path]
    await there.revoke_workspace("team")  # twice is once


async def test_installations_that_share_a_cluster_leave_each_other_alone() -> None:
    api = DictionaryApi()
    one, other = (
        KubernetesLink("east", api, lambda: NOW, installation=name)
        for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    )
    for each in (one, other):
        await each.workspace_kubeconfig(asked("shared"))
    assert await one.workspaces() == await other.workspaces() == frozenset({"team"})
    await one.revoke_workspace("team")
    assert (await one.workspaces(), await other.workspaces()) == (frozenset(), frozenset({"team"}))
    bindings = [path for path in api.objects if path.startswith(f"{RBAC}/namespaces/shared/rolebindings/")]
    assert len(bindings) == 1
    assert api.objects[bindings[0]]["subjects"][0]["namespace"] == "inferplane-ws-bbbbbbbbbbbb-team"


def test_a_long_workspace_name_stays_a_namespace_of_its_own() -> None:
    names = {pages.home_of("w" * 62 + end) for end in ("a", "b")}
    assert len(names) == 2
    assert all(len(name) <= 63 for name in names)
