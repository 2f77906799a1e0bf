"""Inference endpoints on the wire.

Sizes are bytes unless a name says otherwise, times are RFC 3339 in UTC, durations milliseconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class ModelResources(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Limits of one replica: `"500m"` or `2` cores, `"2Gi"` or bytes."""

    cpu: str | int | float | None = None
    memory: str | int | None = None


class ModelSpecBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A model by format and place. `model_name` is the model *format* (sklearn, xgboost, …).

    `secret` holds credentials for the storage by variable name; it is never shown again.
    """

    model_name: str
    storage_uri: str | None = msgspec.field(default=None, name="storageURI")
    model_version: str | None = None
    runtime: str | None = None
    protocol_version: str | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    secret: dict[str, str] | None = None
    resources: ModelResources | None = None
    digest: str | None = None
    timeout_seconds: float | None = None
    start_timeout_seconds: float | None = None
    max_request_bytes: int | None = None


class GpuSpecBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """GPUs for an endpoint. `memory_per_gpu` is GB, `number_of_gpus` is per node."""

    gpu_shape: str | None = None
    instance_type: str | None = None
    memory_per_gpu: int | None = msgspec.field(default=None, name="memoryPerGPU")
    number_of_gpus: int | None = msgspec.field(default=None, name="numberOfGPUs")
    number_of_gpu_nodes: int | None = msgspec.field(default=None, name="numberOfGPUNodes")
    exit_duration: str | None = None
    priority: int | None = None
    enable_auto_gpu_selection: bool | None = None
    enable_auto_cluster_selection: bool | None = None
    idle_time_out_duration: str | None = None
    enforce_idle_time_out: bool | None = None
    enable_eviction: bool | None = None
    requeue_on_failure: bool | None = None
    auto_renew: bool | None = None


class AutoscalingBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Bounds on replicas, and what moves them between: requests at once, or a second, for each replica.

    With `min_replicas` 0 it sleeps when no request came for `scale_to_zero_after` (such as `5m`).
    """

    min_replicas: int | None = None
    max_replicas: int | None = None
    autoscaling_provider: str | None = None
    target_concurrency: float | None = None
    target_rate: float | None = None
    scale_to_zero_after: str | None = None


class LimitsBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What the gateway enforces for one endpoint; 0 takes a rate, a burst or a concurrency away.

    `requests_per_second_per_key` counts with access by key. `burst` requests may come at once where there is
    a rate (else one second's worth). `concurrency_max` are in flight at most, or
    `concurrency_max_per_key` of each key.
    """

    max_request_bytes: int | None = None
    timeout_seconds: float | None = None
    requests_per_second: float | None = None
    burst: int | None = None
    requests_per_second_per_key: float | None = None
    concurrency_max: int | None = None
    concurrency_max_per_key: int | None = None


class CreateEndpoint(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST /inference-endpoint`. Exactly one of `model_spec`, `raw_model_spec` (YAML text).

    `access` is open (whoever reaches the gateway) or key (whoever has an endpoint key).
    `gpu_spec` may also be the string "None", which means CPU, as does its absence.
    """

    endpoint_name: str
    workspace: str
    cluster_name: str | None = None
    model_spec: ModelSpecBody | None = None
    raw_model_spec: str | None = None
    gpu_spec: GpuSpecBody | str | None = None
    cluster_precedence: list[str] | None = None
    burst: Any = None
    autoscaling: AutoscalingBody | None = None
    limits: LimitsBody | None = None
    access: str | None = None


class ModelChangeBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What shall change of a model; whatever is absent stays.

    `args`, `env` and `secret` are replaced whole; an empty text, list or object takes them away. A new
    `storage_uri` takes the old digest away, because it is the digest of something else.
    """

    model_name: str | None = None
    storage_uri: str | None = msgspec.field(default=None, name="storageURI")
    model_version: str | None = None
    runtime: str | None = None
    protocol_version: str | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    secret: dict[str, str] | None = None
    resources: ModelResources | None = None
    digest: str | None = None
    timeout_seconds: float | None = None
    start_timeout_seconds: float | None = None
    max_request_bytes: int | None = None


class CanaryBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """How much the new revision gets to begin with.

    `percent` of the requests; copies of `mirror_percent` of them, whose answers are dropped. Requests
    with equal values of the header `sticky_header` go to the same revision.
    """

    percent: int | None = None
    mirror_percent: int | None = None
    sticky_header: str | None = None


class GuardBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """When the new revision counts as worse than the one before, and is rolled back.

    `error_points` is how much more of its answers may be 5xx (0.05: five in a hundred), `latency_factor`
    how many times the other's 95th percentile its own may be, if it is over `latency_least_ms`. Neither is
    judged on fewer than `requests_min` requests in `window_seconds`.
    """

    enabled: bool | None = None
    error_points: float | None = None
    latency_factor: float | None = None
    latency_least_ms: float | None = None
    requests_min: int | None = None
    window_seconds: float | None = None


class UpdateEndpoint(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`PATCH /inference-endpoint`. At most one of `model_spec` and `raw_model_spec` (YAML text).

    What is given of `model_spec`, `autoscaling` and `limits` is changed, the rest stays;
    `raw_model_spec` replaces. `restart` makes a revision of the model as it is, whose files are fetched anew.
    `gpu_spec` is here to be refused: an endpoint keeps its GPUs.
    """

    workspace: str
    endpoint: str | None = None
    endpoint_name: str | None = None
    cluster: str | None = None
    cluster_name: str | None = None
    model_spec: ModelChangeBody | None = None
    raw_model_spec: str | None = None
    autoscaling: AutoscalingBody | None = None
    limits: LimitsBody | None = None
    access: str | None = None
    canary: CanaryBody | None = None
    strategy: str | None = None
    guard: GuardBody | None = None
    restart: bool | None = None
    gpu_spec: Any = None


class EndpointChanged(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Answer to a change, a promotion and a rollback: the revision that shall serve from now on.

    `warnings` says what has no effect, or other effects than one might expect; absent when there are none.
    `without_revision` is what changed, in words ("": nothing), where no other revision shall serve; else absent.
    """

    endpoint: str
    revision: int
    warnings: tuple[str, ...] = ()
    without_revision: str | None = None


class RollbackRef(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Body of a rollback: to `revision`, or without it to the one before."""

    workspace: str
    endpoint: str | None = None
    endpoint_name: str | None = None
    cluster: str | None = None
    cluster_name: str | None = None
    revision: int | None = None


class EndpointCreated(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`warnings` says what of the request has no effect here; absent when everything has.

    `access` is who may send requests; absent when it is open.
    """

    endpoint_name: str
    warnings: tuple[str, ...] = ()
    access: str = "open"


class CheckItem(msgspec.Struct, frozen=True, rename="camel"):
    """One check of a pre-flight. `reason` is "" when `ok`."""

    check: str
    ok: bool
    reason: str = ""
    message: str = ""
    next_action: str = ""


class Preflight(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to a create or a change with `?dryRun=true`; nothing was stored."""

    endpoint_name: str
    preflight: tuple[CheckItem, ...] = ()


class EndpointRef(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Body of delete, stop, start and promote. `endpoint` or `endpointName` names the endpoint."""

    workspace: str
    endpoint: str | None = None
    endpoint_name: str | None = None
    cluster: str | None = None
    cluster_name: str | None = None


class EndpointDeleted(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to delete, stop and start: the endpoint's name."""

    endpoint: str


class ReplicaCount(msgspec.Struct, frozen=True, rename="camel"):
    """How many replicas answer, and how many should."""

    ready: int = 0
    desired: int = 0


class EndpointItem(msgspec.Struct, frozen=True, rename="camel"):
    """One endpoint as listed and watched. `endpoint` is "" until it is reachable."""

    endpoint_name: str
    model_name: str
    status: str
    endpoint: str
    cluster_name: str
    namespace: str
    auto_scaling_status: str = ""
    workspace: str = ""
    uid: str = ""
    reason: str = ""
    message: str = ""
    path_endpoint: str = ""
    replica_count: ReplicaCount = ReplicaCount()
    queue_position: int = 0
    created_at: datetime | None = None
    since: datetime | None = None
    access: str = "open"


class EndpointList(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`GET /inference-endpoint/list`. `continue_` is absent on the last page."""

    endpoints: tuple[EndpointItem, ...]
    continue_: str = msgspec.field(default="", name="continue")


class DnsRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A DNS record that makes the endpoint's host reachable."""

    dns: str
    type: str
    value: str


class GpuRequestItem(msgspec.Struct, frozen=True, rename="camel"):
    """One GPU request of the endpoint's history. `memory_per_gpu` is a string in MB."""

    gpr_name: str
    gpr_id: str
    instance_type: str
    gpu_shape: str
    number_of_gpus: int = msgspec.field(name="numberOfGPUs")
    number_of_gpu_nodes: int = msgspec.field(name="numberOfGPUNodes")
    memory_per_gpu: str = msgspec.field(name="memoryPerGPU")
    status: str


class HeldNode(msgspec.Struct, frozen=True, rename="camel"):
    """A node on which an endpoint holds GPUs, and which of them."""

    node: str
    indexes: tuple[int, ...] = ()


class EndpointGpus(msgspec.Struct, frozen=True, rename="camel"):
    """Where the endpoint's newest GPU request is. `queue_position` is 0 for what does not wait.

    `estimated_start_time` is None where it is not known; `ended_reason` is a reason code once it ended.
    """

    gpr_id: str
    status: str
    cluster_name: str = ""
    nodes: tuple[HeldNode, ...] = ()
    queue_position: int = 0
    message: str = ""
    estimated_start_time: datetime | None = None
    since: datetime | None = None
    ended_reason: str = ""


class ConditionItem(msgspec.Struct, frozen=True, rename="camel"):
    """One condition; `status` is "True" or "False"."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class ExitItem(msgspec.Struct, frozen=True, rename="camel"):
    """How a model server ended."""

    at: datetime
    exit_code: int | None = None
    signal: str = ""
    reason: str = ""
    message: str = ""
    log_tail: tuple[str, ...] = ()


class ReplicaItem(msgspec.Struct, frozen=True, rename="camel"):
    """One model server. `reason` and `message` say what it waits for, or what is in its way, where that is known."""

    name: str
    state: str
    revision: int = 1
    pid: int | None = None
    routed: bool = False
    started_at: datetime | None = None
    ready_at: datetime | None = None
    restarts: int = 0
    next_start_at: datetime | None = None
    exit: ExitItem | None = None
    reason: str = ""
    message: str = ""


class DownloadItem(msgspec.Struct, frozen=True, rename="camel"):
    """Where the model is between its URI and the machine."""

    phase: str
    uri: str = ""
    received_bytes: int = 0
    total_bytes: int | None = None
    resumed_from_bytes: int = 0
    rate_bytes_per_second: float = 0.0
    eta_seconds: float | None = None
    digest: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None


class MilestoneItem(msgspec.Struct, frozen=True, rename="camel"):
    """A point reached. `duration_ms` is the time since the previous one, `elapsed_ms` since the first."""

    name: str
    at: datetime
    duration_ms: int = 0
    elapsed_ms: int = 0


class LimitsItem(msgspec.Struct, frozen=True, rename="camel"):
    """What the gateway enforces: more bytes get 413, more time gets 504, more requests 429. None: no limit."""

    max_request_bytes: int = 0
    timeout_seconds: float = 0.0
    start_timeout_seconds: float = 0.0
    requests_per_second: float | None = None
    burst: int | None = None
    requests_per_second_per_key: float | None = None
    concurrency_max: int | None = None
    concurrency_max_per_key: int | None = None


class AutoscalingItem(msgspec.Struct, frozen=True, rename="camel"):
    """Bounds on replicas in force, what moves them between, and the last decision.

    `replicas` is how many there should be since `since`, and `message` why. `last_request_at` is what was
    known of the last request then; `wake_seconds` how long it took to wake the last time.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_concurrency: float | None = None
    target_rate: float | None = None
    scale_to_zero_after: str = ""
    replicas: int = 1
    message: str = ""
    since: datetime | None = None
    last_request_at: datetime | None = None
    wake_seconds: float | None = None


class ModelItem(msgspec.Struct, frozen=True, rename="camel"):
    """What is served. `example` is a body that the model answers, or "". Never holds a secret."""

    format: str = ""
    format_version: str = ""
    storage_uri: str = msgspec.field(default="", name="storageURI")
    digest: str = ""
    runtime: str = ""
    args: tuple[str, ...] = ()
    alias: str = ""
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    secret_keys: tuple[str, ...] = ()
    example: str = ""
    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()


class EvidenceItem(msgspec.Struct, frozen=True, rename="camel"):
    """Proof for a reason; which parts are set depends on the reason."""

    exit_code: int | None = None
    signal: str = ""
    log_tail: tuple[str, ...] = ()
    at: datetime | None = None
    storage_uri: str = msgspec.field(default="", name="storageURI")
    download: DownloadItem | None = None
    restarts: int = 0
    left: tuple[str, ...] = ()
    stopped_by: str = ""


class RevisionItem(msgspec.Struct, frozen=True, rename="camel"):
    """One revision. `state` is serving, candidate, rolledBack or previous; `note` says what that means now.

    `ready` of its servers answer, and `traffic_percent` of the requests go to it.
    """

    revision: int
    state: str = ""
    model_name: str = ""
    storage_uri: str = msgspec.field(default="", name="storageURI")
    created_at: datetime | None = None
    created_by: str = ""
    traffic_percent: int = 0
    ready: int = 0
    wanted: bool = False
    ready_replicas: int = 0
    note: str = ""


class TrafficItem(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What part of the requests a revision answers, and of what part it gets copies."""

    revision: int
    percent: int
    mirror_percent: int = 0


class RolloutItem(msgspec.Struct, frozen=True, rename="camel"):
    """How far `candidate` has come in taking over from `base`.

    `phase` is Preparing, Starting, Shifted, Complete or RolledBack, since `since`; `message` is the evidence
    for a rollback. `canary_percent` is None where it takes everything once it answers.
    """

    phase: str
    base: int
    candidate: int
    since: datetime | None = None
    message: str = ""
    canary_percent: int | None = None
    mirror_percent: int = 0
    sticky_header: str = ""
    strategy: str = ""


class EndpointDescription(msgspec.Struct, frozen=True, rename="camel"):
    """One endpoint in full. The first block is the documented one, the rest is ours."""

    endpoint_name: str
    model_name: str
    status: str
    endpoint: str
    cluster_name: str
    namespace: str
    predict_status: str
    ingress_status: str
    auto_scaling_status: str
    try_command: tuple[str, ...]
    dns_records: tuple[DnsRecord, ...]
    gpu_requests: tuple[GpuRequestItem, ...]
    gpu: EndpointGpus | None = None
    workspace: str = ""
    uid: str = ""
    reason: str = ""
    message: str = ""
    next_action: str = ""
    next_retry_at: datetime | None = None
    evidence: EvidenceItem | None = None
    conditions: tuple[ConditionItem, ...] = ()
    replicas: tuple[ReplicaItem, ...] = ()
    replica_count: ReplicaCount = ReplicaCount()
    revisions: tuple[RevisionItem, ...] = ()
    traffic: tuple[TrafficItem, ...] = ()
    rollout: RolloutItem | None = None
    path_endpoint: str = ""
    try_path_command: tuple[str, ...] = ()
    try_note: str = ""
    protocols: tuple[str, ...] = ()
    model: ModelItem = ModelItem()
    limits: LimitsItem = LimitsItem()
    access: str = "open"
    autoscaling: AutoscalingItem = AutoscalingItem()
    download: DownloadItem | None = None
    generation: int = 1
    observed_generation: int = 0
    stopped: bool = False
    created_at: datetime | None = None
    created_by: str = ""
    since: datetime | None = None
    timeline: tuple[MilestoneItem, ...] = ()


class EndpointEnvelope(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to describe."""

    endpoint: EndpointDescription


class EventItem(msgspec.Struct, frozen=True, rename="camel"):
    """Something that happened. `seq` grows."""

    seq: int
    at: datetime
    kind: str
    message: str
    actor: str = ""
    workspace: str = ""
    endpoint: str = ""
    reason: str = ""
    data: dict[str, Any] = {}


class Explanation(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /inference-endpoint/explain`: what it waits for or why it failed, and what to do.

    `waiting_for` is "" unless time alone may help. `autoscaling` has the number of replicas that was last
    decided and why, `scaling_decisions` the newest decisions as events, oldest first.
    """

    endpoint_name: str
    status: str
    reason: str
    meaning: str
    message: str
    evidence: EvidenceItem
    next_action: str
    next_retry_at: datetime | None = None
    waiting_for: str = ""
    timeline: tuple[MilestoneItem, ...] = ()
    autoscaling: AutoscalingItem = AutoscalingItem()
    scaling_decisions: tuple[EventItem, ...] = ()


class EventList(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`GET /inference-endpoint/events`, oldest first. Pass `continue` as `after` for what follows."""

    events: tuple[EventItem, ...]
    continue_: str = msgspec.field(default="", name="continue")


class LogLineItem(msgspec.Struct, frozen=True, rename="camel"):
    """One line of a model server's output. `replica` is `r<revision>-<index>`."""

    replica: str
    text: str


class LogList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /inference-endpoint/logs`; with `follow=true` the same items come as server-sent events."""

    lines: tuple[LogLineItem, ...] = ()
