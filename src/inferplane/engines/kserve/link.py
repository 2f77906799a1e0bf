"""The link to one cluster: what is asked of it beside running endpoints. A thin shell around `checks`, `nodes`
and `access`, which decide; here they get their answers.

A thorough look asks for every permission one by one, so it is made when somebody asks, when the cluster was away,
and now and then. In between a look is one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import yaml

from inferplane.domain.cluster import ClusterReport
from inferplane.domain.errors import Unavailable
from inferplane.domain.inventory import Node
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.engines.clusters import LOOK_SECONDS_MAX, WorkspaceAccess
from inferplane.engines.kserve import access as pages
from inferplane.engines.kserve import checks
from inferplane.engines.kserve.nodes import nodes_of
from inferplane.engines.kserve.permissions import KSERVE, PLATFORM, RBAC, Permission
from inferplane.engines.port import Clock, EngineError

AT_ONCE_MAX = 8
"""Requests in flight of one look."""

Raw = Mapping[str, Any]


class Api(Protocol):
    """What is needed of a cluster's API server. Errors are EngineErrors with a `status` (0: no answer)."""

    @property
    def server(self) -> str:
        """Its address."""

    @property
    def authority(self) -> bytes:
        """The certificates (PEM) by which it is known; b"" for the usual ones."""

    async def call(self, method: str, path: str, body: Raw | None = None, **query: str) -> dict[str, Any]:
        """One request. Raises ApiError."""

    async def close(self) -> None:
        """Give back connections."""


class KubernetesLink:
    """A `ClusterLink` over an API server. `ingress_address` is what the cluster was registered with; `installation`
    tells what is ours from what another installation has on the same cluster.
    """

    def __init__(
        self, cluster: str, api: Api, clock: Clock, *, ingress_address: str = "", installation: str = ""
    ) -> None:
        self._cluster = cluster
        self._api = api
        self._clock = clock
        self._ingress_address = ingress_address
        self._installation = installation
        self._last: ClusterReport | None = None

    async def look(self, *, thorough: bool = True) -> ClusterReport:
        """What is found now. Without `thorough`, one request, and for the rest what was found last."""
        now = self._clock()
        try:
            async with asyncio.timeout(LOOK_SECONDS_MAX):
                version = await self._version()
                last = self._last
                if not thorough and last is not None and last.reachable:
                    return replace(last, at=now, version=version)
                report = await self._look(version)
        except TimeoutError:
            return self._away(Unavailable(f"it did not answer within {LOOK_SECONDS_MAX:g} seconds"))
        except EngineError as error:
            return self._away(error)
        self._last = report
        return report

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """The nodes with GPUs; and why they cannot be told."""
        try:
            listed = await self._items("/api/v1/nodes")
        except EngineError as error:
            return (), f"cluster {self._cluster} does not tell its nodes: {error.message}"
        return nodes_of(self._cluster, listed), ""

    async def workspace_kubeconfig(self, access: WorkspaceAccess) -> str:
        """A kubeconfig with an expiring token and only that workspace's rights. Raises EngineError."""
        workspace, ours, may_write = access.workspace, self._installation, access.may_write
        home = pages.home_of(workspace, ours)
        await self._apply(f"/api/v1/namespaces/{home}", pages.home(workspace, ours))
        account = pages.account_of(workspace, ours, may_write=may_write)
        accounts = f"/api/v1/namespaces/{home}/serviceaccounts"
        await self._apply(f"{accounts}/{account}", pages.account(workspace, ours, may_write=may_write))
        there = [home]
        there += [each for each in access.namespaces if await self._has_namespace(each, workspace, make=True)]
        there += [each for each in access.of_endpoints if await self._has_namespace(each, workspace)]
        there = list(dict.fromkeys(there))
        for name in there:
            role, binding = pages.grants(workspace, name, ours, may_write=may_write)
            place = f"/apis/{RBAC}/v1/namespaces/{name}"
            await self._apply(f"{place}/roles/{account}", role)
            await self._apply(f"{place}/rolebindings/{account}", binding)
        await self._forget_grants(workspace, but=frozenset(there))
        answer = await self._api.call(
            "POST", f"{accounts}/{account}/token", pages.token_request(access.seconds)
        )
        status = answer.get("status")
        token = status.get("token") if isinstance(status, Mapping) else None
        if not isinstance(token, str) or not token:
            raise EngineError(f"cluster {self._cluster} answered without a token")
        config = pages.kubeconfig(
            self._cluster,
            workspace,
            server=self._api.server,
            authority=self._api.authority,
            token=token,
            namespace=there[-1] if len(there) == 1 else there[1],
        )
        return yaml.safe_dump(config, sort_keys=False)

    async def workspaces(self) -> frozenset[str]:
        """The workspaces that have a way into this cluster. Raises EngineError."""
        homes = await self._items("/api/v1/namespaces", labelSelector=pages.ACCESS_LABEL)
        return frozenset(name for each in homes if (name := pages.workspace_of(each, self._installation)))

    async def revoke_workspace(self, workspace: str) -> None:
        """End every token of a workspace, and take its rights away. Raises EngineError."""
        home = pages.home_of(workspace, self._installation)
        await self._forget_grants(workspace, but=frozenset())
        await self._delete(f"/api/v1/namespaces/{home}")

    async def close(self) -> None:
        """Give back connections."""
        await self._api.close()

    # --- looking --------------------------------------------------------------------------------------

    async def _version(self) -> str:
        return str((await self._api.call("GET", "/version")).get("gitVersion") or "")

    async def _look(self, version: str) -> ClusterReport:
        """Raises EngineError where the API server does not answer, or does not know the credentials."""
        allowed = await self._permissions()
        resources = await self._maybe(f"/apis/{KSERVE}/v1beta1")
        settings = checks.settings_of(await self._settings())
        controller = None
        if settings.namespace:
            controller = await self._maybe(
                f"/apis/apps/v1/namespaces/{settings.namespace}/deployments/{checks.CONTROLLER}"
            )
        kserve = checks.kserve_check(resources, settings, controller)
        runtimes: tuple[str, ...] = ()
        found = [
            Check("api", ok=True, reason=None, message=f"Kubernetes {version} at {self._api.server}"),
            checks.permissions_check(allowed),
            kserve,
        ]
        if resources is not None and kserve.ok:
            listed = await self._maybe_items(f"/apis/{KSERVE}/v1alpha1/clusterservingruntimes")
            if listed is not None:
                runtimes = checks.runtimes_of(listed)
                found.append(checks.runtimes_check(runtimes))
            found.append(checks.ingress_check(settings, self._ingress_address))
        nodes = await self._maybe_items("/api/v1/nodes")
        if nodes is not None:
            found.append(checks.gpus_check(nodes))
        now = self._clock()
        return ClusterReport(
            at=now,
            reachable=True,
            since=now,
            server=self._api.server,
            version=version,
            kserve_version=settings.version,
            kserve_mode=settings.mode,
            runtimes=runtimes,
            checks=tuple(found),
        )

    async def _permissions(self) -> dict[Permission, bool]:
        """Each permission of the platform, asked for; a few at once."""
        gate = asyncio.Semaphore(AT_ONCE_MAX)

        async def ask(permission: Permission) -> bool:
            resource, _, subresource = permission.resource.partition("/")
            attributes = {"verb": permission.verb, "group": permission.group, "resource": resource}
            if subresource:
                attributes["subresource"] = subresource
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            async with gate:
                path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
                answer = await self._api.call("POST", path, body)
            status = answer.get("status")
            return isinstance(status, Mapping) and status.get("allowed") is True

        answers = await asyncio.gather(*(ask(each) for each in PLATFORM))
        return dict(zip(PLATFORM, answers, strict=True))

    async def _settings(self) -> Raw | None:
        for namespace in checks.CONFIG_NAMESPACES:
            found = await self._maybe(f"/api/v1/namespaces/{namespace}/configmaps/{checks.CONFIG_NAME}")
            if found is not None:
                return found
        return None

    def _away(self, error: EngineError | Unavailable) -> ClusterReport:
        """What is said of a cluster that does not answer, or to which the credentials mean nothing."""
        status = _status_of(error)
        if status == 401:
            reason = ReasonCode.CLUSTER_UNAUTHORIZED
        elif status == 403:
            reason = ReasonCode.CLUSTER_FORBIDDEN
        else:
            reason = ReasonCode.CLUSTER_UNREACHABLE
        now = self._clock()
        said = f"{self._api.server}: {error.message}"
        action = (
            reason_of(reason).next_action
            if status
            else "Check the server's address in the kubeconfig, and that this machine reaches it."
        )
        check = Check("api", ok=False, reason=reason, message=said, next_action=action)
        return ClusterReport(
            now, reachable=False, since=now, message=said, server=self._api.server, checks=(check,)
        )

    # --- asking ---------------------------------------------------------------------------------------

    async def _maybe(self, path: str) -> Raw | None:
        """One object; None where there is none, or where it may not be seen (which is said elsewhere)."""
        try:
            return await self._api.call("GET", path)
        except EngineError as error:
            if _status_of(error) in {403, 404}:
                return None
            raise

    async def _maybe_items(self, path: str) -> list[Raw] | None:
        try:
            return await self._items(path)
        except EngineError as error:
            if _status_of(error) in {403, 404}:
                return None
            raise

    async def _items(self, path: str, **query: str) -> list[Raw]:
        """Every object of a list, page by page."""
        found: list[Raw] = []
        following = ""
        while True:
            more = {"continue": following} if following else {}
            page = await self._api.call("GET", path, None, limit="500", **query, **more)
            items = page.get("items")
            found += [each for each in items if isinstance(each, Mapping)] if isinstance(items, list) else []
            metadata = page.get("metadata")
            following = str(metadata.get("continue") or "") if isinstance(metadata, Mapping) else ""
            if not following:
                return found

    async def _apply(self, path: str, manifest: Raw) -> None:
        await self._api.call("PATCH", path, manifest, fieldManager="inferplane", force="true")

    async def _delete(self, path: str) -> None:
        try:
            await self._api.call("DELETE", path)
        except EngineError as error:
            if _status_of(error) != 404:
                raise

    async def _has_namespace(self, name: str, workspace: str, *, make: bool = False) -> bool:
        """Whether it is there to be given rights in; it is made, where it may be."""
        found = await self._maybe(f"/api/v1/namespaces/{name}")
        if found is None and make:
            await self._apply(f"/api/v1/namespaces/{name}", pages.namespace(name, workspace))
            return True
        metadata = found.get("metadata") if found is not None else None
        return isinstance(metadata, Mapping) and not metadata.get("deletionTimestamp")

    async def _forget_grants(self, workspace: str, *, but: frozenset[str]) -> None:
        """Take the workspace's rights away in all namespaces `but` those."""
        for kind in ("rolebindings", "roles"):
            listed = await self._items(
                f"/apis/{RBAC}/v1/{kind}", labelSelector=f"{pages.ACCESS_LABEL}={workspace}"
            )
            for each in listed:
                metadata = each.get("metadata")
                name = metadata.get("name") if isinstance(metadata, Mapping) else None
                where = metadata.get("namespace") if isinstance(metadata, Mapping) else None
                if (
                    name
                    and where
                    and where not in but
                    and pages.workspace_of(each, self._installation) == workspace
                ):
                    await self._delete(f"/apis/{RBAC}/v1/namespaces/{where}/{kind}/{name}")


def _status_of(error: Exception) -> int:
    """The HTTP status that the API server answered with; 0 where it did not answer."""
    status = getattr(error, "status", 0)
    return status if isinstance(status, int) else 0
