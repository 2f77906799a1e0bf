"""An inference endpoint: what a user asked for, what controllers see, and what is said about it.

Three parts, three writers. The *spec* is written by services on behalf of users and counted by
`generation`; the *status* holds facts and is written by controllers only; the *public state* is
derived from both by `public_state` each time it is asked for and stored nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint_access import Access
from inferplane.domain.gpu_request import (
    ENDED,
    EXIT_DURATION_DEFAULT,
    PRIORITY_DEFAULT,
    ProvisioningStatus,
    Selection,
)
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.rollout import (
    Rollout,
    RolloutNote,
    RolloutPhase,
    phase_of,
    replicas_by_revision,
    shares,
)

DEFAULT_MAX_REQUEST_BYTES = 16 * 1024 * 1024
DEFAULT_REQUEST_TIMEOUT_SECONDS = 60.0
DEFAULT_START_TIMEOUT_SECONDS = 300.0
REPLICAS_MAX = 100
DEFAULT_TARGET_CONCURRENCY = 32.0
DEFAULT_SCALE_TO_ZERO_AFTER = timedelta(minutes=5)
REVISIONS_KEPT_MAX = 10
NODES_SHOWN_MAX = 3


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits of one replica. None means no limit was asked for."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, and how to run it.

    `format` is a model format's name (sklearn, xgboost, …). `storage_uri` never carries
    credentials: those live in the endpoint's secret, which is stored apart and never shown.
    `digest` is "sha256:<hex>" or "". `env` and `args` come from the manifest's model or container.
    `alias` is the manifest's own metadata.name where it differs from the endpoint's name. With a `command`,
    that program is the server; it is ready when `ready_path` answers ("" for the usual ones).
    """

    format: str
    storage_uri: str
    format_version: str = ""
    runtime: str = ""
    protocol_version: str = "v1"
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    resources: Resources = Resources()
    digest: str = ""
    alias: str = ""
    command: tuple[str, ...] = ()
    ready_path: str = ""
    start_timeout_seconds: float = DEFAULT_START_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds on the number of replicas, and what moves it between them.

    `target_concurrency` is how many requests at once one replica should have, `target_rate` how many a
    second; without either, DEFAULT_TARGET_CONCURRENCY counts. With `min_replicas` 0 the endpoint falls
    asleep when no request came for `scale_to_zero_after`, and the next one wakes it.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_concurrency: float | None = None
    target_rate: float | None = None
    scale_to_zero_after: timedelta = DEFAULT_SCALE_TO_ZERO_AFTER

    @property
    def sleeps(self) -> bool:
        """Whether it may have no replica at all."""
        return self.min_replicas == 0

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.min_replicas == self.max_replicas


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    """What the gateway enforces for one endpoint, and describe states. None does not limit.

    `burst` requests may come at once where there is a rate; None: one second's worth. The rate and
    the concurrency of a key count with access by key only. `concurrency_max` requests are in flight at most, or
    `concurrency_max_per_key` of each key; not both, because the gateway counts either way.
    """

    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    timeout_seconds: float = DEFAULT_REQUEST_TIMEOUT_SECONDS
    requests_per_second: float | None = None
    burst: int | None = None
    requests_per_second_per_key: float | None = None
    concurrency_max: int | None = None
    concurrency_max_per_key: int | None = None


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """The GPUs that an endpoint runs on, and how its request for them behaves.

    `auto_renew` asks again before the exit duration is over; the other fields are those of a GPR.
    """

    selection: Selection
    exit_duration: timedelta = EXIT_DURATION_DEFAULT
    priority: int = PRIORITY_DEFAULT
    idle_timeout: timedelta | None = None
    enforce_idle: bool = False
    auto_renew: bool = True
    enable_eviction: bool = False
    requeue_on_failure: bool = False


@dataclass(frozen=True, slots=True)
class Revision:
    """What servers were, or are to be, started with, under its number.

    `rolled_back` says that another one was made while this one did not serve any more, because it was worse
    or somebody had gone back from it.
    """

    number: int
    model: ModelSpec
    created_at: datetime
    created_by: str = ""
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Everything a user wants of an endpoint. `manifest` is the InferenceService as given, or None.

    `gpu` is None for an endpoint on CPU.
    `revision` is the number of the revision that shall serve, and `model` what it is made of. A change
    that needs new servers (model, runtime, resources, arguments) makes a revision with the next number.
    `revisions` are the last REVISIONS_KEPT_MAX of them by number, this one included; empty as long as
    there was only one. `rollout` says how `revision` takes over from another, None when it is alone.
    `qualified_host` says that its cluster is part of its host and path: when it was made, the workspace had
    an endpoint of this name on another cluster. It stays so, that its address never changes.
    """

    model: ModelSpec
    scaling: Scaling = Scaling()
    limits: TrafficLimits = TrafficLimits()
    revision: int = 1
    stopped: bool = False
    stopped_by: str = ""
    stopped_at: datetime | None = None
    stopped_because: str = ""  # what somebody did that stopped it, where it was not asked for as such
    manifest: Mapping[str, Any] | None = None
    gpu: GpuSpec | None = None
    revisions: tuple[Revision, ...] = ()
    rollout: Rollout | None = None
    qualified_host: bool = False
    access: Access = Access.OPEN

    def model_of(self, revision: int) -> ModelSpec | None:
        """What a revision is made of; None for one that is not remembered."""
        if revision == self.revision:
            return self.model
        return next((each.model for each in self.revisions if each.number == revision), None)

    @property
    def next_revision(self) -> int:
        """The number of the next revision: none is used twice, also after going back."""
        return max(self.revision, *(each.number for each in self.revisions), 0) + 1


class ReplicaState(StrEnum):
    """A model server's life as an engine sees it."""

    STARTING = "Starting"  # started, has not reported yet
    LOADING = "Loading"  # reported, model not yet answering
    READY = "Ready"  # the model has answered a probe
    UNRESPONSIVE = "Unresponsive"  # was ready, no longer answers its health check
    STOPPING = "Stopping"  # asked to end, finishing its requests
    EXITED = "Exited"  # the process is gone


@dataclass(frozen=True, slots=True, order=True)
class ReplicaId:
    """Derived name of one replica: starting it twice is noticing it once."""

    endpoint_uid: str
    revision: int
    index: int

    @property
    def name(self) -> str:
        """`r<revision>-<index>`: unique within the endpoint, the same on every engine."""
        return f"r{self.revision}-{self.index}"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a model server ended. `exit_code` is None when nobody was there to see it."""

    at: datetime
    exit_code: int | None = None
    signal: str = ""
    reason: ReasonCode = ReasonCode.SERVER_EXITED
    message: str = ""
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model said about itself. `example` is a body that it answers (JSON text), or "".

    `note` is what else a person should know of it while it runs (that it is simulated, say), or "".
    """

    example: str = ""
    inputs: tuple[Mapping[str, Any], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()
    protocols: tuple[str, ...] = ("v1", "v2")
    note: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a model server that has not ended is not there yet, where the engine knows more than its state says.

    `fails` tells what will not come right by waiting from what is on its way. `since` is when it began.
    `next_try_at` is when the cluster tries again by itself, where it says so.
    """

    reason: ReasonCode
    message: str
    since: datetime | None = None
    fails: bool = False
    next_try_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ingress:
    """Where requests come in on a cluster that has an ingress of its own, instead of through our gateway.

    `url` is "" until it is known, `address` (an IP address or a host name) where it is not. `message` says what is
    still missing while it is not `ready`.
    """

    url: str = ""
    address: str = ""
    ready: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class Replica:
    """One model server as last observed. `address` is `unix:<path>` or `<host>:<port>`, "" where only the
    cluster's own ingress reaches it.
    """

    id: ReplicaId
    state: ReplicaState
    address: str = ""
    pid: int | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    exit: Exit | None = None
    model: ModelInfo | None = None
    waiting: Waiting | None = None


@dataclass(frozen=True, slots=True)
class RestartRecord:
    """Memory of one replica's failures in a row; forgotten once it has stayed ready for a while."""

    replica: str
    failures: int
    last_exit: Exit
    next_start_at: datetime


class Milestone(StrEnum):
    """Points of the timeline, each reached at most once a revision."""

    ACCEPTED = "accepted"
    DOWNLOADED = "downloaded"
    STARTED = "started"
    LOADED = "loaded"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class GpuNote:
    """What an endpoint knows of its newest GPR.

    `nodes` are (node, GPU indexes) while it holds any. `since` is when it came into its present status.
    While it waits, `message` is the whole explanation, `position` its place (1 is next), `assumption`
    what `estimated_start` rests on, `reason` why it waits and `remedy` what would change that.
    `ended_reason` is why it ended or drains; `requeues` says that it goes back into the queue by itself.
    """

    gpr_id: str
    status: ProvisioningStatus
    cluster: str = ""
    nodes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    position: int | None = None
    message: str = ""
    estimated_start: datetime | None = None
    since: datetime | None = None
    ended_reason: ReasonCode | None = None
    requeues: bool = False
    assumption: str = ""
    remedy: str = ""
    reason: ReasonCode = ReasonCode.AWAITING_GPU


@dataclass(frozen=True, slots=True)
class ScaleNote:
    """How many replicas there should be by the last decision, why, and since when.

    `last_request_at` is when the last request was over, as far as was seen by then. `waking_since` is set
    from the request that woke the endpoint until its first replica answers; `wake_seconds` is how long that
    took the last time, None before the first.
    """

    replicas: int
    message: str = ""
    since: datetime | None = None
    last_request_at: datetime | None = None
    waking_since: datetime | None = None
    wake_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """Facts, written by controllers. `observed_generation` says which spec they speak of.

    `routed` names the replicas in the route table that the gateway has confirmed, or those that get requests by the
    cluster's own `ingress` (None where our gateway routes). `unreachable_since` is set while the cluster does not
    answer: everything else is then as it was last seen.
    `left` lists, during deletion, what has still to be undone. `ends` counts how often each replica ended
    unasked, whether or not it has been well since.
    """

    observed_generation: int = 0
    artifact: ArtifactState = ArtifactState()
    replicas: tuple[Replica, ...] = ()
    restarts: tuple[RestartRecord, ...] = ()
    ends: tuple[tuple[str, int], ...] = ()
    routed: tuple[str, ...] = ()
    milestones: tuple[tuple[Milestone, datetime], ...] = ()
    model: ModelInfo | None = None
    problem: ReasonCode | None = None  # an engine-level problem that is neither artifact nor replica
    problem_message: str = ""
    left: tuple[str, ...] = ()
    since: datetime | None = None  # when the public status last changed
    gpu: GpuNote | None = None
    rollout: RolloutNote | None = None
    scale: ScaleNote | None = None  # None: nothing was decided yet, or there is nothing to decide
    ingress: Ingress | None = None
    unreachable_since: datetime | None = None
    unreachable_message: str = ""
    drift: str = ""  # what somebody else did to what the platform created there, as last said

    def milestone(self, name: Milestone) -> datetime | None:
        """When `name` was reached, or None."""
        return next((at for reached, at in self.milestones if reached is name), None)


@dataclass(frozen=True, slots=True)
class InferenceEndpoint:
    """One endpoint as stored. `uid` is 12 hex digits, never reused; `version` is the row's."""

    uid: str
    workspace: str
    cluster: str
    name: str
    namespace: str
    spec: EndpointSpec
    generation: int
    created_at: datetime
    created_by: str
    status: EndpointStatus = field(default_factory=EndpointStatus)
    deletion_requested_at: datetime | None = None
    deletion_requested_by: str = ""
    version: int = 1

    @property
    def host_cluster(self) -> str:
        """The cluster as far as it is part of the endpoint's host and path, else ""."""
        return self.cluster if self.spec.qualified_host else ""

    @property
    def desired_replicas(self) -> int:
        """How many model servers should run right now."""
        if self.spec.stopped or self.deletion_requested_at is not None:
            return 0
        scaling, decided = self.spec.scaling, self.status.scale
        if decided is None:
            return max(scaling.min_replicas, 1)  # it answers once before it may sleep
        return min(max(decided.replicas, scaling.min_replicas), scaling.max_replicas)

    @property
    def is_asleep(self) -> bool:
        """Whether it was scaled to zero: no replica should run until a request comes."""
        resting = self.spec.stopped or self.deletion_requested_at is not None
        return not resting and self.spec.scaling.sleeps and self.desired_replicas == 0

    def at_revision(self, number: int) -> InferenceEndpoint:
        """The endpoint as it would be if that revision were the wished one; itself where it is unknown."""
        model = self.spec.model_of(number)
        if model is None or number == self.spec.revision:
            return self
        return replace(self, spec=replace(self.spec, revision=number, model=model))

    def replica_ids(self) -> tuple[ReplicaId, ...]:
        """Names of the replicas that should run, the serving revision's first, then by index."""
        spec = self.spec
        counts = replicas_by_revision(spec.revision, self.desired_replicas, spec.rollout, self.status.rollout)
        return tuple(
            ReplicaId(self.uid, revision, index)
            for revision, count in counts.items()
            if spec.model_of(revision) is not None
            for index in range(count)
        )


class PublicStatus(StrEnum):
    """What a user is told, as in docs/states.md."""

    PENDING = "Pending"
    QUEUED = "Queued"
    PROVISIONING = "Provisioning"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    RUNNING = "Running"
    UPDATING = "Updating"
    DEGRADED = "Degraded"
    IDLE = "Idle"
    STOPPED = "Stopped"
    FAILED = "Failed"
    TERMINATING = "Terminating"


@dataclass(frozen=True, slots=True)
class PublicState:
    """The derived answer to "what is it doing, why, and what can I do".

    `reason` is None only when Running. `exit` carries exit code and last log lines where a model
    server's end is the evidence. `predict` and `ingress` are "Ready" or a reason code.
    """

    status: PublicStatus
    reason: ReasonCode | None
    message: str
    next_action: str
    predict: str
    ingress: str
    exit: Exit | None = None
    next_retry_at: datetime | None = None


# Failures of one replica in a row after which the endpoint is called Failed: CrashLoop.
CRASH_LOOP_FAILURES = 5


def public_state(endpoint: InferenceEndpoint) -> PublicState:
    """Derive what is said about `endpoint`. Total: never Unknown, never an empty reason unless Running."""
    state = _derived(endpoint)
    if _NAME not in state.next_action:
        return state
    return replace(state, next_action=_with_names(state.next_action, endpoint))


def _derived(endpoint: InferenceEndpoint) -> PublicState:
    spec, status = endpoint.spec, endpoint.status
    if endpoint.deletion_requested_at is not None:
        left = ", ".join(status.left) or "nothing but the record"
        state = _state(PublicStatus.TERMINATING, ReasonCode.TERMINATING, f"being deleted; left: {left}")
        if status.problem_message:
            state = replace(state, message=f"{state.message}; {status.problem_message}")
        if status.unreachable_since is not None:
            away = f"its cluster has not answered since {_instant(status.unreachable_since)}"
            state = replace(state, message=f"{state.message}; {away} ({status.unreachable_message})")
        return state
    is_new_to_all = status.observed_generation < endpoint.generation and not status.replicas
    if is_new_to_all or _is_as_before(endpoint):
        return _state(
            PublicStatus.PENDING, ReasonCode.ACCEPTED, "accepted; a controller has not acted on it yet"
        )
    if spec.stopped:
        by = f"stopped by {spec.stopped_by}" if spec.stopped_by else "stopped"
        alive = sum(replica.state is not ReplicaState.EXITED for replica in status.replicas)
        ending = f"; {alive} model server{'s' if alive > 1 else ''} still finishing" if alive else ""
        if spec.stopped_because:
            message = f"stopped, because {spec.stopped_because}{ending}"
            return _state(PublicStatus.STOPPED, ReasonCode.GPU_RELEASED, message)
        return _state(PublicStatus.STOPPED, ReasonCode.STOPPED_BY_USER, by + ending)
    if endpoint.is_asleep:
        return _asleep_state(endpoint)
    found = _serving_state(endpoint) or _failed_state(endpoint) or _progress_state(endpoint)
    if status.unreachable_since is not None:
        return _unreachable_state(found, status.unreachable_since, status.unreachable_message)
    if status.scale is not None and status.scale.waking_since is not None and found.reason is not None:
        return replace(found, message=f"waking, because a request came; {found.message}")
    return found


_NAME = "NAME"
_WORKSPACE_NOT_TO_NAME = "default"  # commands mean it where none is given
_COMMAND = re.compile(r"\binferplane (?P<words>[a-z-]+(?: [a-z-]+)?) NAME\b")


def _with_names(action: str, endpoint: InferenceEndpoint) -> str:
    """The commands of the reasons' table as ones that can be pasted: with the names of what they are about."""

    def filled(found: re.Match[str]) -> str:
        words = found["words"]
        if words.startswith("cluster "):
            return f"inferplane {words} {endpoint.cluster}"
        where = "" if endpoint.workspace == _WORKSPACE_NOT_TO_NAME else f" -w {endpoint.workspace}"
        return f"inferplane {words} {endpoint.name}{where}"

    return _COMMAND.sub(filled, action)


def _is_as_before(endpoint: InferenceEndpoint) -> bool:
    """Whether all that is known is how servers of an earlier spec ended, or that its model could not be had."""
    status = endpoint.status
    return (
        status.observed_generation < endpoint.generation
        and not endpoint.spec.stopped
        and status.unreachable_since is None
        and all(replica.state is ReplicaState.EXITED for replica in status.replicas)
    )


def _unreachable_state(found: PublicState, since: datetime, message: str) -> PublicState:
    """As it was last seen. That nobody can look says nothing about whether it serves."""
    said = f"its cluster has not answered since {_instant(since)} ({message})"
    reason = ReasonCode.CLUSTER_UNREACHABLE
    return replace(
        found,
        reason=reason,
        message=f"{said}; as last seen: {found.message or found.status.value}",
        next_action=reason_of(reason).next_action,
    )


def _asleep_state(endpoint: InferenceEndpoint) -> PublicState:
    """Scaled to zero. What failed while it was awake is tried anew when it wakes."""
    note = _gpu_note(endpoint)
    if note is not None and _is_over(note) and not note.requeues:
        ended = _failed_state(endpoint)  # nothing would wake it
        if ended is not None:
            return ended
    scale = endpoint.status.scale
    why = f", because {scale.message}" if scale is not None and scale.message else ""
    took = scale.wake_seconds if scale is not None else None
    wakes = "the next request wakes it" + (f" in about {took:.1f} s" if took is not None else "")
    state = _state(PublicStatus.IDLE, ReasonCode.SCALED_TO_ZERO, f"scaled to zero{why}; {wakes}")
    return replace(state, ingress="Ready")


def _serving_state(endpoint: InferenceEndpoint) -> PublicState | None:
    """Running, Updating or Degraded when at least one routed replica answers; else None."""
    status, revision = endpoint.status, endpoint.spec.revision
    answering = [r for r in status.replicas if r.state is ReplicaState.READY and r.id.name in status.routed]
    if not answering:
        return None
    rollout = _rollout_state(endpoint, frozenset(replica.id.revision for replica in answering))
    if rollout is not None:
        return rollout
    wanted = endpoint.desired_replicas
    is_managed = status.ingress is not None
    current = [r for r in answering if r.id.revision == revision]
    failed = _failed_state(endpoint) if is_managed or len(current) < wanted else None
    older = sorted({r.id.revision for r in answering} - {revision})
    unsteady = next((r for r in current if r.waiting is not None), None)
    if len(current) >= wanted and failed is None and unsteady is not None and unsteady.waiting is not None:
        reason, message = unsteady.waiting.reason, f"it answers, but {unsteady.waiting.message}"
        state = _state(PublicStatus.DEGRADED, reason, message, predict="Ready", exit_=unsteady.exit)
        return replace(state, ingress="Ready")
    if len(current) >= wanted and failed is None:
        said = status.model.note if status.model is not None else ""
        return PublicState(PublicStatus.RUNNING, None, said, "", predict="Ready", ingress="Ready")
    if failed is None and not older and _is_growing(endpoint, len(answering)):
        message = f"{len(answering)} of {wanted} replicas answer; the others are on their way"
        return PublicState(PublicStatus.RUNNING, None, message, "", predict="Ready", ingress="Ready")
    if failed is not None and len(current) >= wanted:
        message = (
            f"{len(current)} replica{'s' if len(current) > 1 else ''} answer{'' if len(current) > 1 else 's'}"
        )
        message = f"{message}, while another does not come up; {failed.message}"
        return replace(
            failed, status=PublicStatus.DEGRADED, message=message, predict="Ready", ingress="Ready"
        )
    rest = failed or _progress_state(endpoint)
    if older:
        word = PublicStatus.DEGRADED if failed else PublicStatus.UPDATING
        message = f"revision {older[-1]} serves while revision {revision} is not there yet; {rest.message}"
    else:
        word = PublicStatus.DEGRADED
        message = f"{len(answering)} of {wanted} replicas answer; {rest.message}"
    return replace(rest, status=word, message=message, predict="Ready", ingress="Ready")


def _rollout_state(endpoint: InferenceEndpoint, answering: frozenset[int]) -> PublicState | None:
    """Two revisions that serve by intention, or one that was put back; None where neither is so."""
    spec, note = endpoint.spec, endpoint.status.rollout
    rollout = spec.rollout
    if rollout is None or note is None:
        return None
    phase = phase_of(spec.revision, rollout, note)
    if phase is RolloutPhase.ROLLED_BACK and rollout.base in answering:
        message = f"revision {spec.revision} was rolled back to revision {rollout.base}: {note.message}"
        state = _state(PublicStatus.DEGRADED, ReasonCode.ROLLED_BACK, message, predict="Ready")
        return replace(state, ingress="Ready")
    if phase is not RolloutPhase.SHIFTED or not rollout.is_gradual or spec.revision not in answering:
        return None
    parts = [
        f"revision {revision} gets {percent} % of requests"
        for revision, percent in shares(spec.revision, rollout, note, answering)
    ]
    if rollout.mirror_percent:
        parts.append(f"revision {spec.revision} copies of {rollout.mirror_percent} %")
    state = _state(PublicStatus.UPDATING, ReasonCode.ROLLOUT_IN_PROGRESS, ", ".join(parts), predict="Ready")
    return replace(state, ingress="Ready")


def _is_growing(endpoint: InferenceEndpoint, answering: int) -> bool:
    """Whether replicas are missing only because more were decided on than must be there.

    Where a cluster runs them by itself: whether nothing is in the way of those that are missing.
    """
    if endpoint.status.ingress is not None:
        return _progress_state(endpoint).reason in _UNDISTURBED
    return endpoint.status.scale is not None and answering >= max(endpoint.spec.scaling.min_replicas, 1)


def _failed_state(endpoint: InferenceEndpoint) -> PublicState | None:
    """Failed when the model cannot be had, a server keeps ending, or the engine reports a problem."""
    status = endpoint.status
    artifact = status.artifact
    note = _gpu_note(endpoint)
    if note is not None and _is_over(note) and not note.requeues:
        # Before all else: nothing is tried again until somebody acts.
        return _gpu_ended_state(endpoint, note)
    if artifact.phase is ArtifactPhase.FAILED and artifact.reason is not None:
        return _state(
            PublicStatus.FAILED, artifact.reason, artifact.message, next_retry_at=artifact.next_attempt_at
        )
    if status.problem is not None:
        return _state(PublicStatus.FAILED, status.problem, status.problem_message)
    if note is not None and _is_without_gpus(note):
        return None  # how servers ended on GPUs that it no longer has is history
    for replica in _coming(endpoint):
        stuck = replica.waiting
        if stuck is not None and stuck.fails:
            return _state(
                PublicStatus.FAILED,
                stuck.reason,
                stuck.message,
                exit_=replica.exit,
                next_retry_at=stuck.next_try_at,
            )
    if status.ingress is not None:
        return None  # there a replica itself says how its server ended, for as long as that matters
    running = {r.id.name for r in status.replicas if r.state is not ReplicaState.EXITED}
    wanted = {replica_id.name for replica_id in endpoint.replica_ids()}
    failing = [r for r in status.restarts if r.replica in wanted and _is_failing(r, running)]
    if not failing:
        return None
    record = max(failing, key=lambda r: (r.failures, r.replica))
    reason, last = record.last_exit.reason, record.last_exit
    message = last.message or _exit_sentence(last)
    if reason_of(reason).retry_helps and record.failures >= CRASH_LOOP_FAILURES:
        reason = ReasonCode.CRASH_LOOP
        message = f"ended {record.failures} times in a row; last: {message}"
    return _state(PublicStatus.FAILED, reason, message, exit_=last, next_retry_at=record.next_start_at)


def _coming(endpoint: InferenceEndpoint) -> list[Replica]:
    """Replicas that should serve and do not, by name.

    A cluster that runs them by itself may have more of them than were asked for: while one takes over
    from another, or by its own scaling.
    """
    status = endpoint.status
    wanted = {replica_id.name for replica_id in endpoint.replica_ids()}
    revisions = {replica_id.revision for replica_id in endpoint.replica_ids()}
    return [
        replica
        for replica in sorted(status.replicas, key=lambda r: r.id)
        if replica.id.name in wanted or (status.ingress is not None and replica.id.revision in revisions)
        if replica.state is not ReplicaState.READY or replica.id.name not in status.routed
    ]


def _is_failing(record: RestartRecord, running: set[str]) -> bool:
    """A single end is not shown while the next try already runs; what cannot mend itself always is."""
    return (
        record.replica not in running
        or record.failures >= 2
        or not reason_of(record.last_exit.reason).retry_helps
    )


def _progress_state(endpoint: InferenceEndpoint) -> PublicState:
    """On the way, nothing wrong: the furthest point reached decides the word."""
    status = endpoint.status
    note = _gpu_note(endpoint)
    if note is not None and _is_without_gpus(note):
        return _gpu_wait_state(note)
    # A replica that already serves says nothing about what the others are waiting for.
    coming = [
        replica
        for replica in status.replicas
        if replica.state is not ReplicaState.READY or replica.id.name not in status.routed
    ]
    states = {replica.state for replica in coming}
    if ReplicaState.READY in states:
        return _state(
            PublicStatus.LOADING,
            ReasonCode.ROUTE_NOT_READY,
            _route_sentence(status),
            predict="Ready",
        )
    waiting = [r.waiting for r in _coming(endpoint) if r.waiting is not None]
    if waiting:
        word = _WAITING_WORDS.get(waiting[0].reason, PublicStatus.LOADING)
        return _state(word, waiting[0].reason, waiting[0].message)
    if ReplicaState.UNRESPONSIVE in states:
        return _state(PublicStatus.FAILED, ReasonCode.UNRESPONSIVE, "the model server no longer answers")
    if ReplicaState.LOADING in states:
        return _state(PublicStatus.LOADING, ReasonCode.LOADING, "the model server is loading the model")
    if ReplicaState.STARTING in states:
        return _state(PublicStatus.LOADING, ReasonCode.STARTING, "the model server is starting")
    artifact = status.artifact
    if artifact.phase is ArtifactPhase.FETCHING:
        return _state(PublicStatus.DOWNLOADING, ReasonCode.DOWNLOADING, download_sentence(artifact))
    if ReplicaState.STOPPING in states:
        return _state(PublicStatus.PROVISIONING, ReasonCode.STARTING, "an earlier model server is ending")
    if note is not None:
        return _state(PublicStatus.PROVISIONING, ReasonCode.STARTING, _granted_sentence(note))
    if endpoint.spec.gpu is not None:
        return _state(
            PublicStatus.PENDING, ReasonCode.ACCEPTED, "accepted; its GPUs are about to be asked for"
        )
    if artifact.phase is ArtifactPhase.PRESENT:
        return _state(PublicStatus.PROVISIONING, ReasonCode.STARTING, "the model is here; its server is next")
    return _state(PublicStatus.PENDING, ReasonCode.ACCEPTED, "accepted; work on it is about to begin")


_WAITING_WORDS = {
    ReasonCode.UNSCHEDULABLE: PublicStatus.PENDING,
    ReasonCode.QUOTA_EXCEEDED: PublicStatus.PENDING,
    ReasonCode.POD_REFUSED: PublicStatus.PENDING,
    ReasonCode.VOLUME_NOT_READY: PublicStatus.PENDING,
    ReasonCode.KSERVE_NOT_READY: PublicStatus.PENDING,
    ReasonCode.SPEC_REFUSED: PublicStatus.PENDING,
    ReasonCode.ENGINE_ERROR: PublicStatus.PENDING,
    ReasonCode.NODE_NOT_READY: PublicStatus.PENDING,
    ReasonCode.POD_EVICTED: PublicStatus.PROVISIONING,
    ReasonCode.ACCEPTED: PublicStatus.PENDING,
    ReasonCode.STARTING: PublicStatus.PROVISIONING,
    ReasonCode.CONTAINER_START_FAILED: PublicStatus.PROVISIONING,
    ReasonCode.DOWNLOADING: PublicStatus.DOWNLOADING,
    ReasonCode.SCALED_TO_ZERO: PublicStatus.IDLE,
}
"""What a replica that waits makes of the endpoint; Loading where nothing else is said."""

_UNDISTURBED = frozenset(
    {
        ReasonCode.ACCEPTED,
        ReasonCode.STARTING,
        ReasonCode.DOWNLOADING,
        ReasonCode.LOADING,
        ReasonCode.ROUTE_NOT_READY,
    }
)
"""Reasons of what is on its way with nothing in between."""


def _route_sentence(status: EndpointStatus) -> str:
    if status.ingress is None:
        return "the model answers; the gateway is taking up its route"
    return f"the model answers; {status.ingress.message or 'the cluster has not let requests in yet'}"


# GPUs

_ENDED_REASONS = {
    ProvisioningStatus.COMPLETE: ReasonCode.EXIT_DURATION_REACHED,
    ProvisioningStatus.TIMED_OUT: ReasonCode.IDLE_TIMEOUT,
    ProvisioningStatus.EVICTED: ReasonCode.EVICTED,
    ProvisioningStatus.FAILED: ReasonCode.UNSCHEDULABLE,
}


def _gpu_note(endpoint: InferenceEndpoint) -> GpuNote | None:
    """What is known of the GPUs it needs; None for an endpoint on CPU, whatever it once had."""
    return endpoint.status.gpu if endpoint.spec.gpu is not None else None


def _is_over(note: GpuNote) -> bool:
    """Draining counts: no new server is started on GPUs that are being given back."""
    return note.status in ENDED or note.status is ProvisioningStatus.DRAINING


def _is_without_gpus(note: GpuNote) -> bool:
    return note.status is ProvisioningStatus.QUEUED or _is_over(note)


def _ended_reason(note: GpuNote) -> ReasonCode:
    return note.ended_reason or _ENDED_REASONS.get(note.status, ReasonCode.GPU_RELEASED)


def _gpu_ended_state(endpoint: InferenceEndpoint, note: GpuNote) -> PublicState:
    """Its GPUs are gone, or going, and nobody asks for others."""
    reason = _ended_reason(note)
    message = note.message or _plain_sentence(reason_of(reason).meaning)
    state = _state(PublicStatus.FAILED, reason, message + _still_held(note))
    if reason in _ENDED_REASONS.values() or reason is ReasonCode.GPU_RELEASED:
        # What helps the evicted is to be asked for again, and this one is not.
        last_resort = reason_of(ReasonCode.GPU_RELEASED).next_action if reason is ReasonCode.EVICTED else ""
        return replace(state, next_action=note.remedy or last_resort or state.next_action)
    # It could not use them. Whatever was in its way has its own evidence, and its own remedy.
    exits = [
        record.last_exit
        for record in endpoint.status.restarts
        if record.last_exit.reason is reason
        or (reason is ReasonCode.CRASH_LOOP and record.failures >= CRASH_LOOP_FAILURES)
    ]
    again = f"Then `inferplane start {endpoint.name}` asks for GPUs again, or delete the endpoint."
    return replace(
        state,
        next_action=f"{note.remedy or reason_of(reason).mended_by} {again}",
        exit=max(exits, key=lambda each: each.at, default=None),
    )


def _gpu_wait_state(note: GpuNote) -> PublicState:
    """In line, or about to be again."""
    if note.status is not ProvisioningStatus.QUEUED:
        reason = _ended_reason(note)
        message = note.message or _plain_sentence(reason_of(reason).meaning)
        again = f"{message}; its GPUs are asked for again{_still_held(note)}"
        return _state(PublicStatus.QUEUED, reason, again)
    place = "" if note.position is None else f"position {note.position} in line for its GPUs"
    parts = [note.message or place or "its GPUs are asked for; its place in line is not known yet"]
    if note.estimated_start is not None:
        parts.append(f"estimated start {_instant(note.estimated_start)}")
    elif note.assumption:
        parts.append(f"there is no estimate: {note.assumption}")
    state = _state(PublicStatus.QUEUED, note.reason, "; ".join(parts))
    return replace(state, next_action=note.remedy or state.next_action)


def _still_held(note: GpuNote) -> str:
    return "; they are held until its model servers have ended" if note.nodes else ""


def _granted_sentence(note: GpuNote) -> str:
    where = ", ".join(
        f"{'GPU' if len(gpus) == 1 else 'GPUs'} {', '.join(map(str, gpus))} of node {node}"
        for node, gpus in note.nodes[:NODES_SHOWN_MAX]
    )
    more = len(note.nodes) - NODES_SHOWN_MAX
    where += f" and of {more} more node{'s' if more > 1 else ''}" if more > 0 else ""
    cluster = f" on cluster {note.cluster}" if note.cluster else ""
    since = f" since {_instant(note.since)}" if note.since is not None else ""
    return f"granted {where or 'its GPUs'}{cluster}{since}; its server is next"


def _plain_sentence(meaning: str) -> str:
    """A sentence of the reasons' table as a part of another."""
    return meaning[:1].lower() + meaning[1:].removesuffix(".")


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def _state(
    status: PublicStatus,
    reason: ReasonCode,
    message: str,
    *,
    predict: str = "",
    exit_: Exit | None = None,
    next_retry_at: datetime | None = None,
) -> PublicState:
    return PublicState(
        status,
        reason,
        message,
        reason_of(reason).next_action,
        predict=predict or reason.value,
        ingress=reason.value,
        exit=exit_,
        next_retry_at=next_retry_at,
    )


def download_sentence(artifact: ArtifactState) -> str:
    """One line on a download: bytes of total, rate, time left, resumed or fresh."""
    total = f" of {human_bytes(artifact.total_bytes)}" if artifact.total_bytes is not None else ""
    parts = [f"{human_bytes(artifact.received_bytes)}{total}"]
    if artifact.rate_bytes_per_second > 0:
        parts.append(f"{human_bytes(int(artifact.rate_bytes_per_second))}/s")
    if (eta := artifact.eta_seconds) is not None:
        parts.append(f"about {human_seconds(eta)} left")
    if artifact.resumed_from_bytes:
        parts.append(f"resumed from {human_bytes(artifact.resumed_from_bytes)}")
    return ", ".join(parts)


def human_seconds(seconds: float) -> str:
    """A time to wait, in the largest unit of which there are two: `90` → `90 s`, `2774` → `46 min`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def human_bytes(size: int) -> str:
    """Binary units with one decimal: `1536` → `1.5 KiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _exit_sentence(last: Exit) -> str:
    if last.signal:
        return f"the model server was ended by {last.signal}"
    if last.exit_code is None:
        return "the model server ended while nobody watched it"
    return f"the model server ended with exit code {last.exit_code}"
