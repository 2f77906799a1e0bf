"""Domain values → what callers see. Pure; nothing secret passes.

Everything that came from outside and may quote a storage URI (messages of a download, of a crash)
goes through `redacted` once more here, at the last door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from inferplane.api import gpu_views, revision_views
from inferplane.api.ways import Way, way_to
from inferplane.domain.access import ApiKey
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    Milestone,
    PublicState,
    PublicStatus,
    Replica,
    ReplicaState,
    RestartRecord,
    ScaleNote,
    public_state,
)
from inferplane.domain.endpoint_access import Access
from inferplane.domain.events import Event
from inferplane.domain.gpu_request import GpuRequest, ProvisioningStatus
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.storage_uri import redacted
from inferplane.domain.workspace import Workspace
from inferplane.services.context import GatewayAddress
from inferplane.services.endpoints import Finding
from inferplane.services.names import UNKNOWN, NameFinding
from inferplane.services.trail import AFTER, BEFORE, KEY_ID
from inferplane.wire.access import ApiKeyItem
from inferplane.wire.audit import AuditItem
from inferplane.wire.endpoints import (
    AutoscalingItem,
    CheckItem,
    ConditionItem,
    DownloadItem,
    EndpointDescription,
    EndpointItem,
    EventItem,
    EvidenceItem,
    ExitItem,
    Explanation,
    LimitsItem,
    MilestoneItem,
    ModelItem,
    ReplicaCount,
    ReplicaItem,
)
from inferplane.wire.workspaces import NamespaceItem, WorkspaceItem

READY = "Ready"
PLACEHOLDER_BODY = '{"instances": []}'
OPENAI = "openai"
EMBEDDING = "embedding"
"""What models of ours call the output that is a vector."""
CHAT_TOKENS_SHOWN = 32
EXAMPLE_CHARACTERS_MAX = 32 * 1024
"""A longer example would not fit a command line."""

NOTE_PLACEHOLDER = (
    "The body is a placeholder: replace instances with rows for this model."
    " A real example appears here once the model has been loaded, where its input is known."
)
KEY_LINE = '-H "Authorization: Bearer $INFERPLANE_ENDPOINT_KEY" \\'
NOTE_KEY = "INFERPLANE_ENDPOINT_KEY is to hold an endpoint key, as POST /endpoint-key makes it."
NOTE_NOT_YET = "The endpoint does not answer yet; the command works once its status is Running."

_WAITING = frozenset(
    {
        PublicStatus.PENDING,
        PublicStatus.QUEUED,
        PublicStatus.PROVISIONING,
        PublicStatus.DOWNLOADING,
        PublicStatus.LOADING,
        PublicStatus.UPDATING,
        PublicStatus.TERMINATING,
    }
)


# Endpoints


def endpoint_item(endpoint: InferenceEndpoint, gateway: GatewayAddress) -> EndpointItem:
    """One line of a list."""
    state = public_state(endpoint)
    return EndpointItem(
        endpoint_name=endpoint.name,
        model_name=endpoint.spec.model.format,
        status=state.status.value,
        endpoint=_url(endpoint, state, gateway),
        cluster_name=endpoint.cluster,
        namespace=endpoint.namespace,
        auto_scaling_status=_auto_scaling(state),
        workspace=endpoint.workspace,
        uid=endpoint.uid,
        reason=_reason(state),
        message=redacted(state.message),
        path_endpoint=_path_url(endpoint, gateway),
        replica_count=_count(endpoint),
        queue_position=_queue_position(endpoint),
        created_at=endpoint.created_at,
        since=endpoint.status.since or endpoint.created_at,
        access=endpoint.spec.access.value,
    )


def _queue_position(endpoint: InferenceEndpoint) -> int:
    note = endpoint.status.gpu if endpoint.spec.gpu is not None else None
    if note is None or note.status is not ProvisioningStatus.QUEUED:
        return 0
    return note.position or 0


def endpoint_description(
    endpoint: InferenceEndpoint,
    secret_keys: list[str],
    gateway: GatewayAddress,
    gpu_requests: Sequence[GpuRequest] = (),
    *,
    ingress_address: str = "",
    name: NameFinding = UNKNOWN,
) -> EndpointDescription:
    """Everything about one endpoint; `gpu_requests` are all it ever made, oldest first.

    `ingress_address` is where its cluster was registered to let requests in, `name` what DNS says of its name.
    """
    state = public_state(endpoint)
    spec, status = endpoint.spec, endpoint.status
    way = way_to(endpoint, gateway, ingress_address)
    dns_is_missing = state.ingress == READY and name.leads_there is False
    ingress = ReasonCode.DNS_NOT_READY.value if dns_is_missing else state.ingress
    return EndpointDescription(
        endpoint_name=endpoint.name,
        model_name=spec.model.format,
        status=state.status.value,
        endpoint=_url(endpoint, state, gateway),
        cluster_name=endpoint.cluster,
        namespace=endpoint.namespace,
        predict_status=state.predict,
        ingress_status=ingress,
        auto_scaling_status=_auto_scaling(state),
        try_command=try_command(endpoint, way, by_path=False),
        dns_records=() if way.record is None else (way.record,),
        gpu_requests=tuple(gpu_views.gpu_request_item(each) for each in gpu_requests),
        gpu=gpu_views.endpoint_gpus(endpoint),
        workspace=endpoint.workspace,
        uid=endpoint.uid,
        reason=_reason(state),
        message=redacted(state.message),
        next_action=state.next_action,
        next_retry_at=state.next_retry_at,
        evidence=evidence(endpoint, state),
        conditions=conditions(endpoint, state, name.message if dns_is_missing else ""),
        replicas=tuple(_replica(each, endpoint) for each in status.replicas),
        replica_count=_count(endpoint),
        revisions=revision_views.revisions(endpoint),
        traffic=revision_views.traffic(endpoint),
        rollout=revision_views.rollout(endpoint),
        path_endpoint=_path_url(endpoint, gateway),
        try_path_command=try_command(endpoint, way, by_path=True),
        try_note=_note(endpoint, state, name.message if dns_is_missing else ""),
        protocols=status.model.protocols if status.model is not None else (),
        model=_model(endpoint, secret_keys),
        limits=LimitsItem(
            max_request_bytes=spec.limits.max_request_bytes,
            timeout_seconds=spec.limits.timeout_seconds,
            start_timeout_seconds=spec.model.start_timeout_seconds,
            requests_per_second=spec.limits.requests_per_second,
            burst=spec.limits.burst,
            requests_per_second_per_key=spec.limits.requests_per_second_per_key,
            concurrency_max=spec.limits.concurrency_max,
            concurrency_max_per_key=spec.limits.concurrency_max_per_key,
        ),
        access=spec.access.value,
        autoscaling=_scaling(endpoint),
        download=_download(status.artifact),
        generation=endpoint.generation,
        observed_generation=status.observed_generation,
        stopped=spec.stopped,
        created_at=endpoint.created_at,
        created_by=endpoint.created_by,
        since=status.since or endpoint.created_at,
        timeline=timeline(endpoint),
    )


def explanation(endpoint: InferenceEndpoint, decided: Sequence[Event] = ()) -> Explanation:
    """What it is waiting for or why it failed, with proof, and what to do.

    `decided`: the newest decisions about its number of replicas, oldest first.
    """
    state = public_state(endpoint)
    meaning = (
        reason_of(state.reason).meaning if state.reason is not None else "The endpoint answers requests."
    )
    return Explanation(
        endpoint_name=endpoint.name,
        status=state.status.value,
        reason=_reason(state),
        meaning=meaning,
        message=redacted(state.message),
        evidence=evidence(endpoint, state),
        next_action=state.next_action or "Nothing to do.",
        next_retry_at=state.next_retry_at,
        waiting_for=_waiting_for(state),
        timeline=timeline(endpoint),
        autoscaling=_scaling(endpoint),
        scaling_decisions=tuple(event_item(each) for each in decided),
    )


def try_command(endpoint: InferenceEndpoint, way: Way, *, by_path: bool) -> tuple[str, ...]:
    """Lines that, joined with newlines, are a command to paste into a shell; none where there is no such way.

    By host as documented, or by path, where no Host header is needed. Models that generate or embed text are
    asked in OpenAI's protocol, which is what their clients speak.
    """
    path, text = _question(endpoint)
    body = _shell_quoted(text)
    base = way.by_path if by_path else way.by_address
    if not base:
        return ()
    lines = ["curl -v \\", *(() if by_path else way.lines)]
    if endpoint.spec.access is Access.KEY:
        lines.append(KEY_LINE)
    url = f"{base}{path}"
    return (*lines, '-H "Content-Type: application/json" \\', f'"{url}" \\', f"-d {body}")


def conditions(
    endpoint: InferenceEndpoint, state: PublicState, dns_message: str = ""
) -> tuple[ConditionItem, ...]:
    """The endpoint's state as conditions, in the order in which they come true.

    `dns_message` is what DNS lacks where all else is ready.
    """
    status = endpoint.status
    since = status.since or endpoint.created_at
    observed = status.observed_generation >= endpoint.generation
    artifact = status.artifact
    loaded = status.milestone(Milestone.LOADED) or since
    ready = status.milestone(Milestone.READY) or since
    return (
        _condition("Accepted", True, "", "", endpoint.created_at),
        _condition("Observed", observed, state, "the controller has not seen the newest change yet", since),
        _condition(
            "ModelAvailable",
            artifact.phase is ArtifactPhase.PRESENT,
            _artifact_reason(artifact),
            redacted(artifact.message),
            artifact.finished_at or artifact.started_at or since,
        ),
        _condition("PredictReady", state.predict == READY, state.predict, redacted(state.message), loaded),
        _condition(
            "IngressReady",
            state.ingress == READY and not dns_message,
            ReasonCode.DNS_NOT_READY.value if dns_message else state.ingress,
            dns_message or redacted(state.message),
            ready,
        ),
        _condition("Ready", state.status is PublicStatus.RUNNING, state, redacted(state.message), since),
    )


def evidence(endpoint: InferenceEndpoint, state: PublicState) -> EvidenceItem:
    """What proves the reason."""
    status = endpoint.status
    ended = state.exit
    return EvidenceItem(
        exit_code=ended.exit_code if ended is not None else None,
        signal=ended.signal if ended is not None else "",
        log_tail=ended.log_tail if ended is not None else (),
        at=ended.at if ended is not None else None,
        storage_uri=redacted(endpoint.spec.model.storage_uri),
        download=_download(status.artifact),
        restarts=_restarts_that_matter(endpoint),
        left=status.left,
        stopped_by=endpoint.spec.stopped_by,
    )


def timeline(endpoint: InferenceEndpoint) -> tuple[MilestoneItem, ...]:
    """The points reached, in order, each with the time since the one before and since the first."""
    reached = dict(endpoint.status.milestones)
    reached.setdefault(Milestone.ACCEPTED, endpoint.created_at)
    items: list[MilestoneItem] = []
    first = previous = reached[Milestone.ACCEPTED]
    for name in Milestone:
        at = reached.get(name)
        if at is not None:
            items.append(MilestoneItem(name.value, at, _millis(previous, at), _millis(first, at)))
            previous = max(previous, at)  # a model that was here already was downloaded before
    return tuple(items)


def check_item(finding: Finding) -> CheckItem:
    """One check of a pre-flight."""
    return CheckItem(finding.check, finding.ok, finding.reason, finding.message, finding.next_action)


def event_item(event: Event) -> EventItem:
    """One event, without what only the audit log tells: whose key it was, and the values before and after."""
    shown = _whole_item(event)
    told = {key: value for key, value in shown.data.items() if key not in (KEY_ID, BEFORE, AFTER)}
    return msgspec.structs.replace(shown, data=told)


def _whole_item(event: Event) -> EventItem:
    return EventItem(
        seq=event.seq,
        at=event.at,
        kind=event.kind,
        message=redacted(event.message),
        actor=event.actor,
        workspace=event.workspace,
        endpoint=event.endpoint,
        reason=event.reason.value if event.reason is not None else "",
        data=_redacted_values(dict(event.data)),
    )


def audit_item(event: Event) -> AuditItem:
    """One entry. Everything that quotes a storage URI has been redacted once more."""
    shown = _whole_item(event)
    data = dict(shown.data)
    before, after, key_id = data.pop(BEFORE, None), data.pop(AFTER, None), data.pop(KEY_ID, "")
    return AuditItem(
        seq=shown.seq,
        at=shown.at,
        actor=shown.actor,
        kind=shown.kind,
        message=shown.message,
        key_id=key_id if isinstance(key_id, str) else "",
        workspace=shown.workspace,
        endpoint=shown.endpoint,
        reason=shown.reason,
        before=before if isinstance(before, dict) else None,
        after=after if isinstance(after, dict) else None,
        data=data,
    )


def _redacted_values(value: Any) -> Any:
    """JSON values with every text in them redacted."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: _redacted_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted_values(item) for item in value]
    return value


def _url(endpoint: InferenceEndpoint, state: PublicState, gateway: GatewayAddress) -> str:
    """ "" until requests get through."""
    base = way_to(endpoint, gateway).by_name
    return base + _predict_path(endpoint) if base and state.ingress == READY else ""


def _path_url(endpoint: InferenceEndpoint, gateway: GatewayAddress) -> str:
    """ "" on a cluster whose ingress knows no paths of ours."""
    base = way_to(endpoint, gateway).by_path
    return base + _predict_path(endpoint) if base else ""


def _predict_path(endpoint: InferenceEndpoint) -> str:
    """The model answers to the endpoint's name, whatever its manifest calls it."""
    return f"/v1/models/{endpoint.name}:predict"


def _question(endpoint: InferenceEndpoint) -> tuple[str, str]:
    """A path, and a body that the model answers there; a placeholder where its input is not known."""
    model = endpoint.status.model
    if model is None or OPENAI not in model.protocols:
        return _predict_path(endpoint), _example(endpoint) or PLACEHOLDER_BODY
    if any(output.get("name") == EMBEDDING for output in model.outputs):
        return "/v1/embeddings", _json({"model": endpoint.name, "input": ["a text to embed"]})
    message = {"role": "user", "content": "Say hello"}
    body = {"model": endpoint.name, "messages": [message], "max_tokens": CHAT_TOKENS_SHOWN}
    return "/v1/chat/completions", _json(body)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _example(endpoint: InferenceEndpoint) -> str:
    """A body that the model answers, on one line, or ""."""
    model = endpoint.status.model
    text = model.example if model is not None else ""
    if not text or len(text) > EXAMPLE_CHARACTERS_MAX:
        return ""
    return " ".join(text.split("\n")).replace("\r", " ").strip()


def _shell_quoted(text: str) -> str:
    """In single quotes, in which a shell leaves everything alone but the quote itself."""
    return "'" + text.replace("'", "'\\''") + "'"


def _note(endpoint: InferenceEndpoint, state: PublicState, dns_message: str) -> str:
    notes = [f"The command works although {dns_message}."] if dns_message else []
    if state.ingress != READY:
        notes.append(NOTE_NOT_YET)
    if endpoint.spec.access is Access.KEY:
        notes.append(NOTE_KEY)
    if _question(endpoint)[1] == PLACEHOLDER_BODY:
        notes.append(NOTE_PLACEHOLDER)
    return " ".join(notes)


def _reason(state: PublicState) -> str:
    return state.reason.value if state.reason is not None else ""


def _auto_scaling(state: PublicState) -> str:
    """In one word: Ready, or why the number of replicas is not the one wished for."""
    return READY if state.reason is None else state.reason.value


def _scaling(endpoint: InferenceEndpoint) -> AutoscalingItem:
    scaling, decided = endpoint.spec.scaling, endpoint.status.scale or ScaleNote(0)
    return AutoscalingItem(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_concurrency=scaling.target_concurrency,
        target_rate=scaling.target_rate,
        scale_to_zero_after=format_duration(scaling.scale_to_zero_after) if scaling.sleeps else "",
        replicas=endpoint.desired_replicas,
        message=decided.message,
        since=decided.since,
        last_request_at=decided.last_request_at,
        wake_seconds=decided.wake_seconds,
    )


def _count(endpoint: InferenceEndpoint) -> ReplicaCount:
    return ReplicaCount(len(_answering(endpoint)), endpoint.desired_replicas)


def _answering(endpoint: InferenceEndpoint) -> list[Replica]:
    status = endpoint.status
    return [
        each for each in status.replicas if each.state is ReplicaState.READY and each.id.name in status.routed
    ]


def _artifact_reason(artifact: ArtifactState) -> str:
    if artifact.reason is not None:
        return artifact.reason.value
    fetching = artifact.phase is ArtifactPhase.FETCHING
    return (ReasonCode.DOWNLOADING if fetching else ReasonCode.ACCEPTED).value


def _condition(
    type_: str, true: bool, reason: PublicState | str, message: str, at: datetime
) -> ConditionItem:
    word = reason if isinstance(reason, str) else _reason(reason)
    return ConditionItem(
        type=type_,
        status="True" if true else "False",
        reason="" if true else word,
        message="" if true else message,
        last_transition_time=at,
    )


def _replica(replica: Replica, endpoint: InferenceEndpoint) -> ReplicaItem:
    record = next((each for each in endpoint.status.restarts if each.replica == replica.id.name), None)
    waiting = replica.waiting
    return ReplicaItem(
        name=replica.id.name,
        state=replica.state.value,
        revision=replica.id.revision,
        pid=replica.pid,
        routed=replica.id.name in endpoint.status.routed,
        started_at=replica.started_at,
        ready_at=replica.ready_at,
        restarts=_restarts(endpoint.status).get(replica.id.name, 0),
        next_start_at=_next_start(replica, record),
        exit=_exit(replica.exit) if replica.exit is not None else None,
        reason=waiting.reason.value if waiting is not None else "",
        message=redacted(waiting.message) if waiting is not None else "",
    )


def _next_start(replica: Replica, record: RestartRecord | None) -> datetime | None:
    """A cluster that starts it again by itself says when; else it is ours to start."""
    if replica.waiting is not None:
        return replica.waiting.next_try_at
    return record.next_start_at if record is not None else None


def _restarts(status: EndpointStatus) -> dict[str, int]:
    """How often each replica was started again. A status of an older version tells only failures in a row."""
    counts = {record.replica: record.failures for record in status.restarts}
    return counts | {name: max(count, counts.get(name, 0)) for name, count in status.ends}


def _restarts_that_matter(endpoint: InferenceEndpoint) -> int:
    """Those of servers of revisions that should run: how a rolled-back one ended says nothing of the others."""
    revisions = {each.revision for each in endpoint.replica_ids()} or {endpoint.spec.revision}
    parts = tuple(f"r{revision}-" for revision in revisions)
    return sum(count for name, count in _restarts(endpoint.status).items() if name.startswith(parts))


def _exit(ended: Exit) -> ExitItem:
    return ExitItem(
        at=ended.at,
        exit_code=ended.exit_code,
        signal=ended.signal,
        reason=ended.reason.value,
        message=redacted(ended.message),
        log_tail=ended.log_tail,
    )


def _model(endpoint: InferenceEndpoint, secret_keys: list[str]) -> ModelItem:
    model, info = endpoint.spec.model, endpoint.status.model
    return ModelItem(
        format=model.format,
        format_version=model.format_version,
        storage_uri=redacted(model.storage_uri),
        digest=model.digest or endpoint.status.artifact.digest,
        runtime=model.runtime,
        args=model.args,
        alias=model.alias,
        cpu_millis=model.resources.cpu_millis,
        memory_bytes=model.resources.memory_bytes,
        secret_keys=tuple(secret_keys),
        example=info.example if info is not None else "",
        inputs=tuple(dict(each) for each in info.inputs) if info is not None else (),
        outputs=tuple(dict(each) for each in info.outputs) if info is not None else (),
    )


def _download(artifact: ArtifactState) -> DownloadItem | None:
    if artifact == ArtifactState():
        return None
    return DownloadItem(
        phase=artifact.phase.value,
        uri=redacted(artifact.uri),
        received_bytes=artifact.received_bytes,
        total_bytes=artifact.total_bytes,
        resumed_from_bytes=artifact.resumed_from_bytes,
        rate_bytes_per_second=artifact.rate_bytes_per_second,
        eta_seconds=artifact.eta_seconds,
        digest=artifact.digest,
        started_at=artifact.started_at,
        finished_at=artifact.finished_at,
        attempts=artifact.attempts,
        next_attempt_at=artifact.next_attempt_at,
    )


def _waiting_for(state: PublicState) -> str:
    if state.status in _WAITING:
        return redacted(state.message)
    if state.next_retry_at is not None:
        return f"the next try at {state.next_retry_at.isoformat()}"
    return ""


def _millis(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds() * 1000))


# Keys, workspaces


def api_key_item(key: ApiKey) -> ApiKeyItem:
    """A key without its value."""
    return ApiKeyItem(
        id=key.id,
        api_key=key.masked,
        name=key.name,
        role=key.role.value,
        workspace_name=key.workspace,
        user_name=key.user_name,
        description=key.description,
        validity=key.validity,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
    )


def workspace_item(workspace: Workspace) -> WorkspaceItem:
    """A workspace as listed."""
    return WorkspaceItem(
        name=workspace.name,
        max_clusters=len(workspace.clusters),
        clusters=workspace.clusters,
        namespaces=tuple(NamespaceItem(name, workspace.clusters) for name in workspace.namespaces),
    )
