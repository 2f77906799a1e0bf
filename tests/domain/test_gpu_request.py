"""A GPU request's life, as a table: what may follow what, and what each refusal says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inferplane.domain import gpu_request as gpr
from inferplane.domain.errors import Conflict, Invalid, QuotaExceeded
from inferplane.domain.gpu_request import CoarseStatus, GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import WorkspacePolicy

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
GRANT = Grant("worker-1", (("a", (0, 1)), ("b", (0, 1))))
ASKED = GpuRequest(
    id="gpr-7c29e338-ebda",
    name="train",
    workspace="team",
    selection=Selection("worker-1", gpu_shape="A100", instance_type="a2", gpus_per_node=2, nodes=2),
    created_at=NOW - HOUR,
    queued_at=NOW - HOUR,
    exit_duration=HOUR,
)


def in_state(status: ProvisioningStatus, **fields: Any) -> GpuRequest:
    """A request that came to `status` the usual way."""
    request = replace(ASKED, **fields)
    if status is ProvisioningStatus.QUEUED:
        return request
    request = gpr.granted(request, GRANT, NOW)
    if status is ProvisioningStatus.PROVISIONING:
        return request
    request = gpr.started(request, NOW)
    if status is ProvisioningStatus.SUCCESSFUL:
        return request
    if status is ProvisioningStatus.DRAINING:
        return gpr.draining(request, ProvisioningStatus.COMPLETE, NOW)
    return gpr.ended(gpr.draining(request, status, NOW, evicted_by="gpr-other", failure_reason="why"), NOW)


@pytest.mark.parametrize(
    ("status", "internal", "coarse", "gpus"),
    [
        ("Queued", "", CoarseStatus.QUEUED, 0),
        ("Provisioning", "Reserved", CoarseStatus.PROVISIONED, 4),
        ("Successful", "Reserved", CoarseStatus.PROVISIONED, 4),
        ("Draining", "Reserved", CoarseStatus.RELEASED, 4),
        ("Complete", "Released", CoarseStatus.RELEASED, 0),
        ("EarlyReleased", "Released", CoarseStatus.RELEASED, 0),
        ("TimedOut", "Released", CoarseStatus.RELEASED, 0),
        ("Evicted", "Released", CoarseStatus.RELEASED, 0),
        ("Failed", "Released", CoarseStatus.FAILED, 0),
    ],
)
def test_what_is_shown_in_each_state(status: str, internal: str, coarse: CoarseStatus, gpus: int) -> None:
    request = in_state(ProvisioningStatus(status))
    assert (request.internal_state, request.coarse_status, request.gpus_allocated) == (internal, coarse, gpus)
    assert request.holds_gpus is (internal == "Reserved")


STEPS: dict[str, Callable[[GpuRequest], object]] = {
    "grant": lambda each: gpr.granted(each, GRANT, NOW),
    "start": lambda each: gpr.started(each, NOW),
    "drain": lambda each: gpr.draining(each, ProvisioningStatus.FAILED, NOW),
    "end": lambda each: gpr.ended(each, NOW),
    "requeue": lambda each: gpr.requeued(each, NOW),
    "refuse": lambda each: gpr.refused(each, "gone", NOW),
    "rename": lambda each: gpr.renamed(each, "other"),
    "reprioritise": lambda each: gpr.reprioritised(each, 200),
    "extend": lambda each: gpr.extended(each, 2 * HOUR, NOW),
    "renew": lambda each: gpr.renewed(each, NOW),
    "release": lambda each: gpr.early_released(each, NOW),
    "delete": gpr.check_deletable,
}
MAY = {
    "Queued": "grant refuse rename reprioritise extend delete",
    "Provisioning": "start drain extend release",
    "Successful": "drain extend renew release",
    "Draining": "end",
    "Complete": "delete",
    "EarlyReleased": "delete",
    "TimedOut": "delete",
    "Evicted": "requeue delete",
    "Failed": "requeue delete",
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", list(ProvisioningStatus))
def test_what_may_happen_in_each_state(status: ProvisioningStatus, step: str) -> None:
    request = in_state(status)
    if step in MAY[status].split():
        STEPS[step](request)
    else:
        with pytest.raises(Conflict, match=f"GPR in {status} state") as refusal:
            STEPS[step](request)
        assert refusal.value.reason == f"GprIs{status}"
        assert refusal.value.next_action


def test_the_two_refusals_that_clients_read_word_for_word() -> None:
    with pytest.raises(Conflict) as refusal:
        gpr.check_deletable(in_state(ProvisioningStatus.SUCCESSFUL))
    assert refusal.value.message == "Cannot delete GPR in Successful state"
    with pytest.raises(Conflict) as refusal:
        gpr.early_released(ASKED, NOW)
    assert refusal.value.message == "Cannot update early release of GPR in Queued state"


def test_the_exit_duration_counts_from_the_start() -> None:
    reserved = in_state(ProvisioningStatus.PROVISIONING)
    assert (reserved.ends_at, reserved.remaining(NOW)) == (None, HOUR)
    running = gpr.started(reserved, NOW + HOUR)
    assert running.ends_at == NOW + 2 * HOUR
    assert running.remaining(NOW + 1.5 * HOUR) == HOUR / 2
    assert running.remaining(NOW + 9 * HOUR) == timedelta(0)
    assert gpr.due(running, NOW + 2 * HOUR - timedelta(microseconds=1)) is None
    assert gpr.due(running, NOW + 2 * HOUR) is ProvisioningStatus.COMPLETE


@pytest.mark.parametrize(
    ("enforced", "idle_minutes_ago", "expected"),
    [
        (True, 9, None),
        (True, 10, ProvisioningStatus.TIMED_OUT),
        (True, None, None),
        (False, 99, None),
    ],
)
def test_idle_counts_only_where_it_is_enforced_and_seen(
    enforced: bool, idle_minutes_ago: int | None, expected: ProvisioningStatus | None
) -> None:
    running = in_state(
        ProvisioningStatus.SUCCESSFUL, enforce_idle=enforced, idle_timeout=timedelta(minutes=10)
    )
    idle_since = None if idle_minutes_ago is None else NOW + HOUR / 2 - timedelta(minutes=idle_minutes_ago)
    assert gpr.due(gpr.active(running, idle_since), NOW + HOUR / 2) is expected


def test_of_two_deadlines_that_have_passed_the_earlier_one_counts() -> None:
    running = in_state(ProvisioningStatus.SUCCESSFUL, enforce_idle=True, idle_timeout=timedelta(minutes=10))
    idle = gpr.active(running, NOW)
    assert gpr.next_deadline(idle) == NOW + timedelta(minutes=10)
    assert gpr.due(idle, NOW + 100 * HOUR) is ProvisioningStatus.TIMED_OUT


def test_idle_is_not_counted_before_the_start() -> None:
    reserved = in_state(ProvisioningStatus.PROVISIONING)
    assert gpr.active(reserved, NOW) is reserved


def test_an_evicted_request_keeps_its_age_and_a_failed_one_does_not() -> None:
    later = NOW + HOUR
    evicted = gpr.requeued(in_state(ProvisioningStatus.EVICTED), later)
    failed = gpr.requeued(in_state(ProvisioningStatus.FAILED), later)
    assert (evicted.queued_at, failed.queued_at) == (ASKED.queued_at, later)
    assert (evicted.retry_count, failed.retry_count) == (1, 1)
    assert (evicted.evicted_by, failed.failure_reason) == ("gpr-other", "why")
    assert evicted.grant is None


@pytest.mark.parametrize("status", list(ProvisioningStatus))
@pytest.mark.parametrize("asked", [True, False])
def test_only_evicted_and_failed_requests_come_back_and_only_if_asked(
    status: ProvisioningStatus, asked: bool
) -> None:
    ended = in_state(status, requeue_on_failure=asked)
    expected = status in (ProvisioningStatus.EVICTED, ProvisioningStatus.FAILED)
    assert gpr.wants_requeue(ended) is (expected and asked)
    assert gpr.wants_requeue(ended, WorkspacePolicy("team", requeue_on_failure=True)) is expected


def test_a_renewal_moves_the_deadline_on_and_an_extension_counts_from_the_start() -> None:
    running = in_state(ProvisioningStatus.SUCCESSFUL)
    assert gpr.renewed(running, NOW).ends_at == NOW + 2 * HOUR
    assert gpr.renewed(running, NOW + 5 * HOUR).ends_at == NOW + 6 * HOUR
    assert gpr.extended(running, 3 * HOUR, NOW).ends_at == NOW + 3 * HOUR
    with pytest.raises(Invalid, match="already over"):
        gpr.extended(running, HOUR, NOW + 2 * HOUR)


def with_selection(**fields: Any) -> GpuRequest:
    return replace(ASKED, selection=replace(ASKED.selection, **fields))


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (replace(ASKED, name="x" * 41), "gprName", "TooLong"),
        (replace(ASKED, name=" "), "gprName", "Missing"),
        (replace(ASKED, exit_duration=timedelta(0)), "exitDuration", "OutOfRange"),
        (replace(ASKED, exit_duration=timedelta(days=365, seconds=1)), "exitDuration", "OutOfRange"),
        (replace(ASKED, priority=0), "priority", "OutOfRange"),
        (replace(ASKED, priority=300), "priority", "OutOfRange"),
        (replace(ASKED, enforce_idle=True), "idleTimeOutDuration", "Missing"),
        (replace(ASKED, idle_timeout=timedelta(0)), "idleTimeOutDuration", "OutOfRange"),
        (with_selection(gpus_per_node=0), "numberOfGPUs", "OutOfRange"),
        (with_selection(gpus_per_node=101), "numberOfGPUs", "OutOfRange"),
        (with_selection(nodes=101), "numberOfGPUNodes", "OutOfRange"),
        (with_selection(cluster_name=""), "clusterName", "Missing"),
        (with_selection(auto_cluster=True, preferred_clusters=("a",)), "preferredClusters", "Contradiction"),
        (with_selection(gpu_shape=""), "gpuShape", "Missing"),
        (with_selection(instance_type=""), "instanceType", "Missing"),
        (with_selection(auto_gpu=True, memory_gb=40), "gpuShape", "Contradiction"),
        (with_selection(auto_gpu=True, gpu_shape="", instance_type=""), "memoryPerGPU", "Missing"),
    ],
)
def test_what_cannot_be_meant(request_: GpuRequest, field: str, reason: str) -> None:
    with pytest.raises(Invalid) as refusal:
        gpr.check_request(request_)
    assert (field, reason) in [(each.field, each.reason) for each in refusal.value.details]


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"priority_highest": 100}, "priority"),
        ({"max_exit_duration": HOUR / 2}, "exitDuration"),
        ({"gpu_shapes": ("L4",)}, "gpuShape"),
        ({"max_gpus_per_request": 3}, "numberOfGPUs"),
        ({"max_memory_gb_per_request": 159}, "memoryPerGPU"),
        ({"max_requests": 1}, "gprName"),
        ({"max_queued": 1}, "gprName"),
    ],
)
def test_what_a_policy_refuses(policy: dict[str, Any], field: str) -> None:
    asked = replace(with_selection(memory_gb=40), id="gpr-new")
    gpr.check_admission(asked, WorkspacePolicy("team"), [ASKED])
    with pytest.raises(QuotaExceeded) as refusal:
        gpr.check_admission(asked, WorkspacePolicy("team", **policy), [ASKED])
    assert refusal.value.field == field
    assert refusal.value.next_action


def test_ended_requests_do_not_count_towards_the_limits() -> None:
    policy = WorkspacePolicy("team", max_requests=1, max_queued=1)
    gpr.check_admission(replace(ASKED, id="gpr-new"), policy, [in_state(ProvisioningStatus.COMPLETE)])


@pytest.mark.parametrize(
    ("status", "fields", "policy", "comes_back"),
    [
        (ProvisioningStatus.EVICTED, {}, False, False),
        (ProvisioningStatus.EVICTED, {"requeue_on_failure": True}, False, True),
        (ProvisioningStatus.EVICTED, {}, True, True),
        (ProvisioningStatus.FAILED, {"requeue_on_failure": True}, False, True),
        (ProvisioningStatus.COMPLETE, {"requeue_on_failure": True}, True, False),
        (ProvisioningStatus.EARLY_RELEASED, {"requeue_on_failure": True}, True, False),
    ],
)
def test_who_goes_back_into_the_queue_by_itself(
    status: ProvisioningStatus, fields: dict[str, Any], policy: bool, comes_back: bool
) -> None:
    request = in_state(status, **fields)
    assert gpr.wants_requeue(request, WorkspacePolicy("team", requeue_on_failure=policy)) is comes_back


def test_who_fails_for_what_only_a_person_can_mend_or_too_often_stays_out() -> None:
    failed = in_state(ProvisioningStatus.FAILED, requeue_on_failure=True)
    assert gpr.wants_requeue(replace(failed, failure_code=ReasonCode.START_TIMEOUT))
    assert not gpr.wants_requeue(replace(failed, failure_code=ReasonCode.MODEL_LOAD_FAILED))
    most = gpr.REQUEUES_AFTER_FAILURE_MAX
    assert gpr.wants_requeue(replace(failed, retry_count=most - 1))
    assert not gpr.wants_requeue(replace(failed, retry_count=most))
    assert gpr.wants_requeue(replace(failed, retry_count=most + 5, delayed_count=6)), "evictions do not count"
    evicted = in_state(ProvisioningStatus.EVICTED, requeue_on_failure=True, retry_count=99)
    assert gpr.wants_requeue(evicted)


def test_a_request_that_drains_is_shown_to_its_endpoint_as_what_it_will_be() -> None:
    in_use = in_state(ProvisioningStatus.SUCCESSFUL)
    for ending_as in gpr.ENDED:
        draining = gpr.draining(in_use, ending_as, NOW)
        assert draining.coarse_status is gpr.ended(draining, NOW).coarse_status
        assert draining.internal_state == "Reserved"
