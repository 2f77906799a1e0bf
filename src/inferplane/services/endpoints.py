"""Inference endpoints: what users may do with them. One function a verb, one transaction each.

Services write the spec and nothing else: what an endpoint *does* is the controllers' to say. Every
change appends its event in the same transaction, which is also what wakes the controllers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from inferplane.domain.access import Caller, Role, Verb
from inferplane.domain.endpoint import EndpointSpec, GpuSpec, InferenceEndpoint, PublicStatus, public_state
from inferplane.domain.endpoint_access import Access
from inferplane.domain.errors import (
    AlreadyExists,
    Conflict,
    Invalid,
    NotFound,
    QuotaExceeded,
    StaleVersion,
    Unavailable,
)
from inferplane.domain.events import SCALING_KINDS, Event
from inferplane.domain.gpu_request import GpuRequest
from inferplane.domain.names import NAMESPACE_SUFFIX_CHARACTERS, check_name, namespace_for
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.rollout import Rollout
from inferplane.domain.runtime import LOCAL_ENGINE, select_runtime
from inferplane.domain.storage_uri import parse_storage_uri, redacted, require_in_cluster, require_local
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.engines.port import EngineError, LogLine, Target
from inferplane.services import endpoint_gpus
from inferplane.services.context import Platform
from inferplane.services.endpoint_drafts import EndpointDraft, Wish, settled, understand
from inferplane.services.endpoint_on_kubernetes import KSERVE, check_on_kubernetes, warnings_on
from inferplane.services.idempotency import IDEMPOTENCY_KEY_HEADER, Ticket, once, recall, remember
from inferplane.services.trail import difference, entry, facts
from inferplane.store.sql import Tx

UID_DIGITS = 12
UPDATE_ATTEMPTS_MAX = 8
COUNTED_ALONE = 50
"""With less room than this in the installation, those who create endpoints count one after the other."""
"""Compare-and-set lost to a controller's status write: read again, so many times."""
DECISIONS_SHOWN_MAX = 10
"""Of the decisions about the number of replicas; `list_events` has all."""

T = TypeVar("T")
Also = Callable[[Tx, InferenceEndpoint], Awaitable[bool]]


# Create


@dataclass(frozen=True, slots=True)
class Created:
    """An endpoint that was accepted; `warnings` say what of the request has no effect here."""

    name: str
    warnings: tuple[str, ...] = ()
    access: Access = Access.OPEN


async def create(
    platform: Platform, caller: Caller, draft: EndpointDraft, ticket: Ticket | None = None
) -> Created:
    """Accept an endpoint. The rest happens by itself.

    Raises Invalid with all details, NotFound for a workspace, AlreadyExists for a taken name,
    Conflict for a reused idempotency key and for one whose endpoint is gone, QuotaExceeded.
    """
    caller.require(Verb.WRITE_ENDPOINT, draft.workspace)
    wish = _understood(platform, draft)
    warnings = list(wish.warnings)
    name = await once(ticket, lambda: _create(platform, caller, draft, wish, ticket, warnings))
    return Created(name, tuple(warnings), wish.spec.access)


async def _create(
    platform: Platform,
    caller: Caller,
    draft: EndpointDraft,
    wish: Wish,
    ticket: Ticket | None,
    warnings: list[str],
) -> str:
    """Returns the name. `warnings` are the wish's, and get what is found on the way."""
    now = platform.clock()
    async with platform.store.read() as tx:
        if (answer := await _answered(tx, caller, draft, ticket)) is not None:
            return answer  # before the clusters are compared, which takes a while
    chosen = await endpoint_gpus.soonest_cluster(platform, draft)
    warnings[:] = [*wish.warnings, chosen.warning] if chosen.warning else wish.warnings
    async with platform.store.transaction() as tx:
        if (answer := await _answered(tx, caller, draft, ticket)) is not None:
            return answer
        await tx.hold_workspace(draft.workspace)  # two at once would both find room for one more
        cluster = await _resolve_cluster(tx, draft, chosen.name)
        warnings[:] = warnings_on(cluster, warnings, wish.spec.scaling)
        gpu = await endpoint_gpus.gpu_spec_for(tx, platform, draft, wish, cluster)
        check_servable(wish, cluster)
        await _check_quota(tx, platform, draft.workspace)
        endpoint = await _with_own_host(tx, _endpoint(platform, caller, draft, wish, cluster, gpu))
        check_on_kubernetes(endpoint.spec, cluster)
        try:
            await tx.insert_endpoint(endpoint, wish.secret)
        except AlreadyExists:
            raise await _taken(tx, endpoint) from None
        await remember(tx, caller, ticket, endpoint.name, now)
        if not endpoint.spec.stopped:
            await endpoint_gpus.ask(tx, platform, caller, endpoint)
        await tx.append_event(
            entry(
                now,
                caller,
                "EndpointCreated",
                f"{endpoint.spec.model.format} model from {redacted(endpoint.spec.model.storage_uri) or 'the manifest'}"
                f" on cluster {endpoint.cluster}" + _with_warnings(len(warnings)),
                workspace=endpoint.workspace,
                endpoint=endpoint.name,
                endpoint_uid=endpoint.uid,
                reason=ReasonCode.ACCEPTED,
                after=facts(told(endpoint)),
                data={"warnings": list(warnings)} if warnings else {},
            )
        )
    return endpoint.name


async def _with_own_host(tx: Tx, endpoint: InferenceEndpoint) -> InferenceEndpoint:
    """The endpoint, with its cluster in its host if the workspace has one of this name on another cluster.

    Decided once, and whatever becomes of the other: nobody's address changes. The workspace must be held.
    """
    named_so = await tx.list_endpoints(
        endpoint.workspace, after=(endpoint.workspace, endpoint.name, ""), limit=len(await tx.list_clusters())
    )
    if not any(each.name == endpoint.name and each.deletion_requested_at is None for each in named_so):
        return endpoint
    return replace(endpoint, spec=replace(endpoint.spec, qualified_host=True))


async def _answered(tx: Tx, caller: Caller, draft: EndpointDraft, ticket: Ticket | None) -> str | None:
    """The answer given before. Raises Conflict when what it speaks of is gone: repeating it would be a lie,
    and making it again is not what a repetition asks for."""
    answer = await recall(tx, caller, ticket)
    if answer is None:
        return None
    try:
        present = await tx.get_endpoint(draft.workspace, answer, draft.cluster)
    except NotFound:
        said = "has been deleted"
    except Conflict:  # there on several clusters
        return answer
    else:
        if present.deletion_requested_at is None:
            return answer
        said = "is being deleted"
    raise Conflict(
        f"the endpoint {answer} that this request made {said}",
        reason="IdempotencyKeySpent",
        field=IDEMPOTENCY_KEY_HEADER,
        next_action="Use a new idempotency key to make it again.",
    )


def _understood(platform: Platform, draft: EndpointDraft) -> Wish:
    wish = understand(draft, manifest_bytes_max=platform.limits.manifest_bytes_max)
    return settled(wish, draft, platform.default_access)


def _with_warnings(count: int) -> str:
    return "" if not count else ", with a warning" if count == 1 else f", with {count} warnings"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of a pre-flight. `reason` is "" when `ok`."""

    check: str
    ok: bool
    reason: str
    message: str
    next_action: str


async def preflight(platform: Platform, caller: Caller, draft: EndpointDraft) -> list[Finding]:
    """What `create` would run into, and what the engine would: nothing is stored.

    Raises what cannot even be asked (Invalid for fields, NotFound for the workspace).
    """
    caller.require(Verb.WRITE_ENDPOINT, draft.workspace)
    wish = _understood(platform, draft)
    gpu_finding, chosen, gpu = await _gpu_finding(platform, draft, wish)
    async with platform.store.read() as tx:
        cluster = await _resolve_cluster(tx, draft, chosen)
        endpoint = _endpoint(platform, caller, draft, wish, cluster, gpu)
        findings = [
            await _finding("name", _check_free(tx, endpoint), f"the name {endpoint.name} is free"),
            await _finding("quota", _check_quota(tx, platform, draft.workspace), "within the limits"),
        ]
        if gpu is not None and gpu_finding.ok:
            trial = endpoint_gpus.check_spec(tx, endpoint, gpu, platform)
            gpu_finding = await _finding("gpu", trial, "")
    if gpu is not None and gpu_finding.ok:
        sentence = await endpoint_gpus.wait_sentence(platform, endpoint, gpu)
        gpu_finding = replace(gpu_finding, message=sentence)
    findings.append(gpu_finding)
    findings += servable_findings(wish, cluster) + gateway_findings(endpoint.spec, cluster)
    if all(finding.ok for finding in findings if finding.check in {"scheme", "runtime", "gpu"}):
        found = await engine_findings(platform, endpoint, wish.secret)
        findings = merged_findings(findings, found)
    findings += [
        Finding("manifest", True, "", warning, "Nothing to do; it has no effect here.")
        for warning in warnings_on(cluster, wish.warnings, wish.spec.scaling)
    ]
    return findings


async def _gpu_finding(
    platform: Platform, draft: EndpointDraft, wish: Wish
) -> tuple[Finding, str, GpuSpec | None]:
    """What is to be said of its GPUs, the cluster they would come from, and what would be asked for."""
    try:
        chosen = (await endpoint_gpus.soonest_cluster(platform, draft)).name
    except (Invalid, QuotaExceeded) as error:
        chosen = next(iter(draft.cluster_precedence), "")
        return Finding("gpu", False, error.reason, error.message, error.next_action), chosen, None
    async with platform.store.read() as tx:
        cluster = await _resolve_cluster(tx, draft, chosen)
        try:
            gpu = await endpoint_gpus.gpu_spec_for(tx, platform, draft, wish, cluster)
        except (Invalid, QuotaExceeded) as error:
            return Finding("gpu", False, error.reason, error.message, error.next_action), chosen, None
    return Finding("gpu", True, "", "runs on CPU", ""), chosen, gpu


def merged_findings(ours: list[Finding], engines: list[Finding]) -> list[Finding]:
    """Both, and of what both looked at what the engine says: it knows better."""
    told_by_engine = {finding.check for finding in engines}
    return [each for each in ours if each.check not in told_by_engine] + engines


async def engine_findings(
    platform: Platform, endpoint: InferenceEndpoint, secret: Mapping[str, str]
) -> list[Finding]:
    """The engine's own checks; an engine that is away or slow is a finding, not a failure."""
    engine = platform.engines.get(endpoint.cluster)
    unreachable = ReasonCode.CLUSTER_UNREACHABLE
    if engine is None:
        message = f"no engine is running for cluster {endpoint.cluster}"
        return [Finding("cluster", False, unreachable.value, message, reason_of(unreachable).next_action)]
    try:
        async with asyncio.timeout(platform.limits.preflight_seconds_max):
            checks = await engine.preflight(Target(endpoint, secret))
    except TimeoutError:
        message = f"the engine did not answer within {platform.limits.preflight_seconds_max:g} seconds"
        return [Finding("cluster", False, unreachable.value, message, reason_of(unreachable).next_action)]
    except EngineError as error:
        code = ReasonCode.ENGINE_ERROR
        return [Finding("cluster", False, code.value, redacted(error.message), reason_of(code).next_action)]
    return [
        Finding(
            check.check,
            check.ok,
            check.reason.value if check.reason else "",
            redacted(check.message),
            check.next_action,
        )
        for check in checks
    ]


async def _finding(check: str, trial: Awaitable[None], good: str) -> Finding:
    try:
        await trial
    except (AlreadyExists, Invalid, QuotaExceeded) as error:
        return Finding(check, False, error.reason, error.message, error.next_action)
    return Finding(check, True, "", good, "")


def gateway_findings(spec: EndpointSpec, cluster: Cluster) -> list[Finding]:
    """What only our gateway could do, on a cluster whose requests do not come through it; else nothing."""
    try:
        check_on_kubernetes(spec, cluster)
    except Invalid as error:
        return [Finding("gateway", False, error.reason, error.message, error.next_action)]
    return []


def servable_findings(wish: Wish, cluster: Cluster) -> list[Finding]:
    """What `check_servable` checks, each on its own."""
    findings = []
    for check, function, good in (
        ("scheme", _check_scheme, "the cluster can fetch from this kind of storage"),
        ("runtime", _check_runtime, f"a runtime of the cluster serves {wish.spec.model.format}"),
    ):
        try:
            function(wish, cluster)
        except Invalid as error:
            findings.append(Finding(check, False, error.reason, error.message, error.next_action))
        else:
            findings.append(Finding(check, True, "", good, ""))
    return findings


def check_servable(wish: Wish, cluster: Cluster) -> None:
    """Raise Invalid when this cluster can never serve the wish: storage, runtime."""
    _check_scheme(wish, cluster)
    _check_runtime(wish, cluster)


def _check_scheme(wish: Wish, cluster: Cluster) -> None:
    if wish.spec.model.storage_uri and cluster.engine == LOCAL_ENGINE:
        require_local(
            parse_storage_uri(wish.spec.model.storage_uri, field=wish.uri_field), field=wish.uri_field
        )
    if wish.spec.model.storage_uri and cluster.engine == KSERVE:
        require_in_cluster(
            parse_storage_uri(wish.spec.model.storage_uri, field=wish.uri_field), field=wish.uri_field
        )


def _check_runtime(wish: Wish, cluster: Cluster) -> None:
    if cluster.engine != KSERVE and wish.only_on_kubernetes:
        raise wish.only_on_kubernetes[0]
    select_runtime(wish.spec.model, cluster.engine, field=wish.format_field)


async def _check_quota(tx: Tx, platform: Platform, workspace: str) -> None:
    most = (await tx.get_policy(workspace)).max_endpoints
    if most is not None and await tx.count_endpoints(workspace) >= most:
        raise QuotaExceeded(
            f"workspace {workspace} may have {most} endpoints, and has them",
            reason=ReasonCode.QUOTA_EXCEEDED.value,
            field="endpointName",
            next_action="Delete endpoints that nobody uses, or ask an Owner to change the workspace's policy.",
        )
    room = platform.limits.endpoints_max - await tx.count_endpoints()
    if 0 < room <= COUNTED_ALONE:  # two workspaces at once would both find room for the last one
        await tx.hold_endpoint_count()
        room = platform.limits.endpoints_max - await tx.count_endpoints()
    if room <= 0:
        raise QuotaExceeded(
            f"this installation has {platform.limits.endpoints_max} endpoints, which is its limit",
            reason=ReasonCode.QUOTA_EXCEEDED.value,
            next_action="Delete endpoints that nobody uses.",
        )


async def _check_free(tx: Tx, endpoint: InferenceEndpoint) -> None:
    try:
        await tx.get_endpoint(endpoint.workspace, endpoint.name, endpoint.cluster)
    except NotFound:
        return
    raise await _taken(tx, endpoint)


async def _taken(tx: Tx, endpoint: InferenceEndpoint) -> AlreadyExists:
    try:
        present = await tx.get_endpoint(endpoint.workspace, endpoint.name, endpoint.cluster)
    except NotFound:  # it was there a moment ago, and went in between
        going = True
    else:
        going = present.deletion_requested_at is not None
    return AlreadyExists(
        f"endpoint {endpoint.name} {'is being deleted' if going else 'exists already'}"
        f" in workspace {endpoint.workspace} on cluster {endpoint.cluster}",
        reason="EndpointTerminating" if going else "EndpointExists",
        field="endpointName",
        next_action="Try again in a moment." if going else "Choose another name, or delete it first.",
    )


async def _resolve_cluster(tx: Tx, draft: EndpointDraft, chosen: str = "") -> Cluster:
    """The named cluster, else the one `chosen` for its GPUs, else the first of the preferred ones, else
    the workspace's only one."""
    workspace = await tx.get_workspace(draft.workspace)
    clusters = {each.name: each for each in await tx.list_clusters() if each.name in workspace.clusters}
    if draft.cluster:
        if draft.cluster not in clusters:
            raise _not_a_cluster(workspace, draft.cluster, "clusterName")
        return clusters[draft.cluster]
    if chosen in clusters:
        return clusters[chosen]
    for preferred in draft.cluster_precedence:
        if preferred in clusters:
            return clusters[preferred]
    if draft.cluster_precedence:
        raise _not_a_cluster(workspace, draft.cluster_precedence[0], "clusterPrecedence")
    if len(clusters) == 1:
        return next(iter(clusters.values()))
    raise Invalid(
        f"workspace {workspace.name} has {len(clusters)} clusters, so the cluster must be named",
        reason="Missing",
        field="clusterName",
        next_action=f"Name one of {', '.join(workspace.clusters)}, or give clusterPrecedence"
        f"{', or enableAutoClusterSelection in gpuSpec' if draft.gpu is not None else ''}.",
    )


def _not_a_cluster(workspace: Workspace, name: str, path: str) -> Invalid:
    return Invalid(
        f"workspace {workspace.name} does not use a cluster named “{name[:80]}”",
        reason="ClusterNotInWorkspace",
        field=path,
        next_action=f"Its clusters are: {', '.join(workspace.clusters)}.",
    )


def _endpoint(
    platform: Platform,
    caller: Caller,
    draft: EndpointDraft,
    wish: Wish,
    cluster: Cluster,
    gpu: GpuSpec | None,
) -> InferenceEndpoint:
    now = platform.clock()
    spec = replace(wish.spec, gpu=gpu)
    if spec.stopped:  # asked for in the manifest
        spec = replace(spec, stopped_by=caller.key_name, stopped_at=now)
    return InferenceEndpoint(
        uid=_new_uid(platform),
        workspace=draft.workspace,
        cluster=cluster.name,
        name=draft.name,
        namespace=namespace_for(draft.workspace, draft.name, platform.new_id(NAMESPACE_SUFFIX_CHARACTERS)),
        spec=spec,
        generation=1,
        created_at=now,
        created_by=caller.key_name,
    )


def _new_uid(platform: Platform) -> str:
    """12 hex digits, drawn from the platform's own source of chance."""
    return hashlib.blake2b(platform.new_id(32).encode(), digest_size=UID_DIGITS // 2).hexdigest()


# Read


@dataclass(frozen=True, slots=True)
class Filter:
    """Which endpoints to list. "" does not filter."""

    workspace: str = ""
    status: str = ""
    cluster: str = ""
    model_format: str = ""


def matches(endpoint: InferenceEndpoint, wanted: Filter) -> bool:
    """Whether a list with this filter would have the endpoint. Raises Invalid for an unknown status."""
    status = _status(wanted.status)
    return (
        wanted.workspace in {"", endpoint.workspace}
        and wanted.cluster in {"", endpoint.cluster}
        and wanted.model_format in {"", endpoint.spec.model.format}
        and (status is None or public_state(endpoint).status is status)
    )


@dataclass(frozen=True, slots=True)
class Page:
    """Some endpoints in order, and the place to go on from: "" at the end."""

    endpoints: list[InferenceEndpoint]
    continue_from: str


async def list_endpoints(
    platform: Platform, caller: Caller, wanted: Filter, *, limit: int | None = None, continue_from: str = ""
) -> Page:
    """One page by (workspace, name, cluster). Without a workspace: all that the caller may see.

    Raises NotFound for an unknown workspace, Invalid for a filter or a page that cannot be.
    """
    caller.require(Verb.READ_ENDPOINT, wanted.workspace)
    size = _page_size(platform, limit)
    status = _status(wanted.status)
    workspace = wanted.workspace or caller.workspace
    position = _position(continue_from)
    found: list[InferenceEndpoint] = []
    async with platform.store.read() as tx:
        if workspace:
            await tx.get_workspace(workspace)
        while True:
            rows = await tx.list_endpoints(
                workspace or None,
                cluster=wanted.cluster,
                model_format=wanted.model_format,
                after=position,
                limit=size + 1,
            )
            # The public status is derived, so it is filtered here and the next rows are read as needed.
            found += [row for row in rows if status is None or public_state(row).status is status]
            if len(found) > size:
                last = found[size - 1]
                return Page(found[:size], f"{last.workspace}/{last.name}/{last.cluster}")
            if len(rows) <= size:
                return Page(found, "")
            position = (rows[-1].workspace, rows[-1].name, rows[-1].cluster)


@dataclass(frozen=True, slots=True)
class Described:
    """An endpoint, the names (only the names) in its secret, and its GPU requests, oldest first.

    `ingress_address` is where its cluster was registered to let requests in, "" for nothing said.
    """

    endpoint: InferenceEndpoint
    secret_keys: list[str]
    gpu_requests: list[GpuRequest]
    ingress_address: str = ""


async def describe(
    platform: Platform, caller: Caller, workspace: str, name: str, cluster: str = ""
) -> Described:
    """One endpoint with what belongs to it. Raises NotFound, Conflict when ambiguous."""
    caller.require(Verb.READ_ENDPOINT, workspace)
    async with platform.store.read() as tx:
        endpoint = await find(tx, workspace, name, cluster)
        address = ""
        if endpoint.status.ingress is not None:
            found = [each for each in await tx.list_clusters() if each.name == endpoint.cluster]
            address = found[0].ingress_address if found else ""
        return Described(
            endpoint,
            sorted(await tx.endpoint_secret(endpoint.uid)),
            await tx.list_gpu_requests(endpoint_uid=endpoint.uid),
            address,
        )


async def explain(
    platform: Platform, caller: Caller, workspace: str, name: str, cluster: str = ""
) -> tuple[InferenceEndpoint, list[Event]]:
    """One endpoint, and the newest decisions about its number of replicas, oldest first.

    Raises NotFound, Conflict when ambiguous.
    """
    caller.require(Verb.READ_ENDPOINT, workspace)
    async with platform.store.read() as tx:
        endpoint = await find(tx, workspace, name, cluster)
        decided = await tx.list_events(
            endpoint_uid=endpoint.uid, limit=DECISIONS_SHOWN_MAX, newest_first=True, kinds=SCALING_KINDS
        )
    return endpoint, decided[::-1]


async def by_uid(platform: Platform, uid: str) -> InferenceEndpoint | None:
    """For watchers, who already know that the caller may see it."""
    async with platform.store.read() as tx:
        return await tx.get_endpoint_by_uid(uid)


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events oldest first; `continue_from` is the number to ask for what follows, "" at the end."""

    events: list[Event]
    continue_from: str


async def list_events(
    platform: Platform,
    caller: Caller,
    workspace: str,
    name: str = "",
    cluster: str = "",
    *,
    after: int | None = None,
    limit: int | None = None,
) -> EventPage:
    """Of one endpoint, or of a whole workspace when no name is given.

    Without `after` the newest `limit` events, with it the first `limit` behind that number.
    """
    caller.require(Verb.READ_ENDPOINT, workspace)
    limits = platform.limits
    size = _bounded(limit, limits.event_items_default, limits.event_items_max)
    async with platform.store.read() as tx:
        uid = None
        since = None
        if name:
            uid = (await find(tx, workspace, name, cluster)).uid
        else:
            # A workspace of the same name that was deleted earlier belonged to somebody else.
            since = (await tx.get_workspace(workspace)).created_at
        newest_first = after is None
        events = await tx.list_events(
            workspace=workspace,
            endpoint_uid=uid,
            after_seq=after or 0,
            limit=size,
            newest_first=newest_first,
        )
    following = str(events[-1].seq) if len(events) == size and not newest_first else ""
    if since is not None:
        events = [each for each in events if each.at >= since]
    return EventPage(events[::-1] if newest_first else events, following)


async def logs(
    platform: Platform,
    caller: Caller,
    workspace: str,
    name: str,
    cluster: str = "",
    *,
    replica: str = "",
    previous: bool = False,
    follow: bool = False,
    tail_lines: int | None = None,
) -> AsyncIterator[LogLine]:
    """Lines of the endpoint's model servers, straight from the engine.

    Raises NotFound, Unavailable; the iterator itself raises EngineError when there is no such log.
    """
    caller.require(Verb.READ_LOGS, workspace)
    async with platform.store.read() as tx:
        endpoint = await find(tx, workspace, name, cluster)
    engine = platform.engines.get(endpoint.cluster)
    if engine is None:
        raise Unavailable(
            f"no engine is running for cluster {endpoint.cluster}",
            reason=ReasonCode.CLUSTER_UNREACHABLE.value,
            next_action="Try again when the cluster is back.",
        )
    tail = _bounded(tail_lines, platform.limits.log_lines_default, platform.limits.log_lines_max)
    return engine.logs(endpoint.uid, replica=replica, previous=previous, follow=follow, tail_lines=tail)


# Change


async def delete(platform: Platform, caller: Caller, workspace: str, name: str, cluster: str = "") -> str:
    """Ask for an endpoint to be undone; returns its name. Asking again while it is going is harmless.

    Raises NotFound once it is gone.
    """
    caller.require(Verb.WRITE_ENDPOINT, workspace)
    async with platform.store.read() as tx:
        endpoint = await find(tx, workspace, name, cluster)
    await request_deletion(platform, caller, endpoint.uid)
    return endpoint.name


async def request_deletion(platform: Platform, caller: Caller, uid: str) -> None:
    """Mark an endpoint for deletion, once."""

    def mark(endpoint: InferenceEndpoint) -> InferenceEndpoint | None:
        if endpoint.deletion_requested_at is not None:
            return None
        return replace(
            endpoint,
            deletion_requested_at=platform.clock(),
            deletion_requested_by=caller.key_name,
            generation=endpoint.generation + 1,
        )

    await _change(platform, caller, uid, mark, "EndpointDeletionRequested", "deletion was asked for")


async def stop(platform: Platform, caller: Caller, workspace: str, name: str, cluster: str = "") -> str:
    """Have no replica run until somebody starts it; returns the name. Harmless when stopped already."""
    caller.require(Verb.WRITE_ENDPOINT, workspace)

    def mark(endpoint: InferenceEndpoint) -> InferenceEndpoint | None:
        refuse_going(endpoint)
        if endpoint.spec.stopped:
            return None
        spec = replace(endpoint.spec, stopped=True, stopped_by=caller.key_name, stopped_at=platform.clock())
        return replace(endpoint, spec=spec, generation=endpoint.generation + 1)

    return await _change_named(
        platform, caller, (workspace, name, cluster), mark, "EndpointStopRequested", "stop was asked for"
    )


async def start(platform: Platform, caller: Caller, workspace: str, name: str, cluster: str = "") -> str:
    """Undo `stop`; returns the name. Harmless when it is not stopped.

    An endpoint on GPUs asks for new ones, also where it was not stopped but has lost its own for good.
    Raises QuotaExceeded, Invalid where it may not ask for them any more.
    """
    caller.require(Verb.WRITE_ENDPOINT, workspace)

    def mark(endpoint: InferenceEndpoint) -> InferenceEndpoint | None:
        refuse_going(endpoint)
        if not endpoint.spec.stopped:
            return None
        spec = replace(endpoint.spec, stopped=False, stopped_by="", stopped_at=None, stopped_because="")
        return replace(endpoint, spec=spec, generation=endpoint.generation + 1)

    async def ask_again(tx: Tx, endpoint: InferenceEndpoint) -> bool:
        return await endpoint_gpus.ask_again(tx, platform, caller, endpoint)

    return await _change_named(
        platform,
        caller,
        (workspace, name, cluster),
        mark,
        "EndpointStartRequested",
        "start was asked for",
        ask_again,
    )


def refuse_going(endpoint: InferenceEndpoint) -> None:
    """Raise Conflict for an endpoint that is being deleted: nobody changes it any more."""
    if endpoint.deletion_requested_at is not None:
        raise Conflict(
            f"endpoint {endpoint.name} is being deleted",
            reason="EndpointTerminating",
            field="endpoint",
            next_action="Wait until it is gone, then create it anew.",
        )


async def _change_named(
    platform: Platform,
    caller: Caller,
    place: tuple[str, str, str],
    mark: Callable[[InferenceEndpoint], InferenceEndpoint | None],
    kind: str,
    message: str,
    also: Also | None = None,
) -> str:
    async with platform.store.read() as tx:
        endpoint = await find(tx, *place)
    await _change(platform, caller, endpoint.uid, mark, kind, message, also)
    return endpoint.name


async def _change(
    platform: Platform,
    caller: Caller,
    uid: str,
    mark: Callable[[InferenceEndpoint], InferenceEndpoint | None],
    kind: str,
    message: str,
    also: Also | None = None,
) -> None:
    """Apply `mark` to the newest row and say so in an event; None from `mark` changes nothing.

    `also` does what belongs to the change in the same transaction, and says whether it did anything.
    A row that is gone by now is left alone: what was wanted of it no longer matters.
    """
    for _ in range(UPDATE_ATTEMPTS_MAX):
        try:
            async with platform.store.transaction() as tx:
                present = await tx.get_endpoint_by_uid(uid)
                if present is None:
                    return
                changed = mark(present)
                if changed is not None:
                    await tx.update_endpoint_spec(changed)
                done = also is not None and await also(tx, changed or present)
                if done and changed is None:
                    await tx.update_endpoint_spec(present)  # or two at once would both have done it
                if changed is not None or done:
                    before, after = difference(told(present), told(changed or present))
                    event = entry(
                        platform.clock(),
                        caller,
                        kind,
                        message,
                        workspace=present.workspace,
                        endpoint=present.name,
                        endpoint_uid=present.uid,
                        before=before,
                        after=after,
                    )
                    await tx.append_event(event)
                return
        except StaleVersion:
            continue
    raise Unavailable(
        "the endpoint is changing too fast to be written",
        reason="TooBusy",
        next_action="Try again in a moment.",
    )


# What the gateway could not match


async def visible(platform: Platform, key_role: Role, workspace: str, limit: int) -> list[InferenceEndpoint]:
    """The first `limit` endpoints that a caller with this role and workspace may see."""
    async with platform.store.read() as tx:
        return await tx.list_endpoints(None if key_role is Role.OWNER else workspace, limit=limit)


# Leaves


async def find(tx: Tx, workspace: str, name: str, cluster: str) -> InferenceEndpoint:
    """Raises NotFound for the workspace first, so that a slip in either is told apart."""
    if not workspace:
        raise Invalid("workspace is needed", reason="Missing", field="workspace")
    if not name:
        raise Invalid("endpoint is needed", reason="Missing", field="endpoint")
    await tx.get_workspace(workspace)
    return await tx.get_endpoint(workspace, name, cluster)


@dataclass(frozen=True, slots=True)
class _Told:
    """What the audit log keeps of an endpoint: never its secret, arguments or environment."""

    format: str
    storage_uri: str
    digest: str
    runtime: str
    cluster: str
    revision: int
    rollout: Rollout | None
    min_replicas: int
    max_replicas: int
    target_concurrency: float | None
    target_rate: float | None
    max_request_bytes: int
    timeout_seconds: float
    stopped: bool
    deletion_requested: bool
    gpu: GpuSpec | None


def told(endpoint: InferenceEndpoint) -> _Told:
    """The endpoint as the audit log keeps it."""
    spec = endpoint.spec
    return _Told(
        format=spec.model.format,
        storage_uri=redacted(spec.model.storage_uri),
        digest=spec.model.digest,
        runtime=spec.model.runtime,
        cluster=endpoint.cluster,
        revision=spec.revision,
        rollout=spec.rollout,
        min_replicas=spec.scaling.min_replicas,
        max_replicas=spec.scaling.max_replicas,
        target_concurrency=spec.scaling.target_concurrency,
        target_rate=spec.scaling.target_rate,
        max_request_bytes=spec.limits.max_request_bytes,
        timeout_seconds=spec.limits.timeout_seconds,
        stopped=spec.stopped,
        deletion_requested=endpoint.deletion_requested_at is not None,
        gpu=spec.gpu,
    )


def _page_size(platform: Platform, limit: int | None) -> int:
    return _bounded(limit, platform.limits.page_items_default, platform.limits.page_items_max)


def _bounded(limit: int | None, default: int, largest: int) -> int:
    return min(max(1, limit), largest) if limit is not None else default


def _status(text: str) -> PublicStatus | None:
    if not text:
        return None
    for status in PublicStatus:
        if status.value.lower() == text.lower():
            return status
    raise Invalid(
        f"“{text[:40]}” is not a status",
        reason="UnknownStatus",
        field="status",
        next_action=f"Use one of {', '.join(PublicStatus)}.",
    )


def _position(text: str) -> tuple[str, str, str] | None:
    if not text:
        return None
    parts = text.split("/")
    if len(parts) != 3:
        raise Invalid(
            "this is no place to continue from",
            reason="InvalidContinue",
            field="continue",
            next_action="Give the continue value of the page before.",
        )
    for part in parts:
        check_name(part, "continue")
    return parts[0], parts[1], parts[2]
