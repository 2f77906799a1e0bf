"""Workspaces: made, changed, listed, deleted. What is in one is deleted only when asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from inferplane.domain.access import Caller, Verb
from inferplane.domain.endpoint import InferenceEndpoint, public_state
from inferplane.domain.errors import Conflict, NotFound, Problem, QuotaExceeded, StaleVersion
from inferplane.domain.gpu_request import GpuRequest
from inferplane.domain.names import check_name
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.services import endpoints, gpu_requests
from inferplane.services.context import Platform
from inferplane.services.findings import Findings, check_optional_text
from inferplane.services.idempotency import Ticket, once, recall, remember
from inferplane.services.trail import difference, entry, facts
from inferplane.store.sql import Change, Tx

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
        workspace = Workspace(
            name=draft.name,
            clusters=_unique(draft.clusters or ()),
            created_at=now,
            namespaces=_unique(draft.namespaces or ()),
            username=(draft.username or "").strip(),
            email=(draft.email or "").strip(),
        )
        await tx.add_workspace(workspace)
        await remember(tx, caller, ticket, draft.name, now)
        await tx.append_event(
            entry(
                now,
                caller,
                "WorkspaceCreated",
                f"workspace {draft.name} was made",
                workspace=draft.name,
                after=facts(workspace),
            )
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
        asking = [each for each in await _live_requests(tx, draft.name) if _cluster_of(each) in lost]
        if stranded or asking:
            raise _in_the_way(draft.name, stranded, asking, "Delete them first, or keep their clusters.")
        await tx.update_workspace(wanted)
        before, after = difference(present, wanted)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "WorkspaceChanged",
                f"workspace {draft.name} was changed",
                workspace=draft.name,
                before=before,
                after=after,
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

    With endpoints or GPRs in it: Conflict that lists them, unless `force`, which undoes them first and
    waits until they are gone (Conflict if that takes longer than `force_delete_wait_seconds`; asking
    again goes on where it was). Raises NotFound.
    """
    caller.require(Verb.MANAGE_WORKSPACES)
    async with platform.store.read() as tx:
        await tx.get_workspace(name)
        active = await tx.list_endpoints(name)
        asking = await _live_requests(tx, name)
    if (active or asking) and not force:
        raise _in_the_way(name, active, asking, "Delete them first, or repeat with force: true.")
    for endpoint in active:
        await endpoints.request_deletion(platform, caller, endpoint.uid)
    alive = {endpoint.uid for endpoint in active}
    for request in asking:
        if request.endpoint_uid not in alive:  # those of endpoints are undone as part of them
            await _release(platform, caller, request.id)
    if active or asking:
        await _until_empty(platform, name)
    try:
        await _delete_empty(platform, caller, name)
    finally:  # however it ended: a commit of which the answer was lost is one too
        platform.keys.forget()


async def _delete_empty(platform: Platform, caller: Caller, name: str) -> None:
    """Delete what has nothing active in it (any more), and its keys. Raises NotFound, Conflict."""
    async with platform.store.transaction() as tx:
        present = await tx.get_workspace(name)
        left, held = await tx.list_endpoints(name), await _live_requests(tx, name)
        if left or held:
            raise _in_the_way(name, left, held, "They are being undone; repeat the request in a moment.")
        for key in await tx.list_api_keys(name):
            await tx.delete_api_key(key.id)  # or it would open a later workspace of the same name
        await tx.revoke_endpoint_keys_of(name, platform.clock())
        await tx.delete_usage(name)
        await tx.delete_workspace(name)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "WorkspaceDeleted",
                f"workspace {name} was deleted",
                workspace=name,
                before=facts(present),
            )
        )


async def _until_empty(platform: Platform, name: str) -> None:
    """Wait until the workspace's last endpoint and GPR are gone, woken by the store; give up in time."""
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
                    if not await tx.list_endpoints(name, limit=1) and not await _live_requests(tx, name):
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


def _in_the_way(
    name: str, active: list[InferenceEndpoint], asking: list[GpuRequest], next_action: str
) -> Conflict:
    what = []
    if active:
        what.append(f"active endpoints: {_names([each.name for each in active])}")
    if asking:
        what.append(f"GPRs that have not ended: {_names([each.name for each in asking])}")
    details = [
        Problem(
            "endpoint",
            "EndpointActive",
            f"{each.name} on {each.cluster} is {public_state(each).status.value}",
        )
        for each in active[:LISTED_MAX]
    ]
    details += [
        Problem("gpr", "GprActive", f"{each.name} ({each.id}) is {each.status.value}")
        for each in asking[:LISTED_MAX]
    ]
    return Conflict(
        f"workspace {name} has {' and '.join(what)}",
        reason="WorkspaceNotEmpty",
        field="workspaceName",
        next_action=next_action,
        details=tuple(details),
    )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more


async def _live_requests(tx: Tx, name: str) -> list[GpuRequest]:
    return await tx.list_gpu_requests(workspace=name, live_only=True)


def _cluster_of(request: GpuRequest) -> str:
    """The cluster that a request holds GPUs of, or the only one it would go to."""
    return request.grant.cluster if request.grant is not None else request.selection.cluster_name


async def _release(platform: Platform, caller: Caller, gpr_id: str) -> None:
    """End one request as its state allows; the admission controller may be faster, so it is tried again."""
    for _ in range(gpu_requests.UPDATE_ATTEMPTS_MAX):
        try:
            async with platform.store.transaction() as tx:
                await gpu_requests.release(tx, platform, caller, await tx.get_gpu_request(gpr_id))
        except StaleVersion:
            continue
        except NotFound:
            return
        else:
            return
    raise gpu_requests.too_busy()


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
