"""Domain values ⇄ what the tables hold, mapped by hand.

Writing is total: whatever text a crashing model server printed or a manifest carried is stored, if
need be with the characters replaced that no database can hold. Reading is forgiving: a row written by
an older version lacks keys and gets the value's defaults, one written by a newer version has keys and
words that are skipped. So a rolling upgrade needs no rewriting of rows, and one odd row never takes the
list of all endpoints down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar

import msgspec

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    Milestone,
    ModelInfo,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    Resources,
    RestartRecord,
    Scaling,
    TrafficLimits,
)
from inferplane.domain.events import Event
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Cluster, Workspace

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
    model = spec.model
    return to_json(
        {
            "model": {
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
            },
            "scaling": {
                "min_replicas": spec.scaling.min_replicas,
                "max_replicas": spec.scaling.max_replicas,
            },
            "limits": {
                "max_request_bytes": spec.limits.max_request_bytes,
                "timeout_seconds": spec.limits.timeout_seconds,
            },
            "revision": spec.revision,
            "stopped": spec.stopped,
            "stopped_by": spec.stopped_by,
            "stopped_at": _micros(spec.stopped_at),
            "manifest": None if spec.manifest is None else dict(spec.manifest),
        }
    )


def spec_from_json(text: str) -> EndpointSpec:
    """The spec in `text`; what is missing or odd takes its default."""
    raw = _mapping(from_json(text))
    model, scaling, limits = (_mapping(raw.get(key)) for key in ("model", "scaling", "limits"))
    resources = _mapping(model.get("resources"))
    manifest = raw.get("manifest")
    return EndpointSpec(
        model=ModelSpec(
            format=_text(model, "format"),
            storage_uri=_text(model, "storage_uri"),
            format_version=_text(model, "format_version"),
            runtime=_text(model, "runtime"),
            protocol_version=_text(model, "protocol_version", "v1"),
            args=_texts(model.get("args")),
            env=tuple(
                (str(pair[0]), str(pair[1])) for pair in _list(model.get("env")) if len(_list(pair)) == 2
            ),
            resources=Resources(
                cpu_millis=_whole_or_none(resources, "cpu_millis"),
                memory_bytes=_whole_or_none(resources, "memory_bytes"),
            ),
            digest=_text(model, "digest"),
            alias=_text(model, "alias"),
            start_timeout_seconds=_number(model, "start_timeout_seconds", _MODEL.start_timeout_seconds),
        ),
        scaling=Scaling(
            min_replicas=_whole(scaling, "min_replicas", 1),
            max_replicas=_whole(scaling, "max_replicas", 1),
        ),
        limits=TrafficLimits(
            max_request_bytes=_whole(limits, "max_request_bytes", _LIMITS.max_request_bytes),
            timeout_seconds=_number(limits, "timeout_seconds", _LIMITS.timeout_seconds),
        ),
        revision=_whole(raw, "revision", 1),
        stopped=raw.get("stopped") is True,
        stopped_by=_text(raw, "stopped_by"),
        stopped_at=_moment(raw.get("stopped_at")),
        manifest=manifest if isinstance(manifest, dict) else None,
    )


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
            "routed": status.routed,
            "milestones": [(name.value, to_micros(at)) for name, at in status.milestones],
            "model": _model_to(status.model),
            "problem": status.problem.value if status.problem else None,
            "problem_message": status.problem_message,
            "left": status.left,
            "since": _micros(status.since),
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
        routed=_texts(raw.get("routed")),
        milestones=_known(_milestone_from(item) for item in _list(raw.get("milestones"))),
        model=_model_from(raw.get("model")),
        problem=_enum(ReasonCode, raw.get("problem")),
        problem_message=_text(raw, "problem_message"),
        left=_texts(raw.get("left")),
        since=_moment(raw.get("since")),
    )


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
    }


def _model_from(value: object) -> ModelInfo | None:
    if not isinstance(value, dict):
        return None
    return ModelInfo(
        example=_text(value, "example"),
        inputs=tuple(_mapping(item) for item in _list(value.get("inputs"))),
        outputs=tuple(_mapping(item) for item in _list(value.get("outputs"))),
        protocols=_texts(value.get("protocols")) if "protocols" in value else ("v1", "v2"),
    )


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


def _moment(value: object) -> datetime | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return from_micros(value)
    except OverflowError:
        return None
