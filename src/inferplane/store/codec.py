"""Domain values ⇄ what the tables hold, mapped by hand.

Writing is total: whatever text a crashing model server printed or a manifest carried is stored, if
need be with the characters replaced that no database can hold. Reading is forgiving: a row written by
an older version lacks keys and gets the value's defaults, one written by a newer version has keys and
words that are skipped. So a rolling upgrade needs no rewriting of rows, and one odd row never takes the
list of all endpoints down.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.cluster import ClusterConnection, ClusterReport, Drift
from inferplane.domain.endpoint import (
    DEFAULT_SCALE_TO_ZERO_AFTER,
    REPLICAS_MAX,
    EndpointSpec,
    EndpointStatus,
    Exit,
    GpuNote,
    GpuSpec,
    InferenceEndpoint,
    Ingress,
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
    Waiting,
)
from inferplane.domain.endpoint_access import Access
from inferplane.domain.events import Event
from inferplane.domain.gpu_request import (
    PRIORITY_DEFAULT,
    ProvisioningStatus,
)
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import (
    OBSERVE_DEFAULT,
    Guard,
    Rollout,
    RolloutNote,
    RolloutPhase,
    Strategy,
)
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.store.gpu_codec import (
    exit_duration_from,
    node_gpus_from,
    selection_from,
    selection_to,
)
from inferplane.store.values import (
    Raw,
    Row,
    duration_of,
    duration_or,
    enum_of,
    flag_of,
    from_json,
    from_micros,
    known,
    list_of,
    mapping_of,
    micros_of,
    moment_of,
    number_of,
    number_or_none,
    span_of,
    text_of,
    texts_of,
    to_json,
    to_micros,
    whole_of,
    whole_or_none,
)

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
        "deletion_requested_at": micros_of(endpoint.deletion_requested_at),
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
        deletion_requested_at=moment_of(row["deletion_requested_at"]),
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
        reason=enum_of(ReasonCode, row["reason"]),
        data=mapping_of(from_json(row["data"])),
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
        clusters=texts_of(from_json(row["clusters"])),
        created_at=from_micros(row["created_at"]),
        namespaces=texts_of(from_json(row["namespaces"])),
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
        "ingress_address": cluster.ingress_address,
        "connection": None if cluster.connection is None else _connection_to_json(cluster.connection),
        "report": None if cluster.report is None else report_to_json(cluster.report),
    }


def cluster_from_row(row: Row) -> Cluster:
    """The cluster in a row of `clusters`."""
    return Cluster(
        name=row["name"],
        engine=row["engine"],
        created_at=from_micros(row["created_at"]),
        domain=row["domain"],
        ingress_address=row["ingress_address"],
        connection=None if row["connection"] is None else _connection_from_json(row["connection"]),
        report=None if row["report"] is None else _report_from_json(row["report"]),
    )


def _connection_to_json(connection: ClusterConnection) -> str:
    return to_json(
        {
            "kubeconfig": connection.kubeconfig,
            "context": connection.context,
            "in_cluster": connection.in_cluster,
            "drift": connection.drift.value,
            "declared": connection.declared,
        }
    )


def _connection_from_json(text: str) -> ClusterConnection:
    raw = mapping_of(from_json(text))
    return ClusterConnection(
        kubeconfig=text_of(raw, "kubeconfig"),
        context=text_of(raw, "context"),
        in_cluster=flag_of(raw, "in_cluster"),
        drift=enum_of(Drift, raw.get("drift")) or Drift.RESTORE,
        declared=flag_of(raw, "declared"),
    )


def report_to_json(report: ClusterReport) -> str:
    """What the column `report` holds."""
    return to_json(
        {
            "at": to_micros(report.at),
            "reachable": report.reachable,
            "since": to_micros(report.since),
            "message": report.message,
            "server": report.server,
            "version": report.version,
            "kserve_version": report.kserve_version,
            "kserve_mode": report.kserve_mode,
            "runtimes": report.runtimes,
            "checks": [
                {
                    "check": each.check,
                    "ok": each.ok,
                    "reason": None if each.reason is None else each.reason.value,
                    "message": each.message,
                    "next_action": each.next_action,
                }
                for each in report.checks
            ],
        }
    )


def _report_from_json(text: str) -> ClusterReport | None:
    raw = mapping_of(from_json(text))
    at = moment_of(raw.get("at"))
    if at is None:
        return None
    return ClusterReport(
        at=at,
        reachable=flag_of(raw, "reachable"),
        since=moment_of(raw.get("since")) or at,
        message=text_of(raw, "message"),
        server=text_of(raw, "server"),
        version=text_of(raw, "version"),
        kserve_version=text_of(raw, "kserve_version"),
        kserve_mode=text_of(raw, "kserve_mode"),
        runtimes=texts_of(raw.get("runtimes")),
        checks=tuple(_check_from(mapping_of(each)) for each in list_of(raw.get("checks"))),
    )


def _check_from(raw: Raw) -> Check:
    return Check(
        check=text_of(raw, "check"),
        ok=flag_of(raw, "ok"),
        reason=enum_of(ReasonCode, raw.get("reason")),
        message=text_of(raw, "message"),
        next_action=text_of(raw, "next_action"),
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
        "last_used_at": micros_of(key.last_used_at),
    }


def api_key_from_row(row: Row) -> ApiKey:
    """The key in a row of `api_keys`. A role this version does not know may only look."""
    return ApiKey(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        masked=row["masked"],
        role=enum_of(Role, row["role"]) or Role.VIEWER,
        workspace=row["workspace"],
        created_at=from_micros(row["created_at"]),
        expires_at=from_micros(row["expires_at"]),
        created_by=row["created_by"],
        user_name=row["user_name"],
        description=row["description"],
        validity=row["validity"],
        last_used_at=moment_of(row["last_used_at"]),
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
                "scale_to_zero_after": span_of(spec.scaling.scale_to_zero_after),
            },
            "limits": {
                "max_request_bytes": spec.limits.max_request_bytes,
                "timeout_seconds": spec.limits.timeout_seconds,
                "requests_per_second": spec.limits.requests_per_second,
                "burst": spec.limits.burst,
                "requests_per_second_per_key": spec.limits.requests_per_second_per_key,
                "concurrency_max": spec.limits.concurrency_max,
                "concurrency_max_per_key": spec.limits.concurrency_max_per_key,
            },
            "revision": spec.revision,
            "stopped": spec.stopped,
            "stopped_by": spec.stopped_by,
            "stopped_at": micros_of(spec.stopped_at),
            "stopped_because": spec.stopped_because,
            "manifest": None if spec.manifest is None else dict(spec.manifest),
            "gpu": _gpu_spec_to(spec.gpu),
            "qualified_host": spec.qualified_host,
            "access": spec.access.value,
            "revisions": [_revision_to(revision) for revision in spec.revisions],
            "rollout": _rollout_to(spec.rollout),
        }
    )


def spec_from_json(text: str) -> EndpointSpec:
    """The spec in `text`; what is missing or odd takes its default."""
    raw = mapping_of(from_json(text))
    scaling, limits = (mapping_of(raw.get(key)) for key in ("scaling", "limits"))
    manifest = raw.get("manifest")
    return EndpointSpec(
        model=_model_spec_from(raw.get("model")),
        scaling=Scaling(
            min_replicas=whole_of(scaling, "min_replicas", 1),
            max_replicas=whole_of(scaling, "max_replicas", 1),
            target_concurrency=number_or_none(scaling, "target_concurrency"),
            target_rate=number_or_none(scaling, "target_rate"),
            scale_to_zero_after=duration_or(scaling, "scale_to_zero_after", DEFAULT_SCALE_TO_ZERO_AFTER),
        ),
        limits=TrafficLimits(
            max_request_bytes=whole_of(limits, "max_request_bytes", _LIMITS.max_request_bytes),
            timeout_seconds=number_of(limits, "timeout_seconds", _LIMITS.timeout_seconds),
            requests_per_second=number_or_none(limits, "requests_per_second"),
            burst=whole_or_none(limits, "burst"),
            requests_per_second_per_key=number_or_none(limits, "requests_per_second_per_key"),
            concurrency_max=whole_or_none(limits, "concurrency_max"),
            concurrency_max_per_key=whole_or_none(limits, "concurrency_max_per_key"),
        ),
        revision=whole_of(raw, "revision", 1),
        stopped=raw.get("stopped") is True,
        stopped_by=text_of(raw, "stopped_by"),
        stopped_at=moment_of(raw.get("stopped_at")),
        stopped_because=text_of(raw, "stopped_because"),
        manifest=manifest if isinstance(manifest, dict) else None,
        gpu=_gpu_spec_from(raw.get("gpu")),
        qualified_host=flag_of(raw, "qualified_host"),
        access=_access_from(raw),
        revisions=known(_revision_from(mapping_of(item)) for item in list_of(raw.get("revisions"))),
        rollout=_rollout_from(raw.get("rollout")),
    )


def _access_from(raw: Raw) -> Access:
    """Open where nothing is said: older versions knew no other. A word that is not known lets nobody in."""
    if "access" not in raw:
        return Access.OPEN
    return enum_of(Access, raw["access"]) or Access.KEY


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
        "command": model.command,
        "ready_path": model.ready_path,
        "start_timeout_seconds": model.start_timeout_seconds,
    }


def _model_spec_from(value: object) -> ModelSpec:
    raw = mapping_of(value)
    resources = mapping_of(raw.get("resources"))
    return ModelSpec(
        format=text_of(raw, "format"),
        storage_uri=text_of(raw, "storage_uri"),
        format_version=text_of(raw, "format_version"),
        runtime=text_of(raw, "runtime"),
        protocol_version=text_of(raw, "protocol_version", "v1"),
        args=texts_of(raw.get("args")),
        env=tuple(
            (str(pair[0]), str(pair[1])) for pair in list_of(raw.get("env")) if len(list_of(pair)) == 2
        ),
        resources=Resources(
            cpu_millis=whole_or_none(resources, "cpu_millis"),
            memory_bytes=whole_or_none(resources, "memory_bytes"),
        ),
        digest=text_of(raw, "digest"),
        alias=text_of(raw, "alias"),
        command=texts_of(raw.get("command")),
        ready_path=text_of(raw, "ready_path"),
        start_timeout_seconds=number_of(raw, "start_timeout_seconds", _MODEL.start_timeout_seconds),
    )


def _revision_to(revision: Revision) -> dict[str, Any]:
    return {
        "number": revision.number,
        "model": _model_spec_to(revision.model),
        "created_at": to_micros(revision.created_at),
        "created_by": revision.created_by,
        "rolled_back": revision.rolled_back,
    }


def _revision_from(raw: Raw) -> Revision | None:
    number, at = whole_of(raw, "number", 0), moment_of(raw.get("created_at"))
    if number < 1 or at is None:
        return None
    model, by = _model_spec_from(raw.get("model")), text_of(raw, "created_by")
    return Revision(number, model, at, by, flag_of(raw, "rolled_back"))


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
        "observe": span_of(rollout.observe),
        "guard": {
            "enabled": guard.enabled,
            "error_points": guard.error_points,
            "latency_factor": guard.latency_factor,
            "latency_least_ms": guard.latency_least_ms,
            "requests_min": guard.requests_min,
            "window": span_of(guard.window),
        },
    }


def _rollout_from(value: object) -> Rollout | None:
    raw = mapping_of(value)
    base = whole_of(raw, "base", 0)
    if base < 1:
        return None
    guard = mapping_of(raw.get("guard"))
    return Rollout(
        base=base,
        canary_percent=whole_or_none(raw, "canary_percent"),
        mirror_percent=whole_of(raw, "mirror_percent", 0),
        sticky_header=text_of(raw, "sticky_header"),
        strategy=enum_of(Strategy, raw.get("strategy")) or Strategy.START_THEN_STOP,
        observe=duration_of(raw.get("observe")) or OBSERVE_DEFAULT,
        guard=Guard(
            enabled=flag_of(guard, "enabled", default=True),
            error_points=number_of(guard, "error_points", _GUARD.error_points),
            latency_factor=number_of(guard, "latency_factor", _GUARD.latency_factor),
            latency_least_ms=number_of(guard, "latency_least_ms", _GUARD.latency_least_ms),
            requests_min=whole_of(guard, "requests_min", _GUARD.requests_min),
            window=duration_of(guard.get("window")) or _GUARD.window,
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
            "since": micros_of(status.since),
            "gpu": _gpu_note_to(status.gpu),
            "rollout": _rollout_note_to(status.rollout),
            "scale": _scale_to(status.scale),
            "ingress": _ingress_to(status.ingress),
            "unreachable_since": micros_of(status.unreachable_since),
            "unreachable_message": status.unreachable_message,
            "drift": status.drift,
        }
    )


def status_from_json(text: str, endpoint_uid: str) -> EndpointStatus:
    """The status in `text`; what is missing or odd takes its default, what is unknown is skipped."""
    raw = mapping_of(from_json(text))
    return EndpointStatus(
        observed_generation=whole_of(raw, "observed_generation", 0),
        artifact=_artifact_from(mapping_of(raw.get("artifact"))),
        replicas=known(
            _replica_from(mapping_of(item), endpoint_uid) for item in list_of(raw.get("replicas"))
        ),
        restarts=known(_restart_from(mapping_of(item)) for item in list_of(raw.get("restarts"))),
        ends=known(_count_from(item) for item in list_of(raw.get("ends"))),
        routed=texts_of(raw.get("routed")),
        milestones=known(_milestone_from(item) for item in list_of(raw.get("milestones"))),
        model=_model_from(raw.get("model")),
        problem=enum_of(ReasonCode, raw.get("problem")),
        problem_message=text_of(raw, "problem_message"),
        left=texts_of(raw.get("left")),
        since=moment_of(raw.get("since")),
        gpu=_gpu_note_from(raw.get("gpu")),
        rollout=_rollout_note_from(raw.get("rollout")),
        scale=_scale_from(raw.get("scale")),
        ingress=_ingress_from(raw.get("ingress")),
        unreachable_since=moment_of(raw.get("unreachable_since")),
        unreachable_message=text_of(raw, "unreachable_message"),
        drift=text_of(raw, "drift"),
    )


def _ingress_to(ingress: Ingress | None) -> dict[str, Any] | None:
    if ingress is None:
        return None
    return {
        "url": ingress.url,
        "address": ingress.address,
        "ready": ingress.ready,
        "message": ingress.message,
    }


def _ingress_from(value: object) -> Ingress | None:
    raw = mapping_of(value)
    if "ready" not in raw:
        return None
    return Ingress(
        url=text_of(raw, "url"),
        address=text_of(raw, "address"),
        ready=raw["ready"] is True,
        message=text_of(raw, "message"),
    )


def _scale_to(scale: ScaleNote | None) -> dict[str, Any] | None:
    if scale is None:
        return None
    return {
        "replicas": scale.replicas,
        "message": scale.message,
        "since": micros_of(scale.since),
        "last_request_at": micros_of(scale.last_request_at),
        "waking_since": micros_of(scale.waking_since),
        "wake_seconds": scale.wake_seconds,
    }


def _scale_from(value: object) -> ScaleNote | None:
    raw = mapping_of(value)
    replicas = whole_or_none(raw, "replicas")
    if replicas is None or not 0 <= replicas <= REPLICAS_MAX:
        return None
    return ScaleNote(
        replicas,
        text_of(raw, "message"),
        since=moment_of(raw.get("since")),
        last_request_at=moment_of(raw.get("last_request_at")),
        waking_since=moment_of(raw.get("waking_since")),
        wake_seconds=number_or_none(raw, "wake_seconds"),
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
    raw = mapping_of(value)
    phase, since = enum_of(RolloutPhase, raw.get("phase")), moment_of(raw.get("since"))
    if phase is None or since is None:
        return None
    base, candidate = whole_of(raw, "base", 0), whole_of(raw, "candidate", 0)
    return RolloutNote(base, candidate, phase, since, text_of(raw, "message"))


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
        "started_at": micros_of(artifact.started_at),
        "finished_at": micros_of(artifact.finished_at),
        "reason": artifact.reason.value if artifact.reason else None,
        "message": artifact.message,
        "attempts": artifact.attempts,
        "next_attempt_at": micros_of(artifact.next_attempt_at),
    }


def _artifact_from(raw: Raw) -> ArtifactState:
    return ArtifactState(
        phase=enum_of(ArtifactPhase, raw.get("phase")) or ArtifactPhase.ABSENT,
        uri=text_of(raw, "uri"),
        path=text_of(raw, "path"),
        digest=text_of(raw, "digest"),
        received_bytes=whole_of(raw, "received_bytes", 0),
        total_bytes=whole_or_none(raw, "total_bytes"),
        resumed_from_bytes=whole_of(raw, "resumed_from_bytes", 0),
        rate_bytes_per_second=number_of(raw, "rate_bytes_per_second", 0.0),
        started_at=moment_of(raw.get("started_at")),
        finished_at=moment_of(raw.get("finished_at")),
        reason=enum_of(ReasonCode, raw.get("reason")),
        message=text_of(raw, "message"),
        attempts=whole_of(raw, "attempts", 0),
        next_attempt_at=moment_of(raw.get("next_attempt_at")),
    )


def _replica_to(replica: Replica) -> dict[str, Any]:
    return {
        "revision": replica.id.revision,
        "index": replica.id.index,
        "state": replica.state.value,
        "address": replica.address,
        "pid": replica.pid,
        "started_at": micros_of(replica.started_at),
        "ready_at": micros_of(replica.ready_at),
        "exit": None if replica.exit is None else _exit_to(replica.exit),
        "model": _model_to(replica.model),
        "waiting": _waiting_to(replica.waiting),
    }


def _waiting_to(waiting: Waiting | None) -> dict[str, Any] | None:
    if waiting is None:
        return None
    return {
        "reason": waiting.reason.value,
        "message": waiting.message,
        "since": micros_of(waiting.since),
        "fails": waiting.fails,
        "next_try_at": micros_of(waiting.next_try_at),
    }


def _waiting_from(value: object) -> Waiting | None:
    raw = mapping_of(value)
    reason = enum_of(ReasonCode, raw.get("reason"))
    if reason is None:
        return None
    return Waiting(
        reason,
        text_of(raw, "message"),
        since=moment_of(raw.get("since")),
        fails=raw.get("fails") is True,
        next_try_at=moment_of(raw.get("next_try_at")),
    )


def _replica_from(raw: Raw, endpoint_uid: str) -> Replica | None:
    """None for a replica in a state this version does not know: the engine will observe it again."""
    state = enum_of(ReplicaState, raw.get("state"))
    revision, index = whole_or_none(raw, "revision"), whole_or_none(raw, "index")
    if state is None or revision is None or index is None:
        return None
    return Replica(
        id=ReplicaId(endpoint_uid, revision, index),
        state=state,
        address=text_of(raw, "address"),
        pid=whole_or_none(raw, "pid"),
        started_at=moment_of(raw.get("started_at")),
        ready_at=moment_of(raw.get("ready_at")),
        exit=_exit_from(raw.get("exit")),
        model=_model_from(raw.get("model")),
        waiting=_waiting_from(raw.get("waiting")),
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
    raw = mapping_of(value)
    at = moment_of(raw.get("at"))
    if at is None:
        return None
    return Exit(
        at=at,
        exit_code=whole_or_none(raw, "exit_code"),
        signal=text_of(raw, "signal"),
        reason=enum_of(ReasonCode, raw.get("reason")) or ReasonCode.SERVER_EXITED,
        message=text_of(raw, "message"),
        log_tail=texts_of(raw.get("log_tail")),
    )


def _restart_from(raw: Raw) -> RestartRecord | None:
    last_exit, next_start_at = _exit_from(raw.get("last_exit")), moment_of(raw.get("next_start_at"))
    if last_exit is None or next_start_at is None:
        return None
    return RestartRecord(
        replica=text_of(raw, "replica"),
        failures=whole_of(raw, "failures", 1),
        last_exit=last_exit,
        next_start_at=next_start_at,
    )


def _count_from(value: object) -> tuple[str, int] | None:
    match list_of(value):
        case [str(name), int(count)]:
            return name, count
    return None


def _milestone_from(value: object) -> tuple[Milestone, datetime] | None:
    pair = list_of(value)
    if len(pair) != 2:
        return None
    name, at = enum_of(Milestone, pair[0]), moment_of(pair[1])
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
        example=text_of(value, "example"),
        inputs=tuple(mapping_of(item) for item in list_of(value.get("inputs"))),
        outputs=tuple(mapping_of(item) for item in list_of(value.get("outputs"))),
        protocols=texts_of(value.get("protocols")) if "protocols" in value else ("v1", "v2"),
        note=text_of(value, "note"),
    )


def _gpu_spec_to(gpu: GpuSpec | None) -> dict[str, Any] | None:
    if gpu is None:
        return None
    return {
        "selection": selection_to(gpu.selection),
        "exit_duration": span_of(gpu.exit_duration),
        "priority": gpu.priority,
        "idle_timeout": span_of(gpu.idle_timeout),
        "enforce_idle": gpu.enforce_idle,
        "auto_renew": gpu.auto_renew,
        "enable_eviction": gpu.enable_eviction,
        "requeue_on_failure": gpu.requeue_on_failure,
    }


def _gpu_spec_from(value: object) -> GpuSpec | None:
    if not isinstance(value, dict):
        return None
    return GpuSpec(
        selection=selection_from(mapping_of(value.get("selection"))),
        exit_duration=exit_duration_from(value),
        priority=whole_of(value, "priority", PRIORITY_DEFAULT),
        idle_timeout=duration_of(value.get("idle_timeout")),
        enforce_idle=flag_of(value, "enforce_idle"),
        auto_renew=flag_of(value, "auto_renew", default=True),
        enable_eviction=flag_of(value, "enable_eviction"),
        requeue_on_failure=flag_of(value, "requeue_on_failure"),
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
        "estimated_start": micros_of(note.estimated_start),
        "since": micros_of(note.since),
        "ended_reason": note.ended_reason.value if note.ended_reason else None,
        "requeues": note.requeues,
        "assumption": note.assumption,
        "remedy": note.remedy,
        "reason": note.reason.value,
    }


def _gpu_note_from(value: object) -> GpuNote | None:
    """None for a request in a status this version does not know: its controller will look again."""
    raw = mapping_of(value)
    status = enum_of(ProvisioningStatus, raw.get("status"))
    if status is None:
        return None
    return GpuNote(
        gpr_id=text_of(raw, "gpr_id"),
        status=status,
        cluster=text_of(raw, "cluster"),
        nodes=node_gpus_from(raw.get("nodes")),
        position=whole_or_none(raw, "position"),
        message=text_of(raw, "message"),
        estimated_start=moment_of(raw.get("estimated_start")),
        since=moment_of(raw.get("since")),
        ended_reason=enum_of(ReasonCode, raw.get("ended_reason")),
        requeues=flag_of(raw, "requeues"),
        assumption=text_of(raw, "assumption"),
        remedy=text_of(raw, "remedy"),
        reason=enum_of(ReasonCode, raw.get("reason")) or ReasonCode.AWAITING_GPU,
    )
