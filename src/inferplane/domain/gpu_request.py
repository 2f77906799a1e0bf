"""A GPU provisioning request (GPR): what is asked for, what it holds, and what may happen to it.

    Queued → Provisioning → Successful → Draining → Complete | EarlyReleased | TimedOut | Evicted | Failed
       ↑                                                                             │         │
       └────────────────────────── asked again, if it wants to be ───────────────────┴─────────┘

Every change is a function from a request and `now` to a new request, or a Conflict that says why not.
The GPUs stay held through Draining: they are free when they are seen free, not when somebody says so.
Deadlines are absolute instants computed from what is stored, so neither a restart nor a long pause
moves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from inferplane.domain.errors import Conflict, Invalid, Problem, QuotaExceeded
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.workspace import WorkspacePolicy

REQUEST_NAME_CHARACTERS_MAX = 40
GPUS_PER_NODE_MAX = 100
NODES_MAX = 100
MEMORY_GB_MAX = 100_000
PREFERRED_CLUSTERS_MAX = 100
EXIT_DURATION_MAX = timedelta(days=365)  # "at most one year", counted as 365 days
PRIORITY_LOWEST = 1
PRIORITY_HIGHEST = 299
PRIORITY_DEFAULT = 101
EXIT_DURATION_DEFAULT = timedelta(days=7)
REQUEUES_AFTER_FAILURE_MAX = 3
"""So often a request goes back into the queue by itself after failing. Being evicted does not count."""

UNLIMITED = WorkspacePolicy("")
"""The policy of a workspace for which no Owner has set one."""


class ProvisioningStatus(StrEnum):
    """Where a request is in its life. The value is what the wire carries."""

    QUEUED = "Queued"
    PROVISIONING = "Provisioning"  # GPUs are held, the engine prepares what will use them
    SUCCESSFUL = "Successful"  # in use; the exit duration runs
    DRAINING = "Draining"  # ending; GPUs are still held
    COMPLETE = "Complete"  # the exit duration was reached
    EARLY_RELEASED = "EarlyReleased"
    TIMED_OUT = "TimedOut"  # idle for its idle timeout
    EVICTED = "Evicted"
    FAILED = "Failed"


HOLDING = frozenset(
    {ProvisioningStatus.PROVISIONING, ProvisioningStatus.SUCCESSFUL, ProvisioningStatus.DRAINING}
)
ENDED = frozenset(
    {
        ProvisioningStatus.COMPLETE,
        ProvisioningStatus.EARLY_RELEASED,
        ProvisioningStatus.TIMED_OUT,
        ProvisioningStatus.EVICTED,
        ProvisioningStatus.FAILED,
    }
)

NEXT: dict[ProvisioningStatus, frozenset[ProvisioningStatus]] = {
    ProvisioningStatus.QUEUED: frozenset({ProvisioningStatus.PROVISIONING, ProvisioningStatus.FAILED}),
    ProvisioningStatus.PROVISIONING: frozenset({ProvisioningStatus.SUCCESSFUL, ProvisioningStatus.DRAINING}),
    ProvisioningStatus.SUCCESSFUL: frozenset({ProvisioningStatus.DRAINING}),
    ProvisioningStatus.DRAINING: ENDED,
    ProvisioningStatus.COMPLETE: frozenset(),
    ProvisioningStatus.EARLY_RELEASED: frozenset(),
    ProvisioningStatus.TIMED_OUT: frozenset(),
    ProvisioningStatus.EVICTED: frozenset({ProvisioningStatus.QUEUED}),
    ProvisioningStatus.FAILED: frozenset({ProvisioningStatus.QUEUED}),
}
"""Which status may follow which. What is not here is refused."""


class CoarseStatus(StrEnum):
    """The four words that an endpoint's `gpuRequests` uses for a request's status."""

    QUEUED = "Queued"
    PROVISIONED = "Provisioned"
    RELEASED = "Released"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which GPUs would do. `gpus_per_node` are needed on each of `nodes` different nodes.

    Where: `auto_cluster` (any cluster of the workspace), else `preferred_clusters` in that order, else
    `cluster_name`. What: `auto_gpu` (any GPU with at least `memory_gb`, the smallest that does), else
    `gpu_shape` and `instance_type`, each "" for any; `memory_gb` is per GPU and a minimum, 0 for any.
    """

    cluster_name: str = ""
    preferred_clusters: tuple[str, ...] = ()
    auto_cluster: bool = False
    auto_gpu: bool = False
    gpu_shape: str = ""
    instance_type: str = ""
    memory_gb: int = 0
    gpus_per_node: int = 1
    nodes: int = 1

    @property
    def gpus(self) -> int:
        """GPUs on all nodes together."""
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True, slots=True)
class Grant:
    """GPUs given to a request: (node, GPU indexes) in the order of the nodes' names, all of one cluster."""

    cluster: str
    nodes: tuple[tuple[str, tuple[int, ...]], ...]
    gpu_shape: str = ""
    instance_type: str = ""
    memory_gb: int = 0

    @property
    def gpus(self) -> int:
        """GPUs on all nodes together."""
        return sum(len(indexes) for _, indexes in self.nodes)


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """One request as stored. `id` is `gpr-<8 hex>-<4 hex>`; all instants are aware UTC.

    `queued_at` is the age that the order goes by. `granted_at` is when GPUs were given, `started_at` when
    they came into use: the exit duration counts from there. `renewed_until` replaces the deadline after a
    renewal. `idle_since` is None while busy and before the first Ready. `ending_as` says what a Draining
    request will be. `failure_reason` says in words why it failed or was evicted, `failure_code` why it
    failed, `released_by` who released it. `grant` stays on ended requests as their history; only
    `holds_gpus` counts.
    """

    id: str
    name: str
    workspace: str
    selection: Selection
    created_at: datetime
    queued_at: datetime
    exit_duration: timedelta = EXIT_DURATION_DEFAULT
    priority: int = PRIORITY_DEFAULT
    created_by: str = ""
    endpoint_uid: str = ""
    endpoint_name: str = ""
    idle_timeout: timedelta | None = None
    enforce_idle: bool = False
    enable_eviction: bool = False
    requeue_on_failure: bool = False
    auto_renew: bool = False
    multi_node: bool = False
    dedicated_nodes: bool = False
    enable_rdma: bool = False
    enable_secondary_network: bool = False
    status: ProvisioningStatus = ProvisioningStatus.QUEUED
    grant: Grant | None = None
    granted_at: datetime | None = None
    started_at: datetime | None = None
    renewed_until: datetime | None = None
    idle_since: datetime | None = None
    draining_since: datetime | None = None
    completed_at: datetime | None = None
    ending_as: ProvisioningStatus | None = None
    early_release: bool = False
    failure_reason: str = ""
    failure_code: ReasonCode | None = None
    released_by: str = ""
    evicted_by: str = ""
    evicted_at: datetime | None = None
    retry_count: int = 0
    delayed_count: int = 0
    version: int = 1

    @property
    def holds_gpus(self) -> bool:
        """Whether its grant is taken from what is free. True through Draining."""
        return self.status in HOLDING and self.grant is not None

    @property
    def has_ended(self) -> bool:
        """Whether it will hold nothing any more, unless it is asked again."""
        return self.status in ENDED

    @property
    def internal_state(self) -> str:
        """The API's `internalState`: "" while queued, then `Reserved`, then `Released`."""
        if self.status is ProvisioningStatus.QUEUED:
            return ""
        return "Reserved" if self.status in HOLDING else "Released"

    @property
    def coarse_status(self) -> CoarseStatus:
        """What an endpoint's `gpuRequests` shows: while draining what it will be, for the endpoint has lost it."""
        status = self.ending_as or self.status
        if status is ProvisioningStatus.QUEUED:
            return CoarseStatus.QUEUED
        if status in ENDED:
            return CoarseStatus.FAILED if status is ProvisioningStatus.FAILED else CoarseStatus.RELEASED
        return CoarseStatus.PROVISIONED

    @property
    def gpus_allocated(self) -> int:
        """The API's `numGpusAllocated`."""
        return self.grant.gpus if self.grant is not None and self.holds_gpus else 0

    @property
    def ends_at(self) -> datetime | None:
        """When the exit duration is reached; None before the GPUs came into use."""
        if self.renewed_until is not None:
            return self.renewed_until
        return None if self.started_at is None else self.started_at + self.exit_duration

    @property
    def idle_ends_at(self) -> datetime | None:
        """When the idle timeout is reached if nothing happens; None where it is not enforced or not idle."""
        if not self.enforce_idle or self.idle_timeout is None or self.idle_since is None:
            return None
        return self.idle_since + self.idle_timeout

    def remaining(self, now: datetime) -> timedelta:
        """What is left of the exit duration: all of it before the start, nothing once ended or draining."""
        if self.status in (ProvisioningStatus.QUEUED, ProvisioningStatus.PROVISIONING):
            return self.exit_duration
        if self.status is not ProvisioningStatus.SUCCESSFUL or self.ends_at is None:
            return timedelta(0)
        return max(timedelta(0), self.ends_at - now)


# --- What the system does ----------------------------------------------------------------------


def granted(request: GpuRequest, grant: Grant, now: datetime) -> GpuRequest:
    """Queued → Provisioning: the GPUs are its own from here on. Raises Conflict."""
    _check_next(request, ProvisioningStatus.PROVISIONING)
    return replace(request, status=ProvisioningStatus.PROVISIONING, grant=grant, granted_at=now)


def started(request: GpuRequest, now: datetime) -> GpuRequest:
    """Provisioning → Successful: in use, the exit duration runs. Raises Conflict."""
    _check_next(request, ProvisioningStatus.SUCCESSFUL)
    return replace(request, status=ProvisioningStatus.SUCCESSFUL, started_at=now, idle_since=None)


def draining(
    request: GpuRequest,
    ending_as: ProvisioningStatus,
    now: datetime,
    *,
    failure_reason: str = "",
    failure_code: ReasonCode | None = None,
    evicted_by: str = "",
    released_by: str = "",
) -> GpuRequest:
    """Provisioning or Successful → Draining: the engine is asked to let go. Raises Conflict.

    A request that drains keeps the reason it began to drain with; the first one stands.
    """
    _check_next(request, ProvisioningStatus.DRAINING)
    assert ending_as in ENDED
    evicted = ending_as is ProvisioningStatus.EVICTED
    return replace(
        request,
        status=ProvisioningStatus.DRAINING,
        ending_as=ending_as,
        draining_since=now,
        failure_reason=failure_reason,
        failure_code=failure_code,
        released_by=released_by,
        evicted_by=evicted_by if evicted else "",
        evicted_at=now if evicted else request.evicted_at,
        early_release=request.early_release or ending_as is ProvisioningStatus.EARLY_RELEASED,
    )


def ended(request: GpuRequest, now: datetime) -> GpuRequest:
    """Draining → what it was draining for: the engine has shown the GPUs free. Raises Conflict."""
    ending_as = request.ending_as
    if request.status is not ProvisioningStatus.DRAINING or ending_as is None:
        raise _conflict(request, f"GPR in {request.status} state cannot end without draining")
    _check_next(request, ending_as)
    return replace(request, status=ending_as, ending_as=None, completed_at=now)


def refused(
    request: GpuRequest, failure_reason: str, now: datetime, *, failure_code: ReasonCode | None = None
) -> GpuRequest:
    """Queued → Failed: GPUs would be of no use to it (its model cannot be had). Raises Conflict."""
    if request.status is not ProvisioningStatus.QUEUED:
        raise _conflict(request, f"GPR in {request.status} state cannot be refused")
    return replace(
        request,
        status=ProvisioningStatus.FAILED,
        failure_reason=failure_reason,
        failure_code=failure_code,
        evicted_by="",
        completed_at=now,
    )


def wants_requeue(request: GpuRequest, policy: WorkspacePolicy = UNLIMITED) -> bool:
    """Whether an ended request goes back into the queue by itself: evicted or failed, and it asked for it.

    One that renews itself also wants that where a node was lost: it did not end by its own will. Not after it has failed too often, nor when it failed for what only a person can mend: it would take
    GPUs from the line again and again, and give them back unused.
    """
    if ProvisioningStatus.QUEUED not in NEXT[request.status]:
        return False
    if request.status is ProvisioningStatus.FAILED:
        code = request.failure_code
        if code is not None and not reason_of(code).retry_helps:
            return False
        if request.retry_count - request.delayed_count >= REQUEUES_AFTER_FAILURE_MAX:
            return False
    lost_its_node = request.failure_code is ReasonCode.NODE_NOT_READY and request.auto_renew
    return request.requeue_on_failure or policy.requeue_on_failure or lost_its_node


def requeued(request: GpuRequest, now: datetime) -> GpuRequest:
    """Evicted or Failed → Queued, for another try. Raises Conflict.

    An evicted request keeps its age, and so does one whose node was lost: they did nothing wrong. One that
    failed goes to the end of its priority, so that a request which fails each time cannot keep others from their turn.
    It keeps `evicted_by` and `failure_reason`, so that it can say what happened, until it ends again.
    """
    _check_next(request, ProvisioningStatus.QUEUED)
    blameless = (
        request.status is ProvisioningStatus.EVICTED or request.failure_code is ReasonCode.NODE_NOT_READY
    )
    return replace(
        request,
        status=ProvisioningStatus.QUEUED,
        queued_at=request.queued_at if blameless else now,
        grant=None,
        granted_at=None,
        started_at=None,
        renewed_until=None,
        idle_since=None,
        draining_since=None,
        completed_at=None,
        early_release=False,
        retry_count=request.retry_count + 1,
        delayed_count=request.delayed_count + (1 if blameless else 0),
    )


def renewed(request: GpuRequest, now: datetime) -> GpuRequest:
    """Push the deadline of a Successful request on by its exit duration. Raises Conflict."""
    if request.status is not ProvisioningStatus.SUCCESSFUL or request.ends_at is None:
        raise _conflict(request, f"Cannot renew GPR in {request.status} state")
    return replace(request, renewed_until=max(request.ends_at, now) + request.exit_duration)


def active(request: GpuRequest, idle_since: datetime | None) -> GpuRequest:
    """Note since when the GPUs are idle (None: busy). Counts in Successful only; elsewhere no change."""
    if request.status is not ProvisioningStatus.SUCCESSFUL or request.idle_since == idle_since:
        return request
    return replace(request, idle_since=idle_since)


def due(request: GpuRequest, now: datetime) -> ProvisioningStatus | None:
    """What a Successful request should begin to drain for at `now`: COMPLETE, TIMED_OUT, or None.

    When both deadlines have passed, the earlier one counts: it would have been acted on by a
    control plane that was awake.
    """
    if request.status is not ProvisioningStatus.SUCCESSFUL:
        return None
    deadlines = [
        (at, ending)
        for at, ending in (
            (request.ends_at, ProvisioningStatus.COMPLETE),
            (request.idle_ends_at, ProvisioningStatus.TIMED_OUT),
        )
        if at is not None and at <= now
    ]
    return min(deadlines)[1] if deadlines else None


def next_deadline(request: GpuRequest) -> datetime | None:
    """When `due` has to be asked again at the latest, or None."""
    if request.status is not ProvisioningStatus.SUCCESSFUL:
        return None
    return min((at for at in (request.ends_at, request.idle_ends_at) if at is not None), default=None)


# --- What a user may do ------------------------------------------------------------------------


def renamed(request: GpuRequest, name: str) -> GpuRequest:
    """Another name, while Queued. Raises Conflict, Invalid."""
    if request.status is not ProvisioningStatus.QUEUED:
        raise _conflict(request, f"Cannot update name of GPR in {request.status} state")
    _raise(_name_problems(name))
    return replace(request, name=name)


def reprioritised(request: GpuRequest, priority: int, policy: WorkspacePolicy = UNLIMITED) -> GpuRequest:
    """Another priority, while Queued. Raises Conflict, Invalid, QuotaExceeded."""
    if request.status is not ProvisioningStatus.QUEUED:
        raise _conflict(request, f"Cannot update priority of GPR in {request.status} state")
    _raise(_priority_problems(priority))
    changed = replace(request, priority=priority)
    _raise_quota(policy_problems(changed, policy))
    return changed


def extended(
    request: GpuRequest, exit_duration: timedelta, now: datetime, policy: WorkspacePolicy = UNLIMITED
) -> GpuRequest:
    """Another exit duration, until the request drains. Counts from the start. Raises Conflict, Invalid."""
    if request.has_ended or request.status is ProvisioningStatus.DRAINING:
        raise _conflict(request, f"Cannot update exit duration of GPR in {request.status} state")
    _raise(_exit_problems(exit_duration))
    if request.started_at is not None and request.started_at + exit_duration <= now:
        raise Invalid(
            f"exitDuration {format_duration(exit_duration)} is already over for this GPR",
            reason="ExitDurationPassed",
            field="exitDuration",
            next_action="Ask for a longer duration, or release it with earlyRelease.",
        )
    changed = replace(request, exit_duration=exit_duration, renewed_until=None)
    _raise_quota(policy_problems(changed, policy))
    return changed


def early_released(request: GpuRequest, now: datetime, *, by: str = "") -> GpuRequest:
    """Provisioning or Successful → Draining, because somebody asked, `by`. Raises Conflict elsewhere."""
    if request.status not in (ProvisioningStatus.PROVISIONING, ProvisioningStatus.SUCCESSFUL):
        next_action = (
            "It has not started; delete it instead." if request.status is ProvisioningStatus.QUEUED else ""
        )
        raise _conflict(request, f"Cannot update early release of GPR in {request.status} state", next_action)
    return draining(request, ProvisioningStatus.EARLY_RELEASED, now, released_by=by)


def check_deletable(request: GpuRequest) -> None:
    """Only what holds nothing can be deleted. Raises Conflict."""
    if request.status in HOLDING:
        next_action = "Release it first with earlyRelease, then delete it."
        if request.status is ProvisioningStatus.DRAINING:
            next_action = "Its GPUs are being freed; delete it when that is done."
        raise _conflict(request, f"Cannot delete GPR in {request.status} state", next_action)


# --- Whether it may be asked for ---------------------------------------------------------------


def request_problems(request: GpuRequest) -> tuple[Problem, ...]:
    """Everything in a request that cannot be meant, field by field in the caller's spelling."""
    selection = request.selection
    problems = _name_problems(request.name) + _exit_problems(request.exit_duration)
    problems += _priority_problems(request.priority)
    problems += _range_problems(selection.gpus_per_node, "numberOfGPUs", 1, GPUS_PER_NODE_MAX)
    problems += _range_problems(selection.nodes, "numberOfGPUNodes", 1, NODES_MAX)
    problems += _range_problems(selection.memory_gb, "memoryPerGPU", 0, MEMORY_GB_MAX)
    if request.idle_timeout is not None and not timedelta(0) < request.idle_timeout <= EXIT_DURATION_MAX:
        problems += _problem(
            "idleTimeOutDuration",
            "OutOfRange",
            f"must be longer than 0 and at most {EXIT_DURATION_MAX.days} days",
        )
    if request.enforce_idle and request.idle_timeout is None:
        problems += _problem("idleTimeOutDuration", "Missing", "is needed with enforceIdleTimeOut")
    return problems + _cluster_problems(selection) + _gpu_problems(selection)


def check_request(request: GpuRequest) -> None:
    """Raise Invalid with one detail per problem, if there is any."""
    _raise(request_problems(request))


def policy_problems(request: GpuRequest, policy: WorkspacePolicy) -> tuple[Problem, ...]:
    """What the workspace's policy forbids about this request, whatever else is going on."""
    problems: tuple[Problem, ...] = ()
    selection = request.selection
    lowest, highest = policy.priority_lowest, policy.priority_highest
    if not lowest <= request.priority <= highest:
        problems += _problem(
            "priority", "PriorityNotAllowed", f"must be {lowest} to {highest} in this workspace"
        )
    longest = policy.max_exit_duration
    if longest is not None and request.exit_duration > longest:
        problems += _problem(
            "exitDuration",
            "DurationNotAllowed",
            f"may be at most {format_duration(longest)} in this workspace",
        )
    shapes = policy.gpu_shapes
    if shapes and not selection.auto_gpu and selection.gpu_shape and selection.gpu_shape not in shapes:
        problems += _problem(
            "gpuShape", "ShapeNotAllowed", f"must be one of {', '.join(shapes)} in this workspace"
        )
    gpus_max = policy.max_gpus_per_request
    if gpus_max is not None and selection.gpus > gpus_max:
        problems += _problem(
            "numberOfGPUs",
            "TooManyGpus",
            f"{selection.gpus} GPUs are asked for; a request of this workspace may have {gpus_max}",
        )
    memory_max = policy.max_memory_gb_per_request
    if memory_max is not None and selection.gpus * selection.memory_gb > memory_max:
        problems += _problem(
            "memoryPerGPU",
            "TooMuchMemory",
            f"{selection.gpus * selection.memory_gb} GB are asked for; "
            f"a request of this workspace may have {memory_max} GB",
        )
    return problems


def check_admission(request: GpuRequest, policy: WorkspacePolicy, others: Iterable[GpuRequest]) -> None:
    """Whether `request` may join the queue. `others` are the workspace's requests, itself excluded or not.

    Raises Invalid for what cannot be meant, QuotaExceeded for what the policy forbids.
    """
    check_request(request)
    problems = policy_problems(request, policy)
    live = [each for each in others if not each.has_ended and each.id != request.id]
    if policy.max_requests is not None and len(live) >= policy.max_requests:
        problems += _problem(
            "gprName",
            "TooManyRequests",
            f"the workspace has {len(live)} GPRs that have not ended; it may have {policy.max_requests}",
        )
    queued = sum(each.status is ProvisioningStatus.QUEUED for each in live)
    if queued >= policy.max_queued:
        problems += _problem(
            "gprName",
            "QueueFull",
            f"the workspace has {queued} GPRs waiting; it may have {policy.max_queued}",
        )
    _raise_quota(problems)


def takes_part_in_eviction(request: GpuRequest, policy: WorkspacePolicy = UNLIMITED) -> bool:
    """Whether eviction is for this request: one rule for both sides.

    Who may take GPUs from lower priorities may also lose them to higher ones, and nobody else does either.
    """
    return request.enable_eviction or policy.auto_eviction


def _cluster_problems(selection: Selection) -> tuple[Problem, ...]:
    if len(selection.preferred_clusters) > PREFERRED_CLUSTERS_MAX:
        return _problem("preferredClusters", "TooMany", f"may name at most {PREFERRED_CLUSTERS_MAX} clusters")
    if selection.auto_cluster and selection.preferred_clusters:
        return _problem("preferredClusters", "Contradiction", "must be empty with enableAutoClusterSelection")
    if not (selection.auto_cluster or selection.preferred_clusters or selection.cluster_name):
        return _problem(
            "clusterName", "Missing", "is needed without preferredClusters or enableAutoClusterSelection"
        )
    return ()


def _gpu_problems(selection: Selection) -> tuple[Problem, ...]:
    problems: tuple[Problem, ...] = ()
    if selection.auto_gpu:
        for field, value in (("gpuShape", selection.gpu_shape), ("instanceType", selection.instance_type)):
            if value:
                problems += _problem(field, "Contradiction", "must be empty with enableAutoGpuSelection")
        if selection.memory_gb <= 0:
            problems += _problem("memoryPerGPU", "Missing", "is needed with enableAutoGpuSelection")
        return problems
    for field, value in (("gpuShape", selection.gpu_shape), ("instanceType", selection.instance_type)):
        if not value:
            problems += _problem(field, "Missing", "is needed without enableAutoGpuSelection")
    return problems


def _name_problems(name: str) -> tuple[Problem, ...]:
    if not name.strip():
        return _problem("gprName", "Missing", "is needed")
    if len(name) > REQUEST_NAME_CHARACTERS_MAX:
        return _problem(
            "gprName",
            "TooLong",
            f"is {len(name)} characters long; at most {REQUEST_NAME_CHARACTERS_MAX} are allowed",
        )
    return ()


def _exit_problems(exit_duration: timedelta) -> tuple[Problem, ...]:
    if not timedelta(0) < exit_duration <= EXIT_DURATION_MAX:
        return _problem(
            "exitDuration", "OutOfRange", f"must be longer than 0 and at most {EXIT_DURATION_MAX.days} days"
        )
    return ()


def _priority_problems(priority: int) -> tuple[Problem, ...]:
    return _range_problems(priority, "priority", PRIORITY_LOWEST, PRIORITY_HIGHEST)


def _range_problems(value: int, field: str, lowest: int, highest: int) -> tuple[Problem, ...]:
    if lowest <= value <= highest:
        return ()
    return _problem(field, "OutOfRange", f"must be {lowest} to {highest}")


def _problem(field: str, reason: str, rest: str) -> tuple[Problem, ...]:
    message = rest if rest[:1].isdigit() or rest.startswith("the ") else f"{field} {rest}"
    return (Problem(field, reason, message),)


def _raise(problems: tuple[Problem, ...]) -> None:
    if problems:
        first = problems[0]
        raise Invalid(first.message, reason=first.reason, field=first.field, details=problems)


def _raise_quota(problems: tuple[Problem, ...]) -> None:
    if problems:
        first = problems[0]
        raise QuotaExceeded(
            first.message,
            reason=first.reason,
            field=first.field,
            details=problems,
            next_action="Ask for less, or ask an Owner to change the workspace's policy.",
        )


def _check_next(request: GpuRequest, status: ProvisioningStatus) -> None:
    if status not in NEXT[request.status]:
        raise _conflict(request, f"GPR in {request.status} state cannot become {status}")


def _conflict(request: GpuRequest, message: str, next_action: str = "") -> Conflict:
    return Conflict(message, reason=f"GprIs{request.status}", next_action=next_action or _else(request))


def _else(request: GpuRequest) -> str:
    """What is left to do with a request in whose state something cannot be done."""
    if request.status is ProvisioningStatus.QUEUED:
        return "It waits for its GPUs: do it once it has them, or delete it."
    if request.status is ProvisioningStatus.DRAINING:
        return "Its GPUs are being given back: wait until they are, or ask for others with a new request."
    if request.has_ended:
        return "It is over: ask for GPUs with a new request, or delete this one."
    return "It has its GPUs: change its exitDuration, release it early, or ask with a new request."
