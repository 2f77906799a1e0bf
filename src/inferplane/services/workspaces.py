"""Workspaces: made, changed, listed, deleted. What is in one is deleted only when asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from inferplane.domain.access import Caller, Verb
from inferplane.domain.endpoint import InferenceEndpoint, public_state
from inferplane.domain.errors import Conflict, Invalid, Problem, QuotaExceeded
from inferplane.domain.events import Event
from inferplane.domain.names import check_name
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.services import endpoints
from inferplane.services.context import Platform
from inferplane.services.findings import Findings, check_optional_text
from inferplane.services.idempotency import Ticket, once, recall, remember
from inferplane.store.sql import Change

CLUSTERS_MAX = 50
NAMESPACES_MAX = 200
LISTED_MAX = 50
"""How many of the things in the way a refusal names."""


@dataclass(frozen=True, slots=True)
class WorkspaceDraft:
    """What is asked of a workspace; in a change, None leaves a field as it is."""

    name: str
    clusters: tuple[str, ...] | None = None
    namespaces: tuple[str, ...] | None = None
    username: str | None = None
    email: str | None = None


async def create(
    platform: Platform, caller: Caller, draft: WorkspaceDraft, ticket: Ticket | None = None
) -> str:
    """Make a workspace; returns its name. Raises Invalid with all details, AlreadyExists."""
    caller.require(Verb.MANAGE_WORKSPACES)
    return await once(ticket, lambda: _create(platform, caller, draft, ticket))


async def _create(platform: Platform, caller: Caller, draft: WorkspaceDraft, ticket: Ticket | None) -> str:
    now = platform.clock()
    async with platform.store.transaction() as tx:
        if (answer := await recall(tx, caller, ticket)) is not None:
            return answer
        _check(draft, await tx.list_clusters(), platform.limits.text_characters_max)
        if len(await tx.list_workspaces()) >= platform.limits.workspaces_max:
            raise QuotaExceeded(
                f"there are {platform.limits.workspaces_max} workspaces already", reason="TooManyWorkspaces"
            )
        await tx.add_workspace(
            Workspace(
                name=draft.name,
                clusters=_unique(draft.clusters or ()),
                created_at=now,
                namespaces=_unique(draft.namespaces or ()),
                username=(draft.username or "").strip(),
                email=(draft.email or "").strip(),
            )
        )
        await remember(tx, caller, ticket, draft.name, now)
        await tx.append_event(
            Event(now, "WorkspaceCreated", f"workspace {draft.name} was made", caller.key_name, draft.name)
        )
    return draft.name


async def update(platform: Platform, caller: Caller, draft: WorkspaceDraft) -> str:
    """Replace clusters and namespaces (and owner, where given). Raises NotFound, Invalid, Conflict.

    A cluster on which the workspace still has endpoints cannot be taken away.
    """
    caller.require(Verb.MANAGE_WORKSPACES)
    async with platform.store.transaction() as tx:
        present = await tx.get_workspace(draft.name)
        wanted = replace(
            present,
            clusters=present.clusters if draft.clusters is None else _unique(draft.clusters),
            namespaces=present.namespaces if draft.namespaces is None else _unique(draft.namespaces),
            username=present.username if draft.username is None else draft.username.strip(),
            email=present.email if draft.email is None else draft.email.strip(),
        )
        complete = WorkspaceDraft(
            wanted.name, wanted.clusters, wanted.namespaces, wanted.username, wanted.email
        )
        _check(complete, await tx.list_clusters(), platform.limits.text_characters_max)
        lost = set(present.clusters) - set(wanted.clusters)
        stranded = [each for each in await tx.list_endpoints(draft.name) if each.cluster in lost]
        if stranded:
            raise _in_the_way(draft.name, stranded, "Delete them first, or keep their clusters.")
        await tx.update_workspace(wanted)
        await tx.append_event(
            Event(
                platform.clock(),
                "WorkspaceChanged",
                f"workspace {draft.name} was changed",
                caller.key_name,
                draft.name,
            )
        )
    return draft.name


async def list_workspaces(platform: Platform, caller: Caller) -> list[Workspace]:
    """All for an Owner, one's own otherwise; by name."""
    caller.require(Verb.READ_WORKSPACE)
    async with platform.store.read() as tx:
        return [each for each in await tx.list_workspaces() if caller.may_see(each.name)]


async def delete(platform: Platform, caller: Caller, name: str, *, force: bool) -> None:
    """Delete a workspace, and with it the keys that belong to it.

    With endpoints in it: Conflict that lists them, unless `force`, which deletes them first and waits
    until they are undone (Conflict if that takes longer than `force_delete_wait_seconds`; asking
    again goes on where it was). Raises NotFound.
    """
    caller.require(Verb.MANAGE_WORKSPACES)
    async with platform.store.read() as tx:
        await tx.get_workspace(name)
        active = await tx.list_endpoints(name)
    if active and not force:
        raise _in_the_way(name, active, "Delete them first, or repeat with force: true.")
    if active:
        for endpoint in active:
            await endpoints.request_deletion(platform, caller, endpoint.uid)
        await _until_empty(platform, name)
    try:
        async with platform.store.transaction() as tx:
            await tx.get_workspace(name)
            left = await tx.list_endpoints(name)
            if left:
                raise _in_the_way(name, left, "They are being undone; repeat the request in a moment.")
            for key in await tx.list_api_keys(name):
                await tx.delete_api_key(key.id)  # or it would open a later workspace of the same name
            await tx.delete_workspace(name)
            await tx.append_event(
                Event(
                    platform.clock(),
                    "WorkspaceDeleted",
                    f"workspace {name} was deleted",
                    caller.key_name,
                    name,
                )
            )
    finally:  # however it ended: a commit of which the answer was lost is one too
        platform.keys.forget()


async def kube_config(platform: Platform, caller: Caller, name: str, cluster: str = "") -> str:
    """A kubeconfig for the workspace on one of its clusters.

    Raises Invalid (NotKubernetes) for a cluster that is no Kubernetes, as every one of engine `local`.
    """
    caller.require(Verb.READ_WORKSPACE, name)
    async with platform.store.read() as tx:
        workspace = await tx.get_workspace(name)
        clusters = {each.name: each for each in await tx.list_clusters()}
    chosen = cluster or next(iter(workspace.clusters), "")
    if chosen not in workspace.clusters or chosen not in clusters:
        raise Invalid(
            f"workspace {name} does not use a cluster named “{chosen[:80]}”",
            reason="ClusterNotInWorkspace",
            field="clusterName",
            next_action=f"Its clusters are: {', '.join(workspace.clusters)}.",
        )
    raise Invalid(
        f"cluster {chosen} is no Kubernetes cluster (its engine is {clusters[chosen].engine}), so there is no kubeconfig",
        reason="NotKubernetes",
        field="clusterName",
        next_action="Use this API or the command line; nothing on this cluster needs a kubeconfig.",
    )


async def _until_empty(platform: Platform, name: str) -> None:
    """Wait until the last endpoint of the workspace is gone, woken by the store; give up in time."""
    changed = asyncio.Event()

    def on_change(change: Change) -> None:
        if change.workspace == name:
            changed.set()

    unsubscribe = platform.store.subscribe(on_change)
    try:
        async with asyncio.timeout(platform.limits.force_delete_wait_seconds):
            while True:
                changed.clear()
                async with platform.store.read() as tx:
                    if not await tx.list_endpoints(name, limit=1):
                        return
                await changed.wait()
    except TimeoutError:
        return  # the caller looks again and says what is left
    finally:
        unsubscribe()


def _check(draft: WorkspaceDraft, clusters: list[Cluster], characters_max: int) -> None:
    findings = Findings()
    findings.check(check_name, draft.name, "workspaceName")
    known = [cluster.name for cluster in clusters]
    if not draft.clusters:
        findings.add(
            "a workspace needs at least one cluster",
            field="clusters",
            reason="Missing",
            next_action=f"Registered clusters are: {', '.join(known)}.",
        )
    wanted = draft.clusters or ()
    if len(wanted) > CLUSTERS_MAX:
        findings.add(f"at most {CLUSTERS_MAX} clusters", field="clusters", reason="TooMany")
    for index, cluster in enumerate(wanted[:CLUSTERS_MAX]):
        if cluster not in known:
            findings.add(
                f"cluster “{cluster[:80]}” is not registered",
                field=f"clusters[{index}]",
                reason="ClusterNotFound",
                next_action=f"Registered clusters are: {', '.join(known)}.",
            )
    namespaces = draft.namespaces or ()
    if len(namespaces) > NAMESPACES_MAX:
        findings.add(f"at most {NAMESPACES_MAX} namespaces", field="namespaces", reason="TooMany")
    for index, namespace in enumerate(namespaces[:NAMESPACES_MAX]):
        findings.check(check_name, namespace, f"namespaces[{index}]")
    findings.check(check_optional_text, draft.username or "", "username", characters_max)
    findings.check(check_optional_text, draft.email or "", "email", characters_max)
    findings.raise_any()


def _in_the_way(name: str, active: list[InferenceEndpoint], next_action: str) -> Conflict:
    names = ", ".join(each.name for each in active[:LISTED_MAX])
    more = f" and {len(active) - LISTED_MAX} more" if len(active) > LISTED_MAX else ""
    return Conflict(
        f"workspace {name} has active endpoints: {names}{more}",
        reason="WorkspaceNotEmpty",
        field="workspaceName",
        next_action=next_action,
        details=tuple(
            Problem(
                "endpoint",
                "EndpointActive",
                f"{each.name} on {each.cluster} is {public_state(each).status.value}",
            )
            for each in active[:LISTED_MAX]
        ),
    )


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
