"""How far a rollout has come, by what is seen of its candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inferplane.controllers.rollout_plan import next_note, watch_seconds
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    Exit,
    InferenceEndpoint,
    Ingress,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    Scaling,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import RevisionTraffic, Rollout, RolloutNote, RolloutPhase, Strategy

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"
HERE = ArtifactState(ArtifactPhase.PRESENT)
UPDATE, CANARY = Rollout(1), Rollout(1, canary_percent=10)
IN_PLACE = Rollout(1, strategy=Strategy.STOP_THEN_START)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def endpoint(rollout: Rollout, phase: RolloutPhase | None = None, replicas: int = 1) -> InferenceEndpoint:
    spec = EndpointSpec(
        ModelSpec("sklearn", "file:///m2"),
        scaling=Scaling(replicas, replicas),
        revision=2,
        rollout=rollout,
    )
    made = InferenceEndpoint(UID, "w", "local", "iris", "w-iris-000000", spec, 2, T0, "ada")
    if phase is None:
        return made
    return replace(made, status=replace(made.status, rollout=RolloutNote(1, 2, phase, T0)))


def server(revision: int, index: int = 0, state: ReplicaState = ReplicaState.READY) -> Replica:
    return Replica(ReplicaId(UID, revision, index), state, address=f"unix:/s/{revision}-{index}")


def ends(revision: int, failures: int, reason: ReasonCode = ReasonCode.SERVER_EXITED) -> RestartRecord:
    return RestartRecord(f"r{revision}-0", failures, Exit(T0, 1, "", reason, "it broke"), at(60))


def after(
    one: InferenceEndpoint,
    *replicas: Replica,
    seconds: float = 1,
    restarts: tuple[RestartRecord, ...] = (),
    artifact: ArtifactState = HERE,
    traffic: Mapping[int, RevisionTraffic] | None = None,
) -> RolloutNote:
    found = next_note(one, replicas, restarts, artifact, traffic or {}, at(seconds))
    assert found is not None
    return found


def test_it_shifts_once_the_candidate_answers_with_what_its_share_needs() -> None:
    assert after(endpoint(UPDATE)).phase is RolloutPhase.STARTING
    loading = after(endpoint(UPDATE), server(1), server(2, state=ReplicaState.LOADING))
    assert loading.phase is RolloutPhase.STARTING
    assert after(endpoint(UPDATE), server(1), server(2)).phase is RolloutPhase.SHIFTED
    three = endpoint(UPDATE, replicas=3)
    assert after(three, server(2, 0), server(2, 1)).phase is RolloutPhase.STARTING
    canary_of_three = endpoint(CANARY, replicas=3)
    assert after(canary_of_three, server(1), server(2)).phase is RolloutPhase.SHIFTED


def test_where_the_cluster_lets_requests_in_a_candidate_needs_no_address_of_its_own() -> None:
    pod = replace(server(2), address="")
    assert after(endpoint(UPDATE), pod).phase is RolloutPhase.STARTING
    there = endpoint(UPDATE)
    there = replace(there, status=replace(there.status, ingress=Ingress("http://iris.example", ready=True)))
    assert after(there, pod).phase is RolloutPhase.SHIFTED


def test_a_note_on_another_rollout_counts_for_nothing() -> None:
    one = endpoint(UPDATE)
    other = RolloutNote(1, 7, RolloutPhase.ROLLED_BACK, T0)
    one = replace(one, status=replace(one.status, rollout=other))
    assert after(one, server(1)) == RolloutNote(1, 2, RolloutPhase.STARTING, at(1))


def test_an_update_is_complete_after_it_was_watched_a_canary_never_by_itself() -> None:
    both = server(1), server(2)
    assert after(endpoint(UPDATE, RolloutPhase.SHIFTED), *both, seconds=29).phase is RolloutPhase.SHIFTED
    assert after(endpoint(UPDATE, RolloutPhase.SHIFTED), *both, seconds=30).phase is RolloutPhase.COMPLETE
    assert after(endpoint(CANARY, RolloutPhase.SHIFTED), *both, seconds=9999).phase is RolloutPhase.SHIFTED


def test_it_is_not_complete_while_its_candidate_is_short_of_servers() -> None:
    short = endpoint(UPDATE, RolloutPhase.SHIFTED, replicas=2)
    assert after(short, server(1), server(2), seconds=60).phase is RolloutPhase.SHIFTED


@pytest.mark.parametrize("rollout", [UPDATE, CANARY])
def test_a_candidate_that_is_worse_is_rolled_back_with_the_evidence(rollout: Rollout) -> None:
    traffic = {1: RevisionTraffic(500, 0, 10.0), 2: RevisionTraffic(50, 50, 10.0)}
    note = after(endpoint(rollout, RolloutPhase.SHIFTED), server(1), server(2), traffic=traffic)
    assert (note.phase, note.since) == (RolloutPhase.ROLLED_BACK, at(1))
    assert "100 % of its 50 requests failed" in note.message


def test_a_candidate_that_keeps_ending_is_rolled_back_one_that_ended_once_is_not() -> None:
    shifted = endpoint(UPDATE, RolloutPhase.SHIFTED)
    assert after(shifted, server(1), restarts=(ends(2, 1),)).phase is RolloutPhase.SHIFTED
    assert after(shifted, server(1), restarts=(ends(2, 5),)).phase is RolloutPhase.ROLLED_BACK
    assert after(shifted, server(1), restarts=(ends(1, 5),)).phase is RolloutPhase.SHIFTED


def test_a_candidate_that_cannot_start_is_rolled_back_only_where_the_base_had_to_go() -> None:
    hopeless = (ends(2, 1, ReasonCode.MODEL_LOAD_FAILED),)
    assert after(endpoint(UPDATE), server(1), restarts=hopeless).phase is RolloutPhase.STARTING
    note = after(endpoint(IN_PLACE, RolloutPhase.STARTING), restarts=hopeless)
    assert (note.phase, note.message) == (RolloutPhase.ROLLED_BACK, "it broke")


def test_in_place_the_base_serves_until_the_candidates_model_is_here() -> None:
    missing = ArtifactState(ArtifactPhase.FAILED, reason=ReasonCode.MODEL_NOT_FOUND, message="nothing there")
    assert after(endpoint(IN_PLACE), server(1), artifact=missing).phase is RolloutPhase.PREPARING
    preparing = endpoint(IN_PLACE, RolloutPhase.PREPARING)
    assert after(preparing, server(1), artifact=missing).phase is RolloutPhase.PREPARING
    assert after(preparing, server(1)).phase is RolloutPhase.STARTING


def test_in_place_is_complete_as_soon_as_it_answers() -> None:
    assert after(endpoint(IN_PLACE, RolloutPhase.STARTING), server(2)).phase is RolloutPhase.SHIFTED
    assert after(endpoint(IN_PLACE, RolloutPhase.SHIFTED), server(2)).phase is RolloutPhase.COMPLETE


@pytest.mark.parametrize("phase", [RolloutPhase.COMPLETE, RolloutPhase.ROLLED_BACK])
def test_what_is_settled_stays_so(phase: RolloutPhase) -> None:
    settled = endpoint(UPDATE, phase)
    assert after(settled, seconds=999) == settled.status.rollout
    assert watch_seconds(settled, settled.status.rollout) is None


def test_a_candidate_that_gets_requests_is_looked_at_again() -> None:
    shifted = endpoint(CANARY, RolloutPhase.SHIFTED)
    assert watch_seconds(shifted, shifted.status.rollout) == 1.0
