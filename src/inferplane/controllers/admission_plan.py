"""What becomes of every GPU request next: a function from a picture to changes.

    requests, nodes, policies, usage (the scheduler's snapshot) + their endpoints + who is idle + now
        → changed requests with their events, who waits and why, when to look again

One pass takes all requests together, because who gets GPUs depends on everybody:

1. Lifecycle, request by request. Deadlines are looked at, endpoints that are gone or stopped let go,
   grants that came into use begin to count, and what drains ends once it is *seen* to hold nothing.
2. Renewal: who reached the exit duration and renews itself goes on unless somebody ahead wants the GPUs.
   Then it ends like others, and a new request of it joins the line.
3. The scheduler: evictions and grants.

The shell in `admission.py` gathers the picture and saves the changes. Nothing here waits, asks or
remembers: everything follows from what is stored, so a crash anywhere costs nothing but the pass.

Rules kept here, each because breaking it would hurt somebody:

* GPUs are free only when the endpoint's controller has answered *this* drain (`is_seen_free`): it knows
  that it may start nothing on them any more, and saw no model server alive after that.
* A request that waits is never refused for what may change (its shape is not there, its policy forbids
  it): it says so and waits.
* Idle time counts only what was measured, and only once the GPUs were in use.
* On a cluster of Kubernetes a node may die, or be cordoned and drained. Where no replica of an endpoint answers and
  a node of its grant has been out of order for a while, the grant ends as `NodeNotReady` and asks again where it
  wants that. While one answers, nothing is taken from it; while the cluster itself is away, nobody is judged.
* GPUs are not held for who cannot use them: a grant that does not come into use in time ends, and at once
  where the endpoint failed for what only a person can mend. Such a request does not come back by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain, islice

from inferplane.controllers.endpoint_failures import ALIVE
from inferplane.controllers.endpoint_gpus import ending_reason
from inferplane.controllers.endpoint_news import PlannedEvent
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import (
    CRASH_LOOP_FAILURES,
    InferenceEndpoint,
    PublicStatus,
    ReplicaState,
    public_state,
)
from inferplane.domain.gpu_request import (
    REQUEST_NAME_CHARACTERS_MAX,
    GpuRequest,
    ProvisioningStatus,
    active,
    draining,
    due,
    early_released,
    ended,
    granted,
    next_deadline,
    refused,
    renewed,
    requeued,
    started,
    wants_requeue,
)
from inferplane.domain.inventory import Node, NodeHealth
from inferplane.domain.quantity import format_duration
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.storage_uri import redacted
from inferplane.domain.wait_note import WaitNote
from inferplane.scheduler import Decisions, Snapshot, Wait, forecast, renewal, schedule
from inferplane.scheduler.decisions import NEVER, Estimate, WaitReason

START_LIMIT = timedelta(hours=1)
"""So long a grant is held before it comes into use: for fetching the model and for tries that fail. The
start timeout of one server comes on top, and the exit duration is never exceeded."""

SETTLING = timedelta(minutes=1)
"""After a pause of the control plane nobody is held to the start limit for so long: what started
meanwhile has to be seen first."""

RENEWALS_PER_PASS_MAX = 16
"""So many renewals are worked out in one pass; the others in the next, which follows at once."""

GRANTS_PER_PASS_MAX = 256
"""So many grants are made in one pass, which is one transaction; the others in the next."""

NOTES_PER_PASS_MAX = 1000
"""So many waits are put into words in one pass: first those without words, then those first in line."""

IDLE_SLACK = timedelta(seconds=30)
"""An idle time that moved by less is not written down. What is measured decides, not what is stored."""

ESTIMATE_SLACK = timedelta(seconds=5)
"""An estimate that moved by less is no news."""

IDLE_LOOK_SECONDS = 5.0
"""How soon to look again at who was busy and is to be released when idle: idleness announces itself to nobody."""

NODE_GRACE = timedelta(minutes=2)
"""A node that is out of order for less may come back with everything on it: a restart of its kubelet, a short cut
of the network."""

STEPS_PER_PASS_MAX = 4
"""How many steps of its life one request may take in a pass (drain, end, go back in line)."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything one pass knows.

    `snapshot.requests` are those that have not ended. `endpoints` are theirs, by uid; a uid that is
    missing is gone. `idle_since` has a measurement by the endpoint's uid, or by the id of a request without
    one, wherever something measures: None is busy, or not known.
    `awake_since` is when these passes began; None for always. `generation` is the store's, read before all
    the rest. `kubernetes` are the clusters of Kubernetes that have
    answered for a while, so that what is known of their nodes is new.
    """

    snapshot: Snapshot
    endpoints: Mapping[str, InferenceEndpoint] = field(default_factory=dict)
    idle_since: Mapping[str, datetime | None] = field(default_factory=dict)
    awake_since: datetime | None = None
    generation: int = 0
    kubernetes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RequestChange:
    """One request to be saved, with what is told of it. `before` is None for a new one, `after` for one
    to be deleted. `after` has the version of the row that it replaces.

    `relies_on` is the endpoint that was seen not to want it, or not to get anywhere with it: the change is
    right only as long as that row is as it was seen. Whoever starts the endpoint asks for new GPUs only if
    this request is over, and one that is mended, or just came into use, is not to lose them.
    """

    before: GpuRequest | None
    after: GpuRequest | None
    events: tuple[PlannedEvent, ...]
    relies_on: InferenceEndpoint | None = None


@dataclass(frozen=True, slots=True)
class AdmissionPlan:
    """What a pass decided.

    `changes` are to be saved together or not at all: one request may take what another gave back.
    `snapshot` is the picture afterwards. `look_again_seconds` is None when nothing falls due by time alone.
    """

    changes: tuple[RequestChange, ...]
    snapshot: Snapshot
    decisions: Decisions
    look_again_seconds: float | None


def plan(picture: Picture) -> AdmissionPlan:
    """Decide what becomes of every request. Pure and total."""
    ledger = _Ledger(picture)
    more_later = _live_on(ledger)
    decisions = schedule(ledger.snapshot())
    _evict(ledger, decisions)
    _grant(ledger, decisions)
    more_later = more_later or len(decisions.grants) > GRANTS_PER_PASS_MAX
    after = ledger.snapshot()
    return AdmissionPlan(
        changes=ledger.changes(),
        snapshot=after,
        decisions=decisions,
        look_again_seconds=0.0 if more_later else _next_look(after, picture),
    )


def is_seen_free(request: GpuRequest, endpoint: InferenceEndpoint | None) -> bool:
    """Whether nothing runs any more on the GPUs of a Draining request.

    The endpoint's controller writes down which drain it knows of (request and moment) together with what
    it saw afterwards. A status from before this drain proves nothing: a start may be on its way.
    """
    if endpoint is None:
        return True  # it had none, or its last trace is gone
    note = endpoint.status.gpu
    return (
        note is not None
        and note.gpr_id == request.id
        and note.status is ProvisioningStatus.DRAINING
        and note.since == request.draining_since
        and not any(replica.state in ALIVE for replica in endpoint.status.replicas)
    )


def notes(decided: AdmissionPlan, known: Mapping[str, WaitNote]) -> dict[str, WaitNote]:
    """What is to be said anew about those that wait; `known` is what was said last.

    Looks at NOTES_PER_PASS_MAX at most. What would say the same as before is left out.
    """
    waits = decided.decisions.waits
    if not len(waits):
        return {}
    snapshot = decided.snapshot
    estimates = forecast(snapshot)
    found: dict[str, WaitNote] = {}
    for wait in islice(chain(_unsaid(waits, known), _by_age_of_note(waits, known)), NOTES_PER_PASS_MAX):
        note = wait_note(wait, estimates[wait.request_id], snapshot)
        before = known.get(wait.request_id)
        if before is None or not says_the_same(before, note):
            found[wait.request_id] = note
    return found


def wait_note(wait: Wait, estimate: Estimate, snapshot: Snapshot) -> WaitNote:
    """Put a wait into words."""
    request = wait.request
    usable = snapshot.usable_clusters
    clusters = None if usable is None else usable.get(request.workspace, frozenset())
    return WaitNote(
        position=None if wait.reason in NEVER else wait.position,
        explanation=wait.message,
        estimated_start=estimate.start,
        assumption=estimate.assumption,
        at=snapshot.now,
        remedy=wait.remedy(clusters, snapshot.policy(request.workspace).gpu_shapes),
        reason=_REASONS.get(wait.reason, ReasonCode.AWAITING_GPU),
    )


def says_the_same(before: WaitNote, after: WaitNote) -> bool:
    """Whether nothing but the moment of saying it is new, or an estimate moved by next to nothing."""
    same = replace(before, at=after.at, estimated_start=after.estimated_start) == after
    old, new = before.estimated_start, after.estimated_start
    if old is None or new is None:
        return same and old is new
    return same and abs(new - old) <= ESTIMATE_SLACK


_REASONS = {
    WaitReason.TOO_MANY_REQUESTS: ReasonCode.QUOTA_EXCEEDED,
    WaitReason.POLICY_FORBIDS: ReasonCode.QUOTA_EXCEEDED,
    WaitReason.NO_SUCH_SHAPE: ReasonCode.NO_SUCH_SHAPE,
    WaitReason.NO_SUCH_CLUSTER: ReasonCode.UNSCHEDULABLE,
    WaitReason.LARGER_THAN_CLUSTER: ReasonCode.UNSCHEDULABLE,
    WaitReason.NODES_UNHEALTHY: ReasonCode.UNSCHEDULABLE,
}


# --- the ledger -----------------------------------------------------------------------------------


class _Ledger:
    """The requests while a pass changes them, and what is told of each."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.now = picture.snapshot.now
        self.before = {each.id: each for each in sorted(picture.snapshot.requests, key=_by_age)}
        self.requests = dict(self.before)
        self._told: dict[str, list[PlannedEvent]] = {}  # in the order in which they were first changed
        self._relies_on: dict[str, InferenceEndpoint] = {}

    def endpoint_of(self, request: GpuRequest) -> InferenceEndpoint | None:
        return self.picture.endpoints.get(request.endpoint_uid) if request.endpoint_uid else None

    def put(self, request: GpuRequest, *events: PlannedEvent) -> None:
        self.requests[request.id] = request
        self._told.setdefault(request.id, []).extend(events)

    def delete(self, request: GpuRequest, *events: PlannedEvent) -> None:
        del self.requests[request.id]
        self._told.setdefault(request.id, []).extend(events)

    def rely_on_endpoint(self, request: GpuRequest) -> None:
        endpoint = self.endpoint_of(request)
        if endpoint is not None:
            self._relies_on[request.id] = endpoint

    def snapshot(self) -> Snapshot:
        live = tuple(each for each in self.requests.values() if not each.has_ended)
        return replace(self.picture.snapshot, requests=live)

    def changes(self) -> tuple[RequestChange, ...]:
        return tuple(
            RequestChange(
                self.before.get(each), self.requests.get(each), tuple(events), self._relies_on.get(each)
            )
            for each, events in self._told.items()
        )


# --- lifecycle ------------------------------------------------------------------------------------


def _live_on(ledger: _Ledger) -> bool:
    """Let every request take its next steps; whether some of them have to wait for another pass."""
    renewing: list[GpuRequest] = []
    for request in tuple(ledger.requests.values()):
        for _ in range(STEPS_PER_PASS_MAX):
            present = ledger.requests.get(request.id)
            if present is None or not _step(ledger, present):
                break
        present = ledger.requests.get(request.id)
        if present is not None and due(present, ledger.now) is not None:
            renewing.append(present)
    for request in renewing[:RENEWALS_PER_PASS_MAX]:
        _renew(ledger, request)
    return len(renewing) > RENEWALS_PER_PASS_MAX


def _step(ledger: _Ledger, request: GpuRequest) -> bool:
    """Take one step of `request`'s life; whether there was one to take. Renewals are left out."""
    endpoint = ledger.endpoint_of(request)
    nobody = _why_unwanted(request, endpoint)
    if nobody:
        ledger.rely_on_endpoint(request)
    match request.status:
        case ProvisioningStatus.QUEUED:
            if nobody:
                return _forget(ledger, request, nobody)
            return _refuse_hopeless(ledger, request, endpoint)
        case ProvisioningStatus.PROVISIONING:
            return _step_provisioning(ledger, request, endpoint, nobody)
        case ProvisioningStatus.SUCCESSFUL:
            return _step_in_use(ledger, request, endpoint, nobody)
        case ProvisioningStatus.DRAINING:
            free = is_seen_free(request, endpoint) or is_lost(request, endpoint, ledger.picture)
            return free and _end(ledger, request, nobody)
        case _:
            return False


def _why_unwanted(request: GpuRequest, endpoint: InferenceEndpoint | None) -> str:
    """Why nobody needs its GPUs any more, in words; "" while somebody does."""
    if not request.endpoint_uid:
        return ""
    name = request.endpoint_name or request.endpoint_uid
    if endpoint is None:
        return f"endpoint {name} is gone"
    if endpoint.deletion_requested_at is not None:
        return f"endpoint {name} is being deleted"
    if endpoint.spec.stopped:
        return f"endpoint {name} is stopped"
    if endpoint.spec.gpu is None:
        return f"endpoint {name} runs on CPU now"
    return ""


def _step_provisioning(
    ledger: _Ledger, request: GpuRequest, endpoint: InferenceEndpoint | None, nobody: str
) -> bool:
    if nobody:
        return _release(ledger, request, nobody)
    if _is_in_use(request, endpoint):
        until = format_duration(request.exit_duration)
        told = _told(request, "GprStarted", f"its GPUs are in use; its exit duration of {until} runs")
        ledger.put(started(request, ledger.now), told)
        return True
    lasting = lasting_failure(request, endpoint) or lost_node(request, endpoint, ledger.picture)
    if lasting is None and ledger.now >= _latest_start(request, ledger.picture):
        lasting = _late(request, endpoint)
    if lasting is None:
        return False
    code, why = lasting
    ledger.rely_on_endpoint(request)
    _drain(ledger, request, ProvisioningStatus.FAILED, why, failure_reason=why, failure_code=code)
    return True


def lasting_failure(request: GpuRequest, endpoint: InferenceEndpoint | None) -> tuple[ReasonCode, str] | None:
    """Why an endpoint that waits for its GPUs, or has just got them, cannot use them, until a person acts.

    None while there is hope: nothing is wrong, what is wrong may mend itself, or it went wrong before this
    request was made or granted.
    """
    if endpoint is None or endpoint.status.observed_generation < endpoint.generation:
        return None
    note = endpoint.status.gpu
    tried_at = request.granted_at if request.status is ProvisioningStatus.PROVISIONING else request.queued_at
    spoken_of = (note.gpr_id, note.status, note.since) if note is not None else None
    if tried_at is None or spoken_of != (request.id, request.status, tried_at):
        return None  # its controller does not speak of this state of the request yet
    state = public_state(endpoint)
    if state.status is not PublicStatus.FAILED or state.reason is None or reason_of(state.reason).retry_helps:
        return None
    if state.reason is ReasonCode.CRASH_LOOP and _ends(endpoint) < CRASH_LOOP_FAILURES:
        return None  # a cluster calls it a loop at the second end, which is early to take its GPUs for
    artifact = endpoint.status.artifact
    if state.exit is not None:
        is_news = state.exit.at >= tried_at
    else:
        # The model is fetched while it waits, so that may have failed before the grant.
        failed_at = artifact.finished_at if artifact.phase is ArtifactPhase.FAILED else None
        is_news = (failed_at is not None and failed_at >= request.queued_at) or any(
            waits.fails
            and waits.reason is state.reason
            and waits.since is not None
            and waits.since >= tried_at
            for waits in (replica.waiting for replica in endpoint.status.replicas)
            if waits is not None
        )
    return (state.reason, f"{state.reason}: {redacted(state.message)}") if is_news else None


def _ends(endpoint: InferenceEndpoint) -> int:
    """How often its servers have ended unasked; in a row or not, as far as the status tells."""
    in_a_row = (record.failures for record in endpoint.status.restarts)
    return max((*in_a_row, *(count for _, count in endpoint.status.ends)), default=0)


def _refuse_hopeless(ledger: _Ledger, request: GpuRequest, endpoint: InferenceEndpoint | None) -> bool:
    """Take who could not use GPUs out of the line, before others make room for it."""
    lasting = lasting_failure(request, endpoint)
    if lasting is None:
        return False
    code, why = lasting
    ledger.rely_on_endpoint(request)
    told = _told(request, "GprEnded", f"it leaves the line, because its endpoint cannot start: {why}", code)
    ledger.put(refused(request, why, ledger.now, failure_code=code), told)
    return True


def _late(request: GpuRequest, endpoint: InferenceEndpoint | None) -> tuple[ReasonCode, str]:
    """Why a grant ends that did not come into use in time."""
    limit = _start_limit(request, endpoint)
    if limit == request.exit_duration:
        why = f"its exit duration of {format_duration(limit)} was over before it was ready"
    else:
        why = f"it was not ready within {format_duration(limit)} of getting its GPUs"
    state = public_state(endpoint) if endpoint is not None else None
    if state is None:
        return ReasonCode.START_TIMEOUT, why
    failed = state.status is PublicStatus.FAILED
    doing = f"{state.status}: {redacted(state.message)}" if state.message else state.status.value
    return (state.reason if failed else None) or ReasonCode.START_TIMEOUT, f"{why}; last it was {doing}"


def _is_in_use(request: GpuRequest, endpoint: InferenceEndpoint | None) -> bool:
    """At once without an endpoint; else once a model server on this grant gets requests."""
    if endpoint is None:
        return True
    note, routed = endpoint.status.gpu, endpoint.status.routed
    return (
        note is not None
        and note.gpr_id == request.id
        and note.status is ProvisioningStatus.PROVISIONING
        and note.since == request.granted_at
        and any(r.state is ReplicaState.READY and r.id.name in routed for r in endpoint.status.replicas)
    )


def _latest_start(request: GpuRequest, picture: Picture) -> datetime:
    """A grant that never comes into use would otherwise be held for ever."""
    assert request.granted_at is not None
    latest = request.granted_at + _start_limit(request, picture.endpoints.get(request.endpoint_uid))
    if picture.awake_since is not None and request.granted_at < picture.awake_since:
        return max(latest, picture.awake_since + SETTLING)
    return latest


def _start_limit(request: GpuRequest, endpoint: InferenceEndpoint | None) -> timedelta:
    """How long a grant is held before it comes into use."""
    one_start = timedelta(seconds=endpoint.spec.model.start_timeout_seconds) if endpoint else timedelta(0)
    return min(request.exit_duration, START_LIMIT + one_start)


def lost_node(
    request: GpuRequest, endpoint: InferenceEndpoint | None, picture: Picture
) -> tuple[ReasonCode, str] | None:
    """Why a grant on a cluster of Kubernetes is of no use any more: a node of it is out of order; else None.

    While a replica answers, nothing is taken from it. A cordoned node lets run what runs, so it does not count
    while a model is being loaded either; and without an endpoint nobody can tell, so it does not count at all.
    """
    states = {each.state for each in endpoint.status.replicas} if endpoint is not None else set()
    if ReplicaState.READY in states:
        return None
    cordons_count = endpoint is not None and ReplicaState.LOADING not in states
    out = [
        node
        for node in _nodes_out_of_order(request, picture)
        if node.health is NodeHealth.UNHEALTHY or cordons_count
    ]
    if not out:
        return None
    node = out[0]
    does = "does not answer" if node.health is NodeHealth.UNHEALTHY else "takes no new pods"
    since = f" since {node.health_since:%Y-%m-%d %H:%M:%SZ}" if node.health_since is not None else ""
    why = f"node {node.name} of cluster {node.cluster} {does}{since}, and no replica answers"
    return ReasonCode.NODE_NOT_READY, f"{ReasonCode.NODE_NOT_READY}: {why}"


def is_lost(request: GpuRequest, endpoint: InferenceEndpoint | None, picture: Picture) -> bool:
    """Whether what drains cannot be seen to end, because every node of its grant is dead.

    Its pods stay Terminating until the machine is back, and are killed then; nothing is granted there before.
    The endpoint's controller must know of this drain, so that it starts nothing there.
    """
    grant = request.grant
    if grant is None or endpoint is None or not grant.nodes:
        return False
    note = endpoint.status.gpu
    knows = (
        note is not None
        and (note.gpr_id, note.status) == (request.id, ProvisioningStatus.DRAINING)
        and note.since == request.draining_since
    )
    dead = {
        node.name for node in _nodes_out_of_order(request, picture) if node.health is NodeHealth.UNHEALTHY
    }
    return knows and all(name in dead for name, _ in grant.nodes)


def _nodes_out_of_order(request: GpuRequest, picture: Picture) -> list[Node]:
    """Of a grant's nodes those that have been out of order for a while, by name."""
    grant = request.grant
    if grant is None or grant.cluster not in picture.kubernetes:
        return []
    held = {name for name, _ in grant.nodes}
    now = picture.snapshot.now
    out = [
        node
        for node in picture.snapshot.nodes
        if node.cluster == grant.cluster
        and node.name in held
        and not node.schedulable
        and node.health_since is not None
        and now - node.health_since >= NODE_GRACE
    ]
    return sorted(out, key=lambda each: each.name)


def _step_in_use(
    ledger: _Ledger, request: GpuRequest, endpoint: InferenceEndpoint | None, nobody: str
) -> bool:
    if nobody:
        return _release(ledger, request, nobody)
    lost = lost_node(request, endpoint, ledger.picture)
    if lost is not None:
        code, why = lost
        ledger.rely_on_endpoint(request)
        _drain(ledger, request, ProvisioningStatus.FAILED, why, failure_reason=why, failure_code=code)
        return True
    measured = _measured(ledger, request)
    ending = due(measured, ledger.now)
    if ending is ProvisioningStatus.TIMED_OUT:
        assert request.idle_timeout is not None
        what = "no request came" if request.endpoint_uid else "its GPUs did no work"
        why = f"{what} for its idle timeout of {format_duration(request.idle_timeout)}"
        _drain(ledger, measured, ending, why)
        return True
    if ending is ProvisioningStatus.COMPLETE and not request.auto_renew:
        _complete(ledger, measured)
        return True
    if _is_news(request.idle_since, measured.idle_since):
        ledger.put(measured)
        return True
    if request.idle_since is not None and measured.idle_since != request.idle_since:
        ledger.requests[request.id] = measured  # for the deadlines of this pass; not worth writing down
    return False


def _measured(ledger: _Ledger, request: GpuRequest) -> GpuRequest:
    """The request with its idle time as measured just now. It counts from its start, never from before."""
    key = request.endpoint_uid or request.id
    if not request.enforce_idle or key not in ledger.picture.idle_since:
        return request
    since = ledger.picture.idle_since[key]
    if since is not None and request.started_at is not None:
        since = max(since, request.started_at)
    return active(request, since)


def _is_news(before: datetime | None, after: datetime | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) > IDLE_SLACK


def _end(ledger: _Ledger, request: GpuRequest, nobody: str) -> bool:
    """Its GPUs are free. Who yielded or failed goes back into the line at once, if it wants to."""
    over = ended(request, ledger.now)
    ledger.put(over, _told(request, "GprEnded", f"its GPUs are free; it ended as {over.status}"))
    if not nobody and wants_requeue(over, ledger.picture.snapshot.policy(over.workspace)):
        again = requeued(over, ledger.now)
        ledger.put(again, _told(request, "GprRequeued", "it is back in line, for another try"))
    return True


def _forget(ledger: _Ledger, request: GpuRequest, nobody: str) -> bool:
    ledger.delete(request, _told(request, "GprDeleted", f"it waited for nobody any more: {nobody}"))
    return True


def _release(ledger: _Ledger, request: GpuRequest, nobody: str) -> bool:
    told = _told(request, "GprDraining", f"it gives back its GPUs: {nobody}", ReasonCode.GPU_RELEASED)
    ledger.put(early_released(request, ledger.now), told)
    return True


def _drain(
    ledger: _Ledger,
    request: GpuRequest,
    ending_as: ProvisioningStatus,
    why: str,
    *,
    failure_reason: str = "",
    failure_code: ReasonCode | None = None,
    evicted_by: str = "",
) -> None:
    ending = draining(
        request,
        ending_as,
        ledger.now,
        failure_reason=failure_reason,
        failure_code=failure_code,
        evicted_by=evicted_by,
    )
    kind = "GprEvicted" if ending_as is ProvisioningStatus.EVICTED else "GprDraining"
    message = f"it gives back its GPUs: {why}"
    ledger.put(ending, _told(request, kind, message, ending_reason(ending, ending_as), by=evicted_by))


# --- renewal --------------------------------------------------------------------------------------


def _renew(ledger: _Ledger, request: GpuRequest) -> None:
    """Its exit duration is over and it wants to go on."""
    answer = renewal(ledger.snapshot(), request)
    if answer.extend:
        longer = renewed(request, ledger.now)
        assert longer.ends_at is not None
        until = longer.ends_at.strftime("%Y-%m-%d %H:%M:%SZ")
        ledger.put(longer, _told(request, "GprRenewed", f"it goes on until {until}: {answer.message}"))
        return
    follower = follow_up(request, ledger.now)
    _complete(ledger, request, f"; {answer.message}, so it asks again as {follower.name}")
    ledger.put(follower, _told(follower, "GprCreated", f"it follows {request.name}, which could not go on"))


def _complete(ledger: _Ledger, request: GpuRequest, more: str = "") -> None:
    why = f"its exit duration of {format_duration(request.exit_duration)} is over{more}"
    _drain(ledger, request, ProvisioningStatus.COMPLETE, why)


def follow_up(request: GpuRequest, now: datetime) -> GpuRequest:
    """The request that asks again for what `request` has to give back. Its id follows from that request."""
    digits = hashlib.blake2b(f"{request.id} {now.isoformat()}".encode(), digest_size=9).hexdigest()
    suffix = f"-gpr-{digits[12:18]}"
    stem = request.endpoint_name or request.name.rpartition("-gpr-")[0] or request.name
    return GpuRequest(
        id=f"gpr-{digits[:8]}-{digits[8:12]}",
        name=stem[: REQUEST_NAME_CHARACTERS_MAX - len(suffix)] + suffix,
        workspace=request.workspace,
        selection=request.selection,
        created_at=now,
        queued_at=now,
        exit_duration=request.exit_duration,
        priority=request.priority,
        created_by=request.created_by,
        endpoint_uid=request.endpoint_uid,
        endpoint_name=request.endpoint_name,
        idle_timeout=request.idle_timeout,
        enforce_idle=request.enforce_idle,
        enable_eviction=request.enable_eviction,
        requeue_on_failure=request.requeue_on_failure,
        auto_renew=request.auto_renew,
        multi_node=request.multi_node,
        dedicated_nodes=request.dedicated_nodes,
        enable_rdma=request.enable_rdma,
        enable_secondary_network=request.enable_secondary_network,
    )


# --- what the scheduler decided -------------------------------------------------------------------


def _evict(ledger: _Ledger, decisions: Decisions) -> None:
    for eviction in decisions.evictions:
        victim = ledger.requests[eviction.victim_id]
        _drain(
            ledger,
            victim,
            ProvisioningStatus.EVICTED,
            eviction.message,
            failure_reason=eviction.message,
            evicted_by=eviction.newcomer_id,
        )


def _grant(ledger: _Ledger, decisions: Decisions) -> None:
    for decision in decisions.grants[:GRANTS_PER_PASS_MAX]:
        request = ledger.requests[decision.request_id]
        told = PlannedEvent(
            "GprGranted",
            f"GPR {request.name}: {decision.message}",
            data={
                "gprId": request.id,
                "cluster": decision.grant.cluster,
                "nodes": [[node, list(indexes)] for node, indexes in decision.grant.nodes],
                "why": decision.reason.value,
            },
        )
        ledger.put(granted(request, decision.grant, ledger.now), told)


def _told(
    request: GpuRequest, kind: str, message: str, reason: ReasonCode | None = None, *, by: str = ""
) -> PlannedEvent:
    data = {"gprId": request.id, **({"by": by} if by else {})}
    return PlannedEvent(kind, f"GPR {request.name}: {message}", reason, data)


# --- when to look again, and at whom --------------------------------------------------------------


def _next_look(snapshot: Snapshot, picture: Picture) -> float | None:
    """Seconds until something falls due by time alone."""
    moments = [at for each in snapshot.requests if (at := _deadline(each, picture)) is not None]
    moments += [
        node.health_since + NODE_GRACE
        for node in snapshot.nodes
        if node.health_since is not None
        and node.cluster in picture.kubernetes
        # Once it is over, what it means is looked at with every change of the endpoints.
        and node.health_since + NODE_GRACE > snapshot.now
    ]
    seconds = [max(0.0, (min(moments) - snapshot.now).total_seconds())] if moments else []
    measured = picture.idle_since
    if any(_may_fall_idle(each) and (each.endpoint_uid or each.id) in measured for each in snapshot.requests):
        seconds.append(IDLE_LOOK_SECONDS)
    return min(seconds, default=None)


def _may_fall_idle(request: GpuRequest) -> bool:
    return request.status is ProvisioningStatus.SUCCESSFUL and request.enforce_idle and not request.idle_since


def _deadline(request: GpuRequest, picture: Picture) -> datetime | None:
    if request.status is ProvisioningStatus.PROVISIONING:
        return _latest_start(request, picture)
    return next_deadline(request)


def _unsaid(waits: Iterable[Wait], known: Mapping[str, WaitNote]) -> list[Wait]:
    return [wait for wait in waits if wait.request_id not in known]


def _by_age_of_note(waits: Iterable[Wait], known: Mapping[str, WaitNote]) -> list[Wait]:
    """Those of which something was said: the first half of a pass's number in line, then the oldest words."""
    said = [wait for wait in waits if wait.request_id in known]
    first, rest = said[: NOTES_PER_PASS_MAX // 2], said[NOTES_PER_PASS_MAX // 2 :]
    return first + sorted(rest, key=lambda wait: (known[wait.request_id].at, wait.rank))


def _by_age(request: GpuRequest) -> tuple[datetime, str]:
    return request.created_at, request.id
