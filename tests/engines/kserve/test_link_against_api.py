"""The link over real HTTP against an API server with rights: who lacks some, who is nobody, who is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferplane.domain.cluster import ClusterConnection, ClusterReport
from inferplane.domain.inventory import NodeHealth
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.clusters import WorkspaceAccess
from inferplane.engines.kserve.http_api import ApiError, HttpApi, credentials_for
from inferplane.engines.kserve.link import KubernetesLink
from inferplane.engines.kserve.permissions import CORE, KSERVE, PLATFORM
from kube_api import ADMIN, KubeApi, Rule, User, needs_recordings

pytestmark = needs_recordings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REVIEWS = Rule(("create",), ("authorization.k8s.io",), ("selfsubjectaccessreviews",))
ALLOWED = User(
    "platform",
    "token-of-platform",
    (*(Rule((each.verb,), (each.group,), (each.resource,)) for each in PLATFORM), REVIEWS),
)


@dataclass
class There:
    """A cluster, and a folder for kubeconfigs."""

    api: KubeApi
    folder: Path

    @asynccontextmanager
    async def link(self, user: str = "platform") -> AsyncIterator[KubernetesLink]:
        path = self.api.kubeconfig(self.folder / f"{user}.yaml", user)
        credentials = credentials_for(ClusterConnection(kubeconfig=str(path)), "", {})
        link = KubernetesLink("east", HttpApi(credentials), lambda: NOW)
        try:
            yield link
        finally:
            await link.close()

    async def look(self, user: str = "platform") -> ClusterReport:
        async with self.link(user) as link:
            return await link.look()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@asynccontextmanager
async def cluster(folder: Path, *users: User, **settings: Any) -> AsyncIterator[There]:
    async with KubeApi(users=(ADMIN, ALLOWED, *users), **settings) as api:
        yield There(api, folder)


async def test_the_rights_of_the_list_are_enough(folder: Path) -> None:
    async with cluster(folder) as there:
        there.api.add_nodes("nodes-gpu", copies=2)
        report = await there.look()
        assert report.reachable
        assert report.version == "v1.36.2"
        assert [each.check for each in report.problems] == ["runtimes"]
        [gpus] = [each.message for each in report.checks if each.check == "gpus"]
        assert gpus == "8 on 2 of 2 nodes: NVIDIA-A100-SXM4-80GB"
        async with there.link() as link:
            nodes, problem = await link.nodes()
        assert ([(each.gpu_count, each.health) for each in nodes], problem) == (
            [(4, NodeHealth.HEALTHY)] * 2,
            "",
        )
        refused = [each for each in there.api.requests if each.status == 403]
        assert refused == []


async def test_every_single_right_that_is_missing_is_named(folder: Path) -> None:
    lost = {(KSERVE, "inferenceservices", "create"), (CORE, "pods/log", "get"), (CORE, "nodes", "list")}
    rules = tuple(
        rule for rule in ALLOWED.rules if (rule.groups[0], rule.resources[0], rule.verbs[0]) not in lost
    )
    async with cluster(folder, User("less", "token-of-less", rules)) as there:
        report = await there.look("less")
    [found] = [each for each in report.checks if each.check == "permissions"]
    assert found.reason is ReasonCode.CLUSTER_FORBIDDEN
    for named in ("create inferenceservices.serving.kserve.io", "get pods/log", "list nodes"):
        assert named in found.message
    assert "namespaces" not in found.message


async def test_nobody_and_nowhere(folder: Path) -> None:
    async with cluster(folder) as there:
        path = there.api.kubeconfig(folder / "odd.yaml")
        path.write_text(path.read_text().replace("token-of-admin", "token-of-nobody"))
        credentials = credentials_for(ClusterConnection(kubeconfig=str(path)), "", {})
        link = KubernetesLink("east", HttpApi(credentials), lambda: NOW)
        report = await link.look()
        await link.close()
        assert (report.reachable, report.problems[0].reason) == (False, ReasonCode.CLUSTER_UNAUTHORIZED)
        there.api.faults.away()
        report = await there.look()
        assert (report.reachable, report.problems[0].reason) == (False, ReasonCode.CLUSTER_UNREACHABLE)
        assert "does not answer" in report.message
        await there.api.faults.back()
        assert (await there.look()).reachable


async def test_a_cluster_without_kserve(folder: Path) -> None:
    async with cluster(folder, kserve=False) as there:
        report = await there.look()
    assert [each.reason for each in report.problems] == [ReasonCode.KSERVE_NOT_READY]


async def test_what_a_workspace_s_kubeconfig_opens_and_what_not(folder: Path) -> None:
    async with cluster(folder) as there:
        for name in ("team-data", "other"):
            there.api.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        async with there.link() as link:
            writer, reader = [
                await link.workspace_kubeconfig(
                    WorkspaceAccess("team", ("team-data",), (), may_write=may_write, seconds=3600)
                )
                for may_write in (True, False)
            ]
            assert await link.workspaces() == frozenset({"team"})
            pods = "/api/v1/namespaces/team-data/pods"
            services = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
            made = {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": "own"},
                "spec": {
                    "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/m"}}
                },
            }
            for text, may_write in ((writer, True), (reader, False)):
                api = HttpApi(credentials_for(ClusterConnection(), text, {}))
                assert (await api.call("GET", pods))["items"] == []
                assert await _status(api, "GET", "/api/v1/namespaces/other/pods") == 403
                assert await _status(api, "GET", "/api/v1/pods") == 403
                assert await _status(api, "GET", "/api/v1/namespaces/team-data/secrets") == 403
                assert await _status(api, "POST", services.format("other"), made) == 403
                expected = 0 if may_write else 403
                assert await _status(api, "POST", services.format("team-data"), made) == expected
                await api.close()
            await link.revoke_workspace("team")
            assert await link.workspaces() == frozenset()
            api = HttpApi(credentials_for(ClusterConnection(), writer, {}))
            assert await _status(api, "GET", pods) in {401, 403}
            await api.close()
    assert yaml.safe_load(writer)["clusters"][0]["cluster"]["server"].startswith("http://127.0.0.1")


async def test_a_platform_that_may_not_make_kubeconfigs_says_so(folder: Path) -> None:
    rules = tuple(rule for rule in ALLOWED.rules if rule.resources[0] != "serviceaccounts/token")
    async with (
        cluster(folder, User("less", "token-of-less", rules)) as there,
        there.link("less") as link,
    ):
        with pytest.raises(ApiError) as caught:
            await link.workspace_kubeconfig(WorkspaceAccess("team", (), (), may_write=False, seconds=3600))
    assert caught.value.reason == ReasonCode.CLUSTER_FORBIDDEN
    assert "serviceaccounts/token" in caught.value.message


async def _status(api: HttpApi, method: str, path: str, body: dict[str, Any] | None = None) -> int:
    """0 for success."""
    try:
        await api.call(method, path, body)
    except ApiError as error:
        return error.status
    return 0
