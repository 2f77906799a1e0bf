"""What changes, promotions and ways back make of a spec: one table of outcomes each."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from inferplane.domain.endpoint import (
    REVISIONS_KEPT_MAX,
    EndpointSpec,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
)
from inferplane.domain.errors import Conflict, Invalid
from inferplane.domain.gpu_request import Selection
from inferplane.domain.revisions import (
    changed,
    fate_of_candidate,
    promoted,
    regauged,
    serving_revision,
    went_back,
)
from inferplane.domain.rollout import Rollout, RolloutNote, RolloutPhase, Strategy

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"


def model(version: int) -> ModelSpec:
    return ModelSpec("sklearn", f"file:///m{version}")


def endpoint() -> InferenceEndpoint:
    return InferenceEndpoint(UID, "w", "local", "iris", "w-iris-000000", EndpointSpec(model(1)), 1, T0, "ada")


def change(before: InferenceEndpoint, version: int, rollout: Rollout | None = None) -> InferenceEndpoint:
    return replace(before, spec=changed(before, model(version), rollout, at=T0, by="bob"))


def at_phase(before: InferenceEndpoint, phase: RolloutPhase, *answering: int) -> InferenceEndpoint:
    rollout = before.spec.rollout
    assert rollout is not None
    note = RolloutNote(rollout.base, before.spec.revision, phase, T0)
    replicas = tuple(Replica(ReplicaId(UID, each, 0), ReplicaState.READY) for each in answering)
    return replace(before, status=replace(before.status, rollout=note, replicas=replicas))


UPDATE, CANARY = Rollout(0), Rollout(0, canary_percent=10)


def test_a_change_makes_the_next_revision_and_remembers_the_one_before() -> None:
    after = change(endpoint(), 2, UPDATE)
    assert (after.spec.revision, after.spec.model) == (2, model(2))
    assert [(each.number, each.model, each.created_by) for each in after.spec.revisions] == [
        (1, model(1), "ada"),
        (2, model(2), "bob"),
    ]
    assert after.spec.rollout == Rollout(1)
    assert after.at_revision(1).spec.model == model(1)


def test_the_same_model_again_is_no_change() -> None:
    assert changed(endpoint(), model(1), UPDATE, at=T0, by="bob") == endpoint().spec


def test_a_change_while_another_is_on_its_way_keeps_the_base_that_serves() -> None:
    second = at_phase(change(endpoint(), 2, CANARY), RolloutPhase.SHIFTED, 1, 2)
    third = change(second, 3, UPDATE)
    assert third.spec.revision == 3
    assert third.spec.rollout == Rollout(1)


def test_after_a_rollout_is_complete_its_candidate_is_the_next_ones_base() -> None:
    second = at_phase(change(endpoint(), 2, UPDATE), RolloutPhase.COMPLETE, 2)
    assert serving_revision(second) == 2
    assert change(second, 3, UPDATE).spec.rollout == Rollout(2)


def test_a_candidate_that_has_all_requests_is_the_next_ones_base_though_it_is_still_watched() -> None:
    second = at_phase(change(endpoint(), 2, UPDATE), RolloutPhase.SHIFTED, 1, 2)
    third = change(second, 3, CANARY)
    assert third.spec.rollout == Rollout(2, canary_percent=10)
    assert "revision 2, which got all requests already, is accepted" in fate_of_candidate(second, third.spec)


@pytest.mark.parametrize(
    ("rollout", "phase", "answering"),
    [
        (UPDATE, RolloutPhase.STARTING, (1,)),
        (UPDATE, RolloutPhase.SHIFTED, (1,)),  # it ended, and requests go to the one before meanwhile
        (replace(CANARY, canary_percent=99), RolloutPhase.SHIFTED, (1, 2)),
        (Rollout(0, mirror_percent=100), RolloutPhase.SHIFTED, (1, 2)),
    ],
)
def test_a_candidate_without_all_requests_is_withdrawn_by_the_next_one(
    rollout: Rollout, phase: RolloutPhase, answering: tuple[int, ...]
) -> None:
    second = at_phase(change(endpoint(), 2, rollout), phase, *answering)
    third = change(second, 3, UPDATE)
    assert third.spec.rollout == Rollout(1)
    assert fate_of_candidate(second, third.spec) == "revision 2, which was on its way, is withdrawn"


def test_of_a_candidate_that_was_decided_on_before_nothing_is_said() -> None:
    for phase in (RolloutPhase.COMPLETE, RolloutPhase.ROLLED_BACK):
        second = at_phase(change(endpoint(), 2, UPDATE), phase, 1, 2)
        assert fate_of_candidate(second, change(second, 3, UPDATE).spec) == ""
    assert fate_of_candidate(endpoint(), change(endpoint(), 2, UPDATE).spec) == ""


def test_that_requests_went_back_from_a_revision_is_remembered_after_the_next_change() -> None:
    second = at_phase(change(endpoint(), 2, CANARY), RolloutPhase.ROLLED_BACK, 1)
    third = at_phase(change(second, 3, UPDATE), RolloutPhase.COMPLETE, 3)
    fourth = at_phase(change(third, 4, UPDATE), RolloutPhase.SHIFTED, 3, 4)
    back = replace(fourth, spec=went_back(fourth, 3))
    fifth = change(back, 5, UPDATE)
    assert [each.number for each in fifth.spec.revisions if each.rolled_back] == [2, 4]
    again = replace(fifth, spec=went_back(fifth, 2))
    assert [each.number for each in change(again, 6).spec.revisions if each.rolled_back] == [3, 4, 5]


def test_only_so_many_revisions_are_kept_and_always_the_one_that_serves() -> None:
    now = at_phase(change(endpoint(), 2, CANARY), RolloutPhase.ROLLED_BACK, 1)
    for version in range(3, 30):
        now = change(now, version, CANARY)
    kept = [each.number for each in now.spec.revisions]
    assert len(kept) == REVISIONS_KEPT_MAX
    assert kept[0] == 1
    assert kept[1:] == list(range(30 - REVISIONS_KEPT_MAX + 1, 30))


def test_a_share_can_be_changed_while_a_revision_is_on_its_way_only() -> None:
    under_way = change(endpoint(), 2, CANARY)
    assert regauged(under_way, percent=50, mirror_percent=None).rollout == Rollout(1, canary_percent=50)
    for nothing in (endpoint(), at_phase(under_way, RolloutPhase.COMPLETE, 2)):
        with pytest.raises(Conflict, match="no revision is on its way"):
            regauged(nothing, percent=50, mirror_percent=None)
    with pytest.raises(Invalid, match="percentage"):
        regauged(under_way, percent=101, mirror_percent=None)
    in_place = change(endpoint(), 2, Rollout(0, strategy=Strategy.STOP_THEN_START))
    with pytest.raises(Conflict, match="in place"):
        regauged(in_place, percent=10, mirror_percent=None)


def test_promoting_gives_everything_to_the_revision_on_its_way() -> None:
    under_way = change(endpoint(), 2, replace(CANARY, mirror_percent=5))
    assert promoted(under_way).rollout == Rollout(1)
    with pytest.raises(Conflict, match="rolled back"):
        promoted(at_phase(under_way, RolloutPhase.ROLLED_BACK, 1))


def test_going_back_to_servers_that_still_run_needs_no_rollout() -> None:
    under_way = at_phase(change(endpoint(), 2, CANARY), RolloutPhase.SHIFTED, 1, 2)
    back = went_back(under_way, None)
    assert (back.revision, back.model, back.rollout) == (1, model(1), None)
    assert back.next_revision == 3


def test_going_back_to_servers_that_are_gone_is_a_rollout_that_nothing_is_measured_in() -> None:
    done = at_phase(change(endpoint(), 2, UPDATE), RolloutPhase.COMPLETE, 2)
    back = went_back(done, 1)
    assert back.rollout is not None
    assert (back.revision, back.rollout.base, back.rollout.guard.enabled) == (1, 2, False)


def test_going_back_on_gpus_makes_room_first() -> None:
    done = at_phase(change(endpoint(), 2, UPDATE), RolloutPhase.COMPLETE, 2)
    on_gpus = replace(done, spec=replace(done.spec, gpu=GpuSpec(Selection(gpu_shape="A100"))))
    back = went_back(on_gpus, 1)
    assert back.rollout is not None
    assert back.rollout.strategy is Strategy.STOP_THEN_START


def test_the_same_model_is_a_revision_only_when_it_is_wanted_again() -> None:
    before = endpoint()
    once = changed(before, before.spec.model, UPDATE, at=T0, by="bob")
    again = changed(before, before.spec.model, UPDATE, at=T0, by="bob", again=True)
    assert once == before.spec
    assert (again.revision, again.model_of(1), again.model_of(2)) == (2, before.spec.model, before.spec.model)


def test_going_back_where_there_is_nothing_says_so() -> None:
    with pytest.raises(Conflict, match="no revision before revision 1"):
        went_back(endpoint(), None)
    with pytest.raises(Invalid, match="revision 7 is not kept") as refused:
        went_back(endpoint(), 7)
    assert refused.value.field == "revision"
    with pytest.raises(Conflict, match="already"):
        went_back(endpoint(), 1)
