"""Domain values ⇄ what the tables hold, mapped by hand.

Writing is total: whatever text a crashing model server printed or a manifest carried is stored, if
need be with the characters replaced that no database can hold. Reading is forgiving: a row written by
an older version lacks keys and gets the value's defaults, one written by a newer version has keys and
words that are skipped. So a rolling upgrade needs no rewriting of rows, and one odd row never takes the
list of all endpoints down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar

import msgspec

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    DEFAULT_SCALE_TO_ZERO_AFTER,
    REPLICAS_MAX,
    EndpointSpec,
    EndpointStatus,
    Exit,
    GpuNote,
    GpuSpec,
    InferenceEndpoint,
    Milestone,
    ModelInfo,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    Resources,
    RestartRecord,
    Revision,
    ScaleNote,
    Scaling,
    TrafficLimits,
)
from inferplane.domain.events import Event
from inferplane.domain.gpr_template import BoundCluster, GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import (
    EXIT_DURATION_DEFAULT,
    PRIORITY_DEFAULT,
    GpuRequest,
    Grant,
    ProvisioningStatus,
    Selection,
)
from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import (
    OBSERVE_DEFAULT,
    Guard,
    Rollout,
    RolloutNote,
    RolloutPhase,
    Strategy,
)
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import Cluster, Workspace, WorkspacePolicy

Raw = Mapping[str, Any]
"""One JSON object as read."""


class Row(Protocol):
    """One row by column name."""

    def __getitem__(self, column: str, /) -> Any: ...


E = TypeVar("E", bound=Enum)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """Whole microseconds since 1970 UTC. `at` must be aware."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC moment that `to_micros` came from."""
    return _EPOCH + timedelta(microseconds=micros)


# Rows


def endpoint_to_row(endpoint: InferenceEndpoint) -> dict[str, Any]:
    """All columns of `endpoints`."""
    return {
        "uid": endpoint.uid,
        "workspace": endpoint.workspace,
        "name": endpoint.name,
        "cluster": endpoint.cluster,
        "namespace": endpoint.namespace,
        "model_format": endpoint.spec.model.format,
        "spec": spec_to_json(endpoint.spec),
        "status": status_to_json(endpoint.status),
        "generation": endpoint.generation,
        "version": endpoint.version,
        "created_at": to_micros(endpoint.created_at),
        "created_by": endpoint.created_by,
        "deletion_requested_at": _micros(endpoint.deletion_requested_at),
        "deletion_requested_by": endpoint.deletion_requested_by,
    }


def endpoint_from_row(row: Row) -> InferenceEndpoint:
    """The endpoint in a row of `endpoints`."""
    uid = row["uid"]
    return InferenceEndpoint(
        uid=uid,
        workspace=row["workspace"],
        cluster=row["cluster"],
        name=row["name"],
        namespace=row["namespace"],
        spec=spec_from_json(row["spec"]),
        generation=row["generation"],
        created_at=from_micros(row["created_at"]),
        created_by=row["created_by"],
        status=status_from_json(row["status"], uid),
        deletion_requested_at=_moment(row["deletion_requested_at"]),
        deletion_requested_by=row["deletion_requested_by"],
        version=row["version"],
    )


def event_to_row(event: Event) -> dict[str, Any]:
    """All columns of `events` but `seq`, which the database gives."""
    return {
        "at": to_micros(event.at),
        "kind": event.kind,
        "message": event.message,
        "actor": event.actor,
        "workspace": event.workspace,
        "endpoint": event.endpoint,
        "endpoint_uid": event.endpoint_uid,
        "reason": event.reason.value if event.reason else "",
        "data": to_json(dict(event.data)),
        "gpu_request_id": event.gpu_request_id,
    }


def event_from_row(row: Row) -> Event:
    """The event in a row of `events`."""
    return Event(
        at=from_micros(row["at"]),
        kind=row["kind"],
        message=row["message"],
        actor=row["actor"],
        workspace=row["workspace"],
        endpoint=row["endpoint"],
        endpoint_uid=row["endpoint_uid"],
        reason=_enum(ReasonCode, row["reason"]),
        data=_mapping(from_json(row["data"])),
        seq=row["seq"],
        gpu_request_id=row["gpu_request_id"],
    )


def workspace_to_row(workspace: Workspace) -> dict[str, Any]:
    """All columns of `workspaces`."""
    return {
        "name": workspace.name,
        "clusters": to_json(list(workspace.clusters)),
        "namespaces": to_json(list(workspace.namespaces)),
        "username": workspace.username,
        "email": workspace.email,
        "created_at": to_micros(workspace.created_at),
    }


def workspace_from_row(row: Row) -> Workspace:
    """The workspace in a row of `workspaces`."""
    return Workspace(
        name=row["name"],
        clusters=_texts(from_json(row["clusters"])),
        created_at=from_micros(row["created_at"]),
        namespaces=_texts(from_json(row["namespaces"])),
        username=row["username"],
        email=row["email"],
    )


def cluster_to_row(cluster: Cluster) -> dict[str, Any]:
    """All columns of `clusters`."""
    return {
        "name": cluster.name,
        "engine": cluster.engine,
        "domain": cluster.domain,
        "created_at": to_micros(cluster.created_at),
    }


def cluster_from_row(row: Row) -> Cluster:
    """The cluster in a row of `clusters`."""
    return Cluster(
        name=row["name"],
        engine=row["engine"],
        created_at=from_micros(row["created_at"]),
        domain=row["domain"],
    )


def api_key_to_row(key: ApiKey) -> dict[str, Any]:
    """All columns of `api_keys`."""
    return {
        "id": key.id,
        "name": key.name,
        "digest": key.digest,
        "masked": key.masked,
        "role": key.role.value,
        "workspace": key.workspace,
        "created_at": to_micros(key.created_at),
        "expires_at": to_micros(key.expires_at),
        "created_by": key.created_by,
        "user_name": key.user_name,
        "description": key.description,
        "validity": key.validity,
        "last_used_at": _micros(key.last_used_at),
    }


def api_key_from_row(row: Row) -> ApiKey:
    """The key in a row of `api_keys`. A role this version does not know may only look."""
    return ApiKey(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        masked=row["masked"],
        role=_enum(Role, row["role"]) or Role.VIEWER,
        workspace=row["workspace"],
        created_at=from_micros(row["created_at"]),
        expires_at=from_micros(row["expires_at"]),
        created_by=row["created_by"],
        user_name=row["user_name"],
        description=row["description"],
        validity=row["validity"],
        last_used_at=_moment(row["last_used_at"]),
    )


# Spec


def spec_to_json(spec: EndpointSpec) -> str:
    """JSON text of a spec."""
    return to_json(
        {
            "model": _model_spec_to(spec.model),
            "scaling": {
                "min_replicas": spec.scaling.min_replicas,
                "max_replicas": spec.scaling.max_replicas,
                "target_concurrency": spec.scaling.target_concurrency,
                "target_rate": spec.scaling.target_rate,
                "scale_to_zero_after": _span(spec.scaling.scale_to_zero_after),
            },
            "limits": {
                "max_request_bytes": spec.limits.max_request_bytes,
                "timeout_seconds": spec.limits.timeout_seconds,
            },
            "revision": spec.revision,
            "stopped": spec.stopped,
            "stopped_by": spec.stopped_by,
            "stopped_at": _micros(spec.stopped_at),
            "stopped_because": spec.stopped_because,
            "manifest": None if spec.manifest is None else dict(spec.manifest),
            "gpu": _gpu_spec_to(spec.gpu),
            "qualified_host": spec.qualified_host,
            "revisions": [_revision_to(revision) for revision in spec.revisions],
            "rollout": _rollout_to(spec.rollout),
        }
    )


def spec_from_json(text: str) -> EndpointSpec:
    """The spec in `text`; what is missing or odd takes its default."""
    raw = _mapping(from_json(text))
    scaling, limits = (_mapping(raw.get(key)) for key in ("scaling", "limits"))
    manifest = raw.get("manifest")
    return EndpointSpec(
        model=_model_spec_from(raw.get("model")),
        scaling=Scaling(
            min_replicas=_whole(scaling, "min_replicas", 1),
            max_replicas=_whole(scaling, "max_replicas", 1),
            target_concurrency=_number_or_none(scaling, "target_concurrency"),
            target_rate=_number_or_none(scaling, "target_rate"),
            scale_to_zero_after=_duration_or(scaling, "scale_to_zero_after", DEFAULT_SCALE_TO_ZERO_AFTER),
        ),
        limits=TrafficLimits(
            max_request_bytes=_whole(limits, "max_request_bytes", _LIMITS.max_request_bytes),
            timeout_seconds=_number(limits, "timeout_seconds", _LIMITS.timeout_seconds),
        ),
        revision=_whole(raw, "revision", 1),
        stopped=raw.get("stopped") is True,
        stopped_by=_text(raw, "stopped_by"),
        stopped_at=_moment(raw.get("stopped_at")),
        stopped_because=_text(raw, "stopped_because"),
        manifest=manifest if isinstance(manifest, dict) else None,
        gpu=_gpu_spec_from(raw.get("gpu")),
        qualified_host=_flag(raw, "qualified_host"),
        revisions=_known(_revision_from(_mapping(item)) for item in _list(raw.get("revisions"))),
        rollout=_rollout_from(raw.get("rollout")),
    )


def _model_spec_to(model: ModelSpec) -> dict[str, Any]:
    return {
        "format": model.format,
        "storage_uri": model.storage_uri,
        "format_version": model.format_version,
        "runtime": model.runtime,
        "protocol_version": model.protocol_version,
        "args": model.args,
        "env": model.env,
        "resources": {
            "cpu_millis": model.resources.cpu_millis,
            "memory_bytes": model.resources.memory_bytes,
        },
        "digest": model.digest,
        "alias": model.alias,
        "start_timeout_seconds": model.start_timeout_seconds,
    }


def _model_spec_from(value: object) -> ModelSpec:
    raw = _mapping(value)
    resources = _mapping(raw.get("resources"))
    return ModelSpec(
        format=_text(raw, "format"),
        storage_uri=_text(raw, "storage_uri"),
        format_version=_text(raw, "format_version"),
        runtime=_text(raw, "runtime"),
        protocol_version=_text(raw, "protocol_version", "v1"),
        args=_texts(raw.get("args")),
        env=tuple((str(pair[0]), str(pair[1])) for pair in _list(raw.get("env")) if len(_list(pair)) == 2),
        resources=Resources(
            cpu_millis=_whole_or_none(resources, "cpu_millis"),
            memory_bytes=_whole_or_none(resources, "memory_bytes"),
        ),
        digest=_text(raw, "digest"),
        alias=_text(raw, "alias"),
        start_timeout_seconds=_number(raw, "start_timeout_seconds", _MODEL.start_timeout_seconds),
    )


def _revision_to(revision: Revision) -> dict[str, Any]:
    return {
        "number": revision.number,
        "model": _model_spec_to(revision.model),
        "created_at": to_micros(revision.created_at),
        "created_by": revision.created_by,
    }


def _revision_from(raw: Raw) -> Revision | None:
    number, at = _whole(raw, "number", 0), _moment(raw.get("created_at"))
    if number < 1 or at is None:
        return None
    return Revision(number, _model_spec_from(raw.get("model")), at, _text(raw, "created_by"))


def _rollout_to(rollout: Rollout | None) -> dict[str, Any] | None:
    if rollout is None:
        return None
    guard = rollout.guard
    return {
        "base": rollout.base,
        "canary_percent": rollout.canary_percent,
        "mirror_percent": rollout.mirror_percent,
        "sticky_header": rollout.sticky_header,
        "strategy": rollout.strategy.value,
        "observe": _span(rollout.observe),
        "guard": {
            "enabled": guard.enabled,
            "error_points": guard.error_points,
            "latency_factor": guard.latency_factor,
            "latency_least_ms": guard.latency_least_ms,
            "requests_min": guard.requests_min,
            "window": _span(guard.window),
        },
    }


def _rollout_from(value: object) -> Rollout | None:
    raw = _mapping(value)
    base = _whole(raw, "base", 0)
    if base < 1:
        return None
    guard = _mapping(raw.get("guard"))
    return Rollout(
        base=base,
        canary_percent=_whole_or_none(raw, "canary_percent"),
        mirror_percent=_whole(raw, "mirror_percent", 0),
        sticky_header=_text(raw, "sticky_header"),
        strategy=_enum(Strategy, raw.get("strategy")) or Strategy.START_THEN_STOP,
        observe=_duration(raw.get("observe")) or OBSERVE_DEFAULT,
        guard=Guard(
            enabled=_flag(guard, "enabled", default=True),
            error_points=_number(guard, "error_points", _GUARD.error_points),
            latency_factor=_number(guard, "latency_factor", _GUARD.latency_factor),
            latency_least_ms=_number(guard, "latency_least_ms", _GUARD.latency_least_ms),
            requests_min=_whole(guard, "requests_min", _GUARD.requests_min),
            window=_duration(guard.get("window")) or _GUARD.window,
        ),
    )


_GUARD = Guard()
_MODEL = ModelSpec(format="", storage_uri="")
_LIMITS = TrafficLimits()


# Status


def status_to_json(status: EndpointStatus) -> str:
    """JSON text of a status. A replica's endpoint is the row's own and is not repeated."""
    return to_json(
        {
            "observed_generation": status.observed_generation,
            "artifact": _artifact_to(status.artifact),
            "replicas": [_replica_to(replica) for replica in status.replicas],
            "restarts": [
                {
                    "replica": record.replica,
                    "failures": record.failures,
                    "last_exit": _exit_to(record.last_exit),
                    "next_start_at": to_micros(record.next_start_at),
                }
                for record in status.restarts
            ],
            "ends": status.ends,
            "routed": status.routed,
            "milestones": [(name.value, to_micros(at)) for name, at in status.milestones],
            "model": _model_to(status.model),
            "problem": status.problem.value if status.problem else None,
            "problem_message": status.problem_message,
            "left": status.left,
            "since": _micros(status.since),
            "gpu": _gpu_note_to(status.gpu),
            "rollout": _rollout_note_to(status.rollout),
            "scale": _scale_to(status.scale),
        }
    )


def status_from_json(text: str, endpoint_uid: str) -> EndpointStatus:
    """The status in `text`; what is missing or odd takes its default, what is unknown is skipped."""
    raw = _mapping(from_json(text))
    return EndpointStatus(
        observed_generation=_whole(raw, "observed_generation", 0),
        artifact=_artifact_from(_mapping(raw.get("artifact"))),
        replicas=_known(_replica_from(_mapping(item), endpoint_uid) for item in _list(raw.get("replicas"))),
        restarts=_known(_restart_from(_mapping(item)) for item in _list(raw.get("restarts"))),
        ends=_known(_count_from(item) for item in _list(raw.get("ends"))),
        routed=_texts(raw.get("routed")),
        milestones=_known(_milestone_from(item) for item in _list(raw.get("milestones"))),
        model=_model_from(raw.get("model")),
        problem=_enum(ReasonCode, raw.get("problem")),
        problem_message=_text(raw, "problem_message"),
        left=_texts(raw.get("left")),
        since=_moment(raw.get("since")),
        gpu=_gpu_note_from(raw.get("gpu")),
        rollout=_rollout_note_from(raw.get("rollout")),
        scale=_scale_from(raw.get("scale")),
    )


def _scale_to(scale: ScaleNote | None) -> dict[str, Any] | None:
    if scale is None:
        return None
    return {
        "replicas": scale.replicas,
        "message": scale.message,
        "since": _micros(scale.since),
        "last_request_at": _micros(scale.last_request_at),
        "waking_since": _micros(scale.waking_since),
        "wake_seconds": scale.wake_seconds,
    }


def _scale_from(value: object) -> ScaleNote | None:
    raw = _mapping(value)
    replicas = _whole_or_none(raw, "replicas")
    if replicas is None or not 0 <= replicas <= REPLICAS_MAX:
        return None
    return ScaleNote(
        replicas,
        _text(raw, "message"),
        since=_moment(raw.get("since")),
        last_request_at=_moment(raw.get("last_request_at")),
        waking_since=_moment(raw.get("waking_since")),
        wake_seconds=_number_or_none(raw, "wake_seconds"),
    )


def _rollout_note_to(note: RolloutNote | None) -> dict[str, Any] | None:
    if note is None:
        return None
    return {
        "base": note.base,
        "candidate": note.candidate,
        "phase": note.phase.value,
        "since": to_micros(note.since),
        "message": note.message,
    }


def _rollout_note_from(value: object) -> RolloutNote | None:
    raw = _mapping(value)
    phase, since = _enum(RolloutPhase, raw.get("phase")), _moment(raw.get("since"))
    if phase is None or since is None:
        return None
    base, candidate = _whole(raw, "base", 0), _whole(raw, "candidate", 0)
    return RolloutNote(base, candidate, phase, since, _text(raw, "message"))


def _artifact_to(artifact: ArtifactState) -> dict[str, Any]:
    return {
        "phase": artifact.phase.value,
        "uri": artifact.uri,
        "path": artifact.path,
        "digest": artifact.digest,
        "received_bytes": artifact.received_bytes,
        "total_bytes": artifact.total_bytes,
        "resumed_from_bytes": artifact.resumed_from_bytes,
        "rate_bytes_per_second": artifact.rate_bytes_per_second,
        "started_at": _micros(artifact.started_at),
        "finished_at": _micros(artifact.finished_at),
        "reason": artifact.reason.value if artifact.reason else None,
        "message": artifact.message,
        "attempts": artifact.attempts,
        "next_attempt_at": _micros(artifact.next_attempt_at),
    }


def _artifact_from(raw: Raw) -> ArtifactState:
    return ArtifactState(
        phase=_enum(ArtifactPhase, raw.get("phase")) or ArtifactPhase.ABSENT,
        uri=_text(raw, "uri"),
        path=_text(raw, "path"),
        digest=_text(raw, "digest"),
        received_bytes=_whole(raw, "received_bytes", 0),
        total_bytes=_whole_or_none(raw, "total_bytes"),
        resumed_from_bytes=_whole(raw, "resumed_from_bytes", 0),
        rate_bytes_per_second=_number(raw, "rate_bytes_per_second", 0.0),
        started_at=_moment(raw.get("started_at")),
        finished_at=_moment(raw.get("finished_at")),
        reason=_enum(ReasonCode, raw.get("reason")),
        message=_text(raw, "message"),
        attempts=_whole(raw, "attempts", 0),
        next_attempt_at=_moment(raw.get("next_attempt_at")),
    )


def _replica_to(replica: Replica) -> dict[str, Any]:
    return {
        "revision": replica.id.revision,
        "index": replica.id.index,
        "state": replica.state.value,
        "address": replica.address,
        "pid": replica.pid,
        "started_at": _micros(replica.started_at),
        "ready_at": _micros(replica.ready_at),
        "exit": None if replica.exit is None else _exit_to(replica.exit),
        "model": _model_to(replica.model),
    }


def _replica_from(raw: Raw, endpoint_uid: str) -> Replica | None:
    """None for a replica in a state this version does not know: the engine will observe it again."""
    state = _enum(ReplicaState, raw.get("state"))
    revision, index = _whole_or_none(raw, "revision"), _whole_or_none(raw, "index")
    if state is None or revision is None or index is None:
        return None
    return Replica(
        id=ReplicaId(endpoint_uid, revision, index),
        state=state,
        address=_text(raw, "address"),
        pid=_whole_or_none(raw, "pid"),
        started_at=_moment(raw.get("started_at")),
        ready_at=_moment(raw.get("ready_at")),
        exit=_exit_from(raw.get("exit")),
        model=_model_from(raw.get("model")),
    )


def _exit_to(ended: Exit) -> dict[str, Any]:
    return {
        "at": to_micros(ended.at),
        "exit_code": ended.exit_code,
        "signal": ended.signal,
        "reason": ended.reason.value,
        "message": ended.message,
        "log_tail": ended.log_tail,
    }


def _exit_from(value: object) -> Exit | None:
    raw = _mapping(value)
    at = _moment(raw.get("at"))
    if at is None:
        return None
    return Exit(
        at=at,
        exit_code=_whole_or_none(raw, "exit_code"),
        signal=_text(raw, "signal"),
        reason=_enum(ReasonCode, raw.get("reason")) or ReasonCode.SERVER_EXITED,
        message=_text(raw, "message"),
        log_tail=_texts(raw.get("log_tail")),
    )


def _restart_from(raw: Raw) -> RestartRecord | None:
    last_exit, next_start_at = _exit_from(raw.get("last_exit")), _moment(raw.get("next_start_at"))
    if last_exit is None or next_start_at is None:
        return None
    return RestartRecord(
        replica=_text(raw, "replica"),
        failures=_whole(raw, "failures", 1),
        last_exit=last_exit,
        next_start_at=next_start_at,
    )


def _count_from(value: object) -> tuple[str, int] | None:
    match _list(value):
        case [str(name), int(count)]:
            return name, count
    return None


def _milestone_from(value: object) -> tuple[Milestone, datetime] | None:
    pair = _list(value)
    if len(pair) != 2:
        return None
    name, at = _enum(Milestone, pair[0]), _moment(pair[1])
    return None if name is None or at is None else (name, at)


def _model_to(model: ModelInfo | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {
        "example": model.example,
        "inputs": [dict(item) for item in model.inputs],
        "outputs": [dict(item) for item in model.outputs],
        "protocols": model.protocols,
        "note": model.note,
    }


def _model_from(value: object) -> ModelInfo | None:
    if not isinstance(value, dict):
        return None
    return ModelInfo(
        example=_text(value, "example"),
        inputs=tuple(_mapping(item) for item in _list(value.get("inputs"))),
        outputs=tuple(_mapping(item) for item in _list(value.get("outputs"))),
        protocols=_texts(value.get("protocols")) if "protocols" in value else ("v1", "v2"),
        note=_text(value, "note"),
    )


def _gpu_spec_to(gpu: GpuSpec | None) -> dict[str, Any] | None:
    if gpu is None:
        return None
    return {
        "selection": _selection_to(gpu.selection),
        "exit_duration": _span(gpu.exit_duration),
        "priority": gpu.priority,
        "idle_timeout": _span(gpu.idle_timeout),
        "enforce_idle": gpu.enforce_idle,
        "auto_renew": gpu.auto_renew,
        "enable_eviction": gpu.enable_eviction,
        "requeue_on_failure": gpu.requeue_on_failure,
    }


def _gpu_spec_from(value: object) -> GpuSpec | None:
    if not isinstance(value, dict):
        return None
    return GpuSpec(
        selection=_selection_from(_mapping(value.get("selection"))),
        exit_duration=_exit_duration(value),
        priority=_whole(value, "priority", PRIORITY_DEFAULT),
        idle_timeout=_duration(value.get("idle_timeout")),
        enforce_idle=_flag(value, "enforce_idle"),
        auto_renew=_flag(value, "auto_renew", default=True),
        enable_eviction=_flag(value, "enable_eviction"),
        requeue_on_failure=_flag(value, "requeue_on_failure"),
    )


def _gpu_note_to(note: GpuNote | None) -> dict[str, Any] | None:
    if note is None:
        return None
    return {
        "gpr_id": note.gpr_id,
        "status": note.status.value,
        "cluster": note.cluster,
        "nodes": note.nodes,
        "position": note.position,
        "message": note.message,
        "estimated_start": _micros(note.estimated_start),
        "since": _micros(note.since),
        "ended_reason": note.ended_reason.value if note.ended_reason else None,
        "requeues": note.requeues,
        "assumption": note.assumption,
        "remedy": note.remedy,
        "reason": note.reason.value,
    }


def _gpu_note_from(value: object) -> GpuNote | None:
    """None for a request in a status this version does not know: its controller will look again."""
    raw = _mapping(value)
    status = _enum(ProvisioningStatus, raw.get("status"))
    if status is None:
        return None
    return GpuNote(
        gpr_id=_text(raw, "gpr_id"),
        status=status,
        cluster=_text(raw, "cluster"),
        nodes=_node_gpus(raw.get("nodes")),
        position=_whole_or_none(raw, "position"),
        message=_text(raw, "message"),
        estimated_start=_moment(raw.get("estimated_start")),
        since=_moment(raw.get("since")),
        ended_reason=_enum(ReasonCode, raw.get("ended_reason")),
        requeues=_flag(raw, "requeues"),
        assumption=_text(raw, "assumption"),
        remedy=_text(raw, "remedy"),
        reason=_enum(ReasonCode, raw.get("reason")) or ReasonCode.AWAITING_GPU,
    )


# GPU requests, and what they are decided from


def gpu_request_to_row(request: GpuRequest) -> dict[str, Any]:
    """All columns of `gpu_requests` but `wait`, which has its own writer."""
    return {
        "id": request.id,
        "workspace": request.workspace,
        "endpoint_uid": request.endpoint_uid,
        "endpoint_name": request.endpoint_name,
        "status": request.status.value,
        "live": 0 if request.has_ended else 1,
        "created_at": to_micros(request.created_at),
        "version": request.version,
        "body": to_json(
            {
                "name": request.name,
                "selection": _selection_to(request.selection),
                "queued_at": to_micros(request.queued_at),
                "exit_duration": _span(request.exit_duration),
                "priority": request.priority,
                "created_by": request.created_by,
                "idle_timeout": _span(request.idle_timeout),
                "enforce_idle": request.enforce_idle,
                "enable_eviction": request.enable_eviction,
                "requeue_on_failure": request.requeue_on_failure,
                "auto_renew": request.auto_renew,
                "multi_node": request.multi_node,
                "dedicated_nodes": request.dedicated_nodes,
                "enable_rdma": request.enable_rdma,
                "enable_secondary_network": request.enable_secondary_network,
                "grant": _grant_to(request.grant),
                "granted_at": _micros(request.granted_at),
                "started_at": _micros(request.started_at),
                "renewed_until": _micros(request.renewed_until),
                "idle_since": _micros(request.idle_since),
                "draining_since": _micros(request.draining_since),
                "completed_at": _micros(request.completed_at),
                "ending_as": request.ending_as.value if request.ending_as else None,
                "early_release": request.early_release,
                "failure_reason": request.failure_reason,
                "failure_code": request.failure_code.value if request.failure_code else None,
                "released_by": request.released_by,
                "evicted_by": request.evicted_by,
                "evicted_at": _micros(request.evicted_at),
                "retry_count": request.retry_count,
                "delayed_count": request.delayed_count,
            }
        ),
    }


def gpu_request_from_row(row: Row) -> GpuRequest:
    """The request in a row of `gpu_requests`.

    In a status that this version does not know it keeps what GPUs it was given (it is Draining), or,
    without any, asks for none (it has Failed): nothing is granted twice because a word is new.
    """
    raw = _mapping(from_json(row["body"]))
    grant = _grant_from(raw.get("grant"))
    created_at = from_micros(row["created_at"])
    unknown = ProvisioningStatus.FAILED if grant is None else ProvisioningStatus.DRAINING
    return GpuRequest(
        id=row["id"],
        name=_text(raw, "name"),
        workspace=row["workspace"],
        selection=_selection_from(_mapping(raw.get("selection"))),
        created_at=created_at,
        queued_at=_moment(raw.get("queued_at")) or created_at,
        exit_duration=_exit_duration(raw),
        priority=_whole(raw, "priority", PRIORITY_DEFAULT),
        created_by=_text(raw, "created_by"),
        endpoint_uid=row["endpoint_uid"],
        endpoint_name=row["endpoint_name"],
        idle_timeout=_duration(raw.get("idle_timeout")),
        enforce_idle=_flag(raw, "enforce_idle"),
        enable_eviction=_flag(raw, "enable_eviction"),
        requeue_on_failure=_flag(raw, "requeue_on_failure"),
        auto_renew=_flag(raw, "auto_renew"),
        multi_node=_flag(raw, "multi_node"),
        dedicated_nodes=_flag(raw, "dedicated_nodes"),
        enable_rdma=_flag(raw, "enable_rdma"),
        enable_secondary_network=_flag(raw, "enable_secondary_network"),
        status=_enum(ProvisioningStatus, row["status"]) or unknown,
        grant=grant,
        granted_at=_moment(raw.get("granted_at")),
        started_at=_moment(raw.get("started_at")),
        renewed_until=_moment(raw.get("renewed_until")),
        idle_since=_moment(raw.get("idle_since")),
        draining_since=_moment(raw.get("draining_since")),
        completed_at=_moment(raw.get("completed_at")),
        ending_as=_enum(ProvisioningStatus, raw.get("ending_as")),
        early_release=_flag(raw, "early_release"),
        failure_reason=_text(raw, "failure_reason"),
        failure_code=_enum(ReasonCode, raw.get("failure_code")),
        released_by=_text(raw, "released_by"),
        evicted_by=_text(raw, "evicted_by"),
        evicted_at=_moment(raw.get("evicted_at")),
        retry_count=_whole(raw, "retry_count", 0),
        delayed_count=_whole(raw, "delayed_count", 0),
        version=row["version"],
    )


def wait_note_to_json(note: WaitNote) -> str:
    """JSON text of a wait note."""
    return to_json(
        {
            "position": note.position,
            "explanation": note.explanation,
            "estimated_start": _micros(note.estimated_start),
            "assumption": note.assumption,
            "at": to_micros(note.at),
            "remedy": note.remedy,
            "reason": note.reason.value,
        }
    )


def wait_note_from_json(text: str) -> WaitNote | None:
    """The wait note in `text`, or None when it does not even say when it was said."""
    raw = _mapping(from_json(text))
    at = _moment(raw.get("at"))
    if at is None:
        return None
    return WaitNote(
        position=_whole_or_none(raw, "position"),
        explanation=_text(raw, "explanation"),
        estimated_start=_moment(raw.get("estimated_start")),
        assumption=_text(raw, "assumption"),
        at=at,
        remedy=_text(raw, "remedy"),
        reason=_enum(ReasonCode, raw.get("reason")) or ReasonCode.AWAITING_GPU,
    )


def usage_from_json(text: str) -> dict[str, float]:
    """GPU-seconds by workspace; what is no number is left out."""
    raw = _mapping(from_json(text))
    return {workspace: _number(raw, workspace, 0.0) for workspace in raw}


def policy_to_row(policy: WorkspacePolicy) -> dict[str, Any]:
    """All columns of `workspace_policies`."""
    body = {
        "priority_lowest": policy.priority_lowest,
        "priority_highest": policy.priority_highest,
        "max_requests": policy.max_requests,
        "max_queued": policy.max_queued,
        "max_exit_duration": _span(policy.max_exit_duration),
        "gpu_shapes": policy.gpu_shapes,
        "max_gpus_per_request": policy.max_gpus_per_request,
        "max_memory_gb_per_request": policy.max_memory_gb_per_request,
        "max_endpoints": policy.max_endpoints,
        "requeue_on_failure": policy.requeue_on_failure,
        "auto_eviction": policy.auto_eviction,
        "enforce_idle_timeout": policy.enforce_idle_timeout,
    }
    return {"workspace": policy.workspace, "body": to_json(body)}


def policy_from_row(row: Row) -> WorkspacePolicy:
    """The policy in a row of `workspace_policies`."""
    raw = _mapping(from_json(row["body"]))
    return WorkspacePolicy(
        workspace=row["workspace"],
        priority_lowest=_whole(raw, "priority_lowest", _POLICY.priority_lowest),
        priority_highest=_whole(raw, "priority_highest", _POLICY.priority_highest),
        max_requests=_whole_or_none(raw, "max_requests"),
        max_queued=_whole(raw, "max_queued", _POLICY.max_queued),
        max_exit_duration=_duration(raw.get("max_exit_duration")),
        gpu_shapes=_texts(raw.get("gpu_shapes")),
        max_gpus_per_request=_whole_or_none(raw, "max_gpus_per_request"),
        max_memory_gb_per_request=_whole_or_none(raw, "max_memory_gb_per_request"),
        max_endpoints=_whole_or_none(raw, "max_endpoints"),
        requeue_on_failure=_flag(raw, "requeue_on_failure"),
        auto_eviction=_flag(raw, "auto_eviction"),
        enforce_idle_timeout=_flag(raw, "enforce_idle_timeout"),
    )


_POLICY = WorkspacePolicy("")


def template_to_row(template: GprTemplate) -> dict[str, Any]:
    """All columns of `gpr_templates`."""
    body = {
        "cluster": template.cluster,
        "gpus_per_node": template.gpus_per_node,
        "nodes": template.nodes,
        "memory_gb": template.memory_gb,
        "gpu_shape": template.gpu_shape,
        "instance_type": template.instance_type,
        "exit_duration": _span(template.exit_duration),
        "priority": template.priority,
        "enforce_idle": template.enforce_idle,
        "idle_timeout": _span(template.idle_timeout),
        "enable_eviction": template.enable_eviction,
        "requeue_on_failure": template.requeue_on_failure,
    }
    return {"name": template.name, "body": to_json(body)}


def template_from_row(row: Row) -> GprTemplate:
    """The template in a row of `gpr_templates`."""
    raw = _mapping(from_json(row["body"]))
    return GprTemplate(
        name=row["name"],
        cluster=_text(raw, "cluster"),
        gpus_per_node=_whole(raw, "gpus_per_node", 1),
        nodes=_whole(raw, "nodes", 1),
        memory_gb=_whole(raw, "memory_gb", 0),
        gpu_shape=_text(raw, "gpu_shape"),
        instance_type=_text(raw, "instance_type"),
        exit_duration=_exit_duration(raw),
        priority=_whole(raw, "priority", PRIORITY_DEFAULT),
        enforce_idle=_flag(raw, "enforce_idle"),
        idle_timeout=_duration(raw.get("idle_timeout")),
        enable_eviction=_flag(raw, "enable_eviction"),
        requeue_on_failure=_flag(raw, "requeue_on_failure"),
    )


def binding_to_row(binding: GprTemplateBinding) -> dict[str, Any]:
    """All columns of `gpr_template_bindings`."""
    body = {
        "clusters": [
            {"cluster": each.cluster, "default_template": each.default_template, "templates": each.templates}
            for each in binding.clusters
        ],
        "enable_auto_gpr": binding.enable_auto_gpr,
    }
    return {"workspace": binding.workspace, "body": to_json(body)}


def binding_from_row(row: Row) -> GprTemplateBinding:
    """The binding in a row of `gpr_template_bindings`."""
    raw = _mapping(from_json(row["body"]))
    bound = [_mapping(each) for each in _list(raw.get("clusters"))]
    return GprTemplateBinding(
        workspace=row["workspace"],
        clusters=tuple(
            BoundCluster(
                cluster=_text(each, "cluster"),
                default_template=_text(each, "default_template"),
                templates=_texts(each.get("templates")),
            )
            for each in bound
        ),
        enable_auto_gpr=_flag(raw, "enable_auto_gpr"),
    )


def node_to_row(node: Node) -> dict[str, Any]:
    """All columns of `nodes`."""
    body = {
        "instance_type": node.instance_type,
        "gpu_shape": node.gpu_shape,
        "gpu_count": node.gpu_count,
        "memory_gb": node.memory_gb,
        "health": node.health.value,
        "simulated": node.simulated,
        "gpus": [
            {"index": gpu.index, "uuid": gpu.uuid, "model_name": gpu.model_name, "healthy": gpu.healthy}
            for gpu in node.gpus
        ],
        "gpu_model_name": node.gpu_model_name,
        "cloud_provider": node.cloud_provider,
        "region": node.region,
        "host": node.host,
    }
    return {"cluster": node.cluster, "name": node.name, "body": to_json(body)}


def node_from_row(row: Row) -> Node:
    """The node in a row of `nodes`. In a state of health that is not known nothing is placed on it."""
    raw = _mapping(from_json(row["body"]))
    return Node(
        cluster=row["cluster"],
        name=row["name"],
        instance_type=_text(raw, "instance_type"),
        gpu_shape=_text(raw, "gpu_shape"),
        gpu_count=_whole(raw, "gpu_count", 0),
        memory_gb=_whole(raw, "memory_gb", 0),
        health=_enum(NodeHealth, raw.get("health")) or NodeHealth.UNHEALTHY,
        simulated=_flag(raw, "simulated"),
        gpus=_known(_gpu_from(_mapping(each)) for each in _list(raw.get("gpus"))),
        gpu_model_name=_text(raw, "gpu_model_name"),
        cloud_provider=_text(raw, "cloud_provider"),
        region=_text(raw, "region"),
        host=_text(raw, "host"),
    )


def _gpu_from(raw: Raw) -> Gpu | None:
    index = _whole_or_none(raw, "index")
    if index is None:
        return None
    return Gpu(
        index=index,
        uuid=_text(raw, "uuid"),
        model_name=_text(raw, "model_name"),
        healthy=_flag(raw, "healthy", default=True),
    )


def _selection_to(selection: Selection) -> dict[str, Any]:
    return {
        "cluster_name": selection.cluster_name,
        "preferred_clusters": selection.preferred_clusters,
        "auto_cluster": selection.auto_cluster,
        "auto_gpu": selection.auto_gpu,
        "gpu_shape": selection.gpu_shape,
        "instance_type": selection.instance_type,
        "memory_gb": selection.memory_gb,
        "gpus_per_node": selection.gpus_per_node,
        "nodes": selection.nodes,
    }


def _selection_from(raw: Raw) -> Selection:
    return Selection(
        cluster_name=_text(raw, "cluster_name"),
        preferred_clusters=_texts(raw.get("preferred_clusters")),
        auto_cluster=_flag(raw, "auto_cluster"),
        auto_gpu=_flag(raw, "auto_gpu"),
        gpu_shape=_text(raw, "gpu_shape"),
        instance_type=_text(raw, "instance_type"),
        memory_gb=_whole(raw, "memory_gb", 0),
        gpus_per_node=_whole(raw, "gpus_per_node", 1),
        nodes=_whole(raw, "nodes", 1),
    )


def _grant_to(grant: Grant | None) -> dict[str, Any] | None:
    if grant is None:
        return None
    return {
        "cluster": grant.cluster,
        "nodes": grant.nodes,
        "gpu_shape": grant.gpu_shape,
        "instance_type": grant.instance_type,
        "memory_gb": grant.memory_gb,
    }


def _grant_from(value: object) -> Grant | None:
    if not isinstance(value, dict):
        return None
    return Grant(
        cluster=_text(value, "cluster"),
        nodes=_node_gpus(value.get("nodes")),
        gpu_shape=_text(value, "gpu_shape"),
        instance_type=_text(value, "instance_type"),
        memory_gb=_whole(value, "memory_gb", 0),
    )


def _node_gpus(value: object) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(node, GPU indexes) pairs."""
    pairs = [pair for pair in map(_list, _list(value)) if len(pair) == 2]
    return tuple((str(node), tuple(filter(_is_whole, _list(indexes)))) for node, indexes in pairs)


# JSON


def to_json(value: Any) -> str:
    """JSON text of `value`. What JSON or a database cannot hold is replaced, never refused."""
    try:
        return _ENCODER.encode(value).decode()
    except (TypeError, ValueError, OverflowError):
        # ValueError includes UnicodeEncodeError: half a surrogate pair, from a log or a file name.
        return _ENCODER.encode(_plain(value)).decode()


def from_json(text: str) -> Any:
    """What `text` says, or None when it is no JSON (a row damaged by hand)."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:
        return None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder()
_WHOLE_MIN, _WHOLE_MAX = -(2**63), 2**64 - 1


def _plain(value: Any) -> Any:
    """`value` in nothing but JSON's own types; the slow path of `to_json`."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case None | bool() | float():
            return value
        case int():
            return int(value) if _WHOLE_MIN <= value <= _WHOLE_MAX else str(value)
        case Mapping():
            return {_plain(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return _plain(str(value))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in _list(value))


T = TypeVar("T")


def _known(values: Iterable[T | None]) -> tuple[T, ...]:
    return tuple(value for value in values if value is not None)


def _text(raw: Raw, key: str, default: str = "") -> str:
    value = raw.get(key)
    return value if isinstance(value, str) else default


def _whole(raw: Raw, key: str, default: int) -> int:
    value = _whole_or_none(raw, key)
    return default if value is None else value


def _whole_or_none(raw: Raw, key: str) -> int | None:
    value = raw.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(raw: Raw, key: str, *, default: bool = False) -> bool:
    value = raw.get(key)
    return value if isinstance(value, bool) else default


def _number_or_none(raw: Raw, key: str) -> float | None:
    value = _number(raw, key, math.nan)
    return None if math.isnan(value) else value


def _number(raw: Raw, key: str, default: float) -> float:
    value = raw.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return default
    try:
        return float(value)
    except OverflowError:
        return default


def _enum(kind: type[E], value: object) -> E | None:
    try:
        return kind(value)
    except ValueError:
        return None


def _micros(at: datetime | None) -> int | None:
    return None if at is None else to_micros(at)


def _span(duration: timedelta | None) -> int | None:
    """Whole microseconds."""
    return None if duration is None else duration // _MICROSECOND


def _duration_or(raw: Raw, key: str, default: timedelta) -> timedelta:
    duration = _duration(raw.get(key))
    return default if duration is None else duration


def _duration(value: object) -> timedelta | None:
    """What `_span` came from; None for what is no duration."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return timedelta(microseconds=value)
    except OverflowError:
        return None


def _exit_duration(raw: Raw) -> timedelta:
    duration = _duration(raw.get("exit_duration"))
    return EXIT_DURATION_DEFAULT if duration is None else duration


def _moment(value: object) -> datetime | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return from_micros(value)
    except OverflowError:
        return None
