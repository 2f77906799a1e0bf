"""Clusters of Kubernetes over the API: registered, changed, looked at, forgotten; and a workspace's way in.

What a real API server answers is another matter (`tests/engines/kserve`); here it says what a test tells it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from api_world import Client, World
from inferplane.domain.cluster import ClusterReport
from inferplane.domain.inventory import Node
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Cluster
from inferplane.engines.clusters import WorkspaceAccess
from inferplane.engines.port import EngineError

CLUSTER = "/api/v1/cluster"
LIST = f"{CLUSTER}/list"
CHECK = f"{CLUSTER}/check"
ENDPOINT = "/api/v1/inference-endpoint"
KUBE_CONFIG = "/api/v1/slice-workspace/kube-config"
SECRET = "hunter2hunter2"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def kubeconfig(**user: Any) -> str:
    return yaml.safe_dump(
        {
            "current-context": "admin",
            "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}}],
            "users": [{"name": "u", "user": user or {"token": SECRET}}],
            "contexts": [{"name": "admin", "context": {"cluster": "c", "user": "u"}}],
        }
    )


@dataclass
class ScriptedLink:
    """A cluster that answers as a test says."""

    report: ClusterReport = field(
        default_factory=lambda: ClusterReport(
            NOW,
            reachable=True,
            since=NOW,
            server="https://192.0.2.1:6443",
            version="v1.36.2",
            kserve_version="v0.20.1",
            kserve_mode="Standard",
            checks=(Check("api", ok=True, reason=None, message="Kubernetes v1.36.2"),),
        )
    )
    failure: EngineError | None = None
    asked: list[WorkspaceAccess] = field(default_factory=list)

    async def look(self, *, thorough: bool = True) -> ClusterReport:
        return self.report

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        return (), ""

    async def workspace_kubeconfig(self, access: WorkspaceAccess) -> str:
        self.asked.append(access)
        if self.failure is not None:
            raise self.failure
        return "kind: Config\n"

    async def workspaces(self) -> frozenset[str]:
        return frozenset()

    async def revoke_workspace(self, workspace: str) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass
class ScriptedLinks:
    """Every cluster is the one above. What was tried out, and what was said to have changed, is kept."""

    link: ScriptedLink = field(default_factory=ScriptedLink)
    tried: list[tuple[Cluster, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None

    def of(self, cluster: str) -> ScriptedLink | None:
        return None if cluster.startswith("unconnected") else self.link

    async def try_out(self, cluster: Cluster, kubeconfig: str) -> ClusterReport:
        self.tried.append((cluster, kubeconfig))
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.link.report

    def changed(self, cluster: str) -> None:
        self.told.append(cluster)


@dataclass
class ClusterWorld:
    world: World
    links: ScriptedLinks
    owner: Client

    def register(self, **more: Any) -> str:
        name = self.world.name("k")
        body = {"name": name, "engine": "kserve", "kubeconfig": kubeconfig(), **more}
        assert self.owner("POST", CLUSTER, body).data["name"] == name
        return name

    def item(self, name: str, client: Client | None = None) -> dict[str, Any]:
        items = (client or self.owner)("GET", LIST).data["items"]
        [found] = [each for each in items if each["name"] == name]
        return dict(found)

    def kubeconfig_of(self, name: str) -> str:
        async def read() -> str:
            async with self.world.store.read() as tx:
                return await tx.cluster_kubeconfig(name)

        return self.world.do(read())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterWorld]:
    world = World(tmp_path_factory.mktemp("clusters"))
    links = ScriptedLinks()
    world.links = links
    with world:
        yield ClusterWorld(world, links, world.owner)


@pytest.fixture
def k8s(whole: ClusterWorld) -> ClusterWorld:
    whole.links.link = ScriptedLink()
    whole.links.tried.clear()
    whole.links.told.clear()
    whole.links.meanwhile = None
    return whole


def test_a_cluster_is_registered_and_seen(k8s: ClusterWorld) -> None:
    name = k8s.world.name("k")
    body = {
        "name": name,
        "engine": "kserve",
        "kubeconfig": kubeconfig(),
        "domain": "models.example.com",
        "ingressAddress": "192.0.2.10:8080",
        "drift": "leave",
    }
    dry = k8s.owner("POST", f"{CLUSTER}?dryRun=true", body).data
    assert (dry["name"], dry["report"]["version"]) == (name, "v1.36.2")
    assert name not in [each["name"] for each in k8s.owner("GET", LIST).data["items"]]
    data = k8s.owner("POST", CLUSTER, body).data
    assert data["report"]["checks"] == [
        {"check": "api", "ok": True, "reason": "", "message": "Kubernetes v1.36.2", "nextAction": ""}
    ]
    assert k8s.links.told == [name]
    item = k8s.item(name)
    assert (item["reachable"], item["message"]) == (True, "")
    assert item["engineVersion"] == "Kubernetes v1.36.2, KServe v0.20.1 (Standard)"
    assert (item["domain"], item["ingressAddress"], item["drift"]) == (
        "models.example.com",
        "192.0.2.10:8080",
        "leave",
    )
    assert item["connection"] == "a kubeconfig in the store, context admin"
    assert k8s.kubeconfig_of(name) == kubeconfig()
    k8s.owner("POST", CLUSTER, body).is_error(409, "ALREADY_EXISTS", "ClusterExists")


def test_no_secret_is_ever_shown(k8s: ClusterWorld) -> None:
    name = k8s.register()
    k8s.owner("PUT", CLUSTER, {"name": name, "kubeconfig": kubeconfig(token=SECRET + "2")}).ok()
    broken = k8s.owner("POST", CLUSTER, {"name": "x", "engine": "kserve", "kubeconfig": f"[{SECRET}"})
    lean = k8s.owner(
        "POST",
        CLUSTER,
        {"name": "x", "engine": "kserve", "kubeconfig": kubeconfig(exec={"command": SECRET})},
    )
    lean.is_error(422, "INVALID", "KubeconfigRunsProgram")
    for reply in (
        broken,
        lean,
        k8s.owner("GET", LIST),
        k8s.owner("POST", CHECK, {"name": name}),
        k8s.owner("GET", "/api/v1/audit"),
    ):
        assert SECRET not in repr(reply.body)
    assert "with another kubeconfig" in repr(k8s.owner("GET", "/api/v1/audit").body)


def test_where_its_credentials_come_from(k8s: ClusterWorld) -> None:
    file = k8s.register(kubeconfig=None, kubeconfigRef="/etc/east.yaml", context="admin")
    assert k8s.item(file)["connection"] == "file /etc/east.yaml, context admin"
    inside = k8s.register(kubeconfig=None, inCluster=True)
    assert k8s.item(inside)["connection"] == "the service account of the platform's pod"
    handed = k8s.register()
    k8s.owner("PUT", CLUSTER, {"name": handed, "inCluster": True}).ok()
    assert k8s.kubeconfig_of(handed) == ""
    assert [each for each, _ in k8s.links.tried][-1].connection == k8s.links.tried[1][0].connection


@pytest.mark.parametrize(
    ("change", "field_", "reason"),
    [
        ({"kubeconfig": None}, "kubeconfig", "Missing"),
        ({"inCluster": True}, "inCluster", "ConnectionAmbiguous"),
        ({"kubeconfig": "no: kubeconfig"}, "kubeconfig", "InvalidKubeconfig"),
        ({"kubeconfig": "x" * 200_000}, "kubeconfig", "InvalidKubeconfig"),
        ({"kubeconfig": "a: !!bool maybe"}, "kubeconfig", "InvalidKubeconfig"),
        ({"kubeconfig": 'a: !!float ""'}, "kubeconfig", "InvalidKubeconfig"),
        ({"context": "other"}, "context", "InvalidKubeconfig"),
        ({"kubeconfig": kubeconfig(tokenFile="/t")}, "kubeconfig", "KubeconfigNamesFile"),
        ({"kubeconfig": None, "kubeconfigRef": "east.yaml"}, "kubeconfigRef", "InvalidPath"),
        ({"ingressAddress": "http://x"}, "ingressAddress", "InvalidIngress"),
        ({"drift": "ignore"}, "drift", "UnknownDrift"),
        ({"name": "No"}, "name", "InvalidName"),
    ],
)
def test_what_cannot_be_meant(k8s: ClusterWorld, change: dict[str, Any], field_: str, reason: str) -> None:
    body = {"name": "k", "engine": "kserve", "kubeconfig": kubeconfig(), **change}
    error = k8s.owner("POST", CLUSTER, body).is_error(422, "INVALID", reason)
    assert error["field"] == field_
    assert k8s.links.tried == []


def test_credentials_that_came_meanwhile_are_not_written_over(k8s: ClusterWorld) -> None:
    name = k8s.register()
    other = kubeconfig(token="of somebody else")

    async def come() -> None:
        async with k8s.world.store.transaction() as tx:
            await tx.put_cluster_kubeconfig(name, other)

    k8s.links.meanwhile = come
    k8s.owner("PUT", CLUSTER, {"name": name, "drift": "leave"}).is_error(409, "CONFLICT", "ChangedMeanwhile")
    assert k8s.kubeconfig_of(name) == other
    k8s.owner("PUT", CLUSTER, {"name": name, "drift": "leave"}).ok()
    assert (k8s.kubeconfig_of(name), k8s.item(name)["drift"]) == (other, "leave")


def test_one_that_does_not_answer_is_refused_unless_forced(k8s: ClusterWorld) -> None:
    check = Check("api", False, ReasonCode.CLUSTER_UNAUTHORIZED, "it says Unauthorized", "Give others.")
    k8s.links.link.report = ClusterReport(
        NOW, reachable=False, since=NOW, message="it says Unauthorized", checks=(check,)
    )
    body = {"name": k8s.world.name("k"), "engine": "kserve", "kubeconfig": kubeconfig()}
    error = k8s.owner("POST", CLUSTER, body).is_error(422, "INVALID", "ClusterUnauthorized")
    assert (error["message"], error["nextAction"]) == (
        "the cluster cannot be used: it says Unauthorized",
        "Give others.",
    )
    name = k8s.register(force=True)
    item = k8s.item(name)
    assert item["reachable"] is False
    assert "not reachable since 2026-01-01 00:00:00Z: it says Unauthorized" in item["message"]
    k8s.owner("PUT", CLUSTER, {"name": name, "domain": "example.com"}).is_error(422, "INVALID")
    k8s.owner("PUT", CLUSTER, {"name": name, "domain": "example.com", "force": True}).ok()
    assert k8s.item(name)["domain"] == "example.com"


def test_a_check_is_kept_with_since_when(k8s: ClusterWorld) -> None:
    name = k8s.register()
    later = datetime(2026, 1, 2, tzinfo=UTC)
    k8s.links.link.report = replace(k8s.links.link.report, at=later, since=later)
    report = k8s.owner("POST", CHECK, {"name": name}).data["report"]
    assert (report["since"], report["checkedAt"]) == ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    k8s.links.link.report = ClusterReport(later, reachable=False, since=later, message="away")
    report = k8s.owner("POST", CHECK, {"name": name}).data["report"]
    assert (report["reachable"], report["since"]) == (False, "2026-01-02T00:00:00Z")
    assert report["version"] == "v1.36.2", "what was known of it is still known"
    k8s.owner("POST", CHECK, {"name": "local"}).is_error(422, "INVALID", "NotKubernetes")
    k8s.owner("POST", CHECK, {"name": "nowhere"}).is_error(404, "NOT_FOUND", "ClusterNotFound")
    k8s.owner("PUT", CLUSTER, {"name": "local", "drift": "leave"}).is_error(422, "INVALID", "NotKubernetes")


def test_what_is_wrong_but_answers_is_listed(k8s: ClusterWorld) -> None:
    check = Check("permissions", False, ReasonCode.CLUSTER_FORBIDDEN, "the credentials may not: get nodes")
    k8s.links.link.report = replace(k8s.links.link.report, checks=(check,))
    item = k8s.item(k8s.register())
    assert (item["reachable"], item["message"]) == (True, "the credentials may not: get nodes")


def test_others_see_less(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    viewer = k8s.world.client("Viewer", team)
    item = k8s.item(name, viewer)
    assert (item["connection"], item["drift"], item["report"]) == ("", "", None)
    assert item["engineVersion"].startswith("Kubernetes")


def test_it_is_forgotten_when_nobody_has_it(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    k8s.owner("DELETE", CLUSTER, {"name": name}).is_error(409, "CONFLICT", "ClusterInUse")
    k8s.owner("DELETE", "/api/v1/slice-workspace", {"workspaceName": team}).ok()
    k8s.owner("DELETE", CLUSTER, {"name": name}).ok()
    assert k8s.kubeconfig_of(name) == ""
    assert name in k8s.links.told


# --- kubeconfigs of workspaces ---------------------------------------------------------------------------


def test_a_workspace_gets_a_kubeconfig(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace("local", name)
    endpoint = k8s.world.create(
        team, clusterName=name, modelSpec={"modelName": "sklearn", "storageURI": "s3://b/m"}
    )
    namespace = k8s.world.stored(team, endpoint).namespace
    for role, may_write in (("Owner", True), ("Editor", True), ("Viewer", False)):
        client = k8s.owner if role == "Owner" else k8s.world.client(role, team)
        assert client("POST", KUBE_CONFIG, {"workspaceName": team}).data == {"kubeConfig": "kind: Config\n"}
        assert k8s.links.link.asked[-1] == WorkspaceAccess(team, (), [namespace], may_write, 8 * 3600)
    [told, *_] = [
        each for each in k8s.owner("GET", "/api/v1/audit").data["items"] if each["kind"] == "KubeConfigMade"
    ]
    assert (told["workspace"], told["data"]["cluster"]) == (team, name)
    stranger = k8s.world.client("Editor", k8s.world.workspace())
    stranger("POST", KUBE_CONFIG, {"workspaceName": team}).is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    k8s.owner("POST", KUBE_CONFIG, {"workspaceName": team, "clusterName": "local"}).is_error(
        422, "INVALID", "NotKubernetes"
    )


def test_a_cluster_that_makes_none(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    for failure, status, key, reason in (
        (EngineError("no answer"), 503, "UNAVAILABLE", "EngineError"),
        (EngineError("may not create", reason="ClusterForbidden"), 403, "FORBIDDEN", "ClusterForbidden"),
    ):
        k8s.links.link.failure = failure
        k8s.owner("POST", KUBE_CONFIG, {"workspaceName": team}).is_error(status, key, reason)
    unconnected = k8s.world.name("unconnected")
    body = {"name": unconnected, "engine": "kserve", "kubeconfig": kubeconfig()}
    k8s.owner("POST", CLUSTER, body).ok()
    other = k8s.world.workspace(unconnected)
    k8s.owner("POST", KUBE_CONFIG, {"workspaceName": other}).is_error(
        503, "UNAVAILABLE", "ClusterUnreachable"
    )


def test_the_cluster_s_own_namespaces_are_nobody_s(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    change = {"workspaceName": team, "namespaces": ["kube-system"]}
    k8s.owner("PUT", "/api/v1/slice-workspace", change).ok()
    k8s.owner("POST", KUBE_CONFIG, {"workspaceName": team}).is_error(409, "CONFLICT", "NamespaceReserved")


# --- what only our gateway can do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "field_"),
    [
        ({"access": "key"}, "access"),
        ({"autoscaling": {"minReplicas": 0, "maxReplicas": 1}}, "autoscaling.minReplicas"),
        ({"limits": {"requestsPerSecond": 5}}, "limits.requestsPerSecond"),
        ({"limits": {"concurrencyMax": 5}}, "limits.concurrencyMax"),
    ],
)
def test_what_a_cluster_s_own_ingress_cannot_do_is_refused(
    k8s: ClusterWorld, asked: dict[str, Any], field_: str
) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    body = {
        "endpointName": "iris",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "s3://b/m"},
    }
    error = k8s.owner("POST", ENDPOINT, {**body, **asked}).is_error(422, "INVALID", "NotOnKubernetes")
    assert error["field"] == field_
    assert "its own ingress" in error["message"]
    assert error["nextAction"]
    checks = k8s.owner("POST", f"{ENDPOINT}?dryRun=true", {**body, **asked}).data["preflight"]
    assert "gateway" in [each["check"] for each in checks if not each["ok"]]
    k8s.owner("POST", ENDPOINT, body).ok()
    change = {"workspace": team, "endpoint": "iris", **asked}
    k8s.owner("PATCH", ENDPOINT, change).is_error(422, "INVALID", "NotOnKubernetes")


@pytest.mark.parametrize("uri", ["models:/iris/1", "file:///models/iris", "/models/iris"])
def test_a_model_that_only_our_machine_knows_is_refused(k8s: ClusterWorld, uri: str) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    model = {"modelName": "sklearn", "storageURI": uri}
    body = {"endpointName": "iris", "workspace": team, "modelSpec": model}
    error = k8s.owner("POST", ENDPOINT, body).is_error(422, "INVALID", "SchemeNotSupported")
    assert "a cluster of Kubernetes cannot fetch" in error["message"]


def test_a_target_that_the_cluster_does_not_scale_by_is_said(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    body = {
        "endpointName": "iris",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "s3://b/m"},
        "autoscaling": {"minReplicas": 1, "maxReplicas": 3, "targetConcurrency": 2},
    }
    (warning,) = k8s.owner("POST", ENDPOINT, body).data["warnings"]
    assert warning.startswith(f"autoscaling.targetConcurrency has no effect on cluster {name}")


def test_a_share_of_requests_is_refused_and_a_plain_update_is_not(k8s: ClusterWorld) -> None:
    name = k8s.register()
    team = k8s.world.workspace(name)
    endpoint = k8s.world.create(team, modelSpec={"modelName": "sklearn", "storageURI": "s3://b/m"})
    k8s.world.run(team, endpoint)
    change = {
        "workspace": team,
        "endpoint": endpoint,
        "modelSpec": {"modelName": "sklearn", "storageURI": "s3://b/m2"},
    }
    canary = {**change, "canary": {"percent": 10}}
    error = k8s.owner("PATCH", ENDPOINT, canary).is_error(422, "INVALID", "NotOnKubernetes")
    assert "pod by pod" in error["nextAction"]
    assert k8s.owner("PATCH", ENDPOINT, change).data["revision"] == 2


# --- what only a cluster can do ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        "spec: {predictor: {sklearn: {storageUri: 's3://b/m'}}, transformer: {containers: [{image: 'a/b:1'}]}}",
        "spec: {predictor: {model: {modelFormat: {name: sklearn}, storage: {key: store, path: m}}}}",
        "spec: {predictor: {workerSpec: {pipelineParallelSize: 2}, huggingface: {storageUri: 's3://b/m'}}}",
    ],
)
def test_a_manifest_may_ask_there_for_what_only_a_cluster_has(k8s: ClusterWorld, raw: str) -> None:
    there, here = k8s.world.workspace(k8s.register()), k8s.world.workspace()
    body = {"endpointName": "chain", "rawModelSpec": raw}
    refused = k8s.owner("POST", ENDPOINT, {**body, "workspace": here}).is_error(422, "INVALID")
    assert "engine kserve only" in refused["message"]
    assert refused["field"].startswith("rawModelSpec.spec.")
    k8s.owner("POST", ENDPOINT, {**body, "workspace": there}).ok()
