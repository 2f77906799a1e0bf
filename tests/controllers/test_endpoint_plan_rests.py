"""While the world stands still a plan comes to rest: it tells nothing new, and does not ask to look at once.

A plan that is no fixed point costs a whole core for as long as the endpoint exists.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from inferplane.controllers.endpoint_failures import next_failure_deadline
from inferplane.controllers.endpoint_plan import LOOK_SOON_SECONDS, plan
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    Ingress,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    Revision,
    ScaleNote,
    Scaling,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import Rollout, RolloutNote, RolloutPhase, Strategy
from inferplane.engines.port import Observation
from inferplane.gateway.route_table import EndpointRoutes

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"
PASSES_MAX = 3
MOMENTS = (0.0, 30.0, 3600.0)

ROLLOUTS: dict[str, tuple[Rollout | None, RolloutPhase | None]] = {
    "none": (None, None),
    "forgotten": (None, RolloutPhase.ROLLED_BACK),  # a restart of a stopped endpoint: the note is of before
    "new": (Rollout(1), None),
    "starting": (Rollout(1), RolloutPhase.STARTING),
    "canary": (Rollout(1, canary_percent=10), RolloutPhase.SHIFTED),
    "shifted": (Rollout(1), RolloutPhase.SHIFTED),
    "complete": (Rollout(1), RolloutPhase.COMPLETE),
    "rolled back": (Rollout(1, canary_percent=10), RolloutPhase.ROLLED_BACK),
    "in place": (Rollout(1, strategy=Strategy.STOP_THEN_START), RolloutPhase.PREPARING),
    "in place, back": (Rollout(1, strategy=Strategy.STOP_THEN_START), RolloutPhase.ROLLED_BACK),
}
FAILED = ArtifactState(
    ArtifactPhase.FAILED, finished_at=T0, reason=ReasonCode.STORAGE_UNREACHABLE, message="no answer"
)
PRESENT = ArtifactState(ArtifactPhase.PRESENT, finished_at=T0)
FETCHING = ArtifactState(ArtifactPhase.FETCHING)
CRASHED = Exit(T0, 1, reason=ReasonCode.SERVER_EXITED, message="boom")
SERVERS: dict[str, dict[int, ReplicaState]] = {
    "nobody": {},
    "the base": {1: ReplicaState.READY},
    "both": {1: ReplicaState.READY, 2: ReplicaState.READY},
    "the candidate ended": {1: ReplicaState.READY, 2: ReplicaState.EXITED},
    "all ended": {1: ReplicaState.EXITED, 2: ReplicaState.EXITED},
    "the base hangs": {1: ReplicaState.UNRESPONSIVE, 2: ReplicaState.STOPPING},
}


def endpoint_of(rollout: Rollout | None, phase: RolloutPhase | None, mode: str) -> InferenceEndpoint:
    one, two = (ModelSpec("sklearn", f"file:///m{number}") for number in (1, 2))
    spec = EndpointSpec(
        two, revision=2, revisions=(Revision(1, one, T0, "ada"), Revision(2, two, T0, "ada")), rollout=rollout
    )
    records = tuple(RestartRecord(name, 2, CRASHED, T0 + timedelta(seconds=1)) for name in ("r1-0", "r2-0"))
    note = None if phase is None else RolloutNote(1, 2, phase, T0)
    status = EndpointStatus(1, restarts=records, ends=(("r2-0", 2),), rollout=note)
    if mode == "stopped":
        spec = replace(spec, stopped=True, stopped_by="ada")
    if mode == "asleep":
        spec = replace(spec, scaling=Scaling(0, 2))
        status = replace(status, scale=ScaleNote(0, since=T0))
    if mode == "sleepy":
        spec = replace(spec, scaling=Scaling(0, 2))
    gone = T0 if mode == "deleted" else None
    return InferenceEndpoint(
        UID, "w", "local", "iris", "w-iris-000000", spec, 2, T0, "ada", status, deletion_requested_at=gone
    )


def observed(servers: dict[int, ReplicaState], artifact: ArtifactState, managed: bool) -> Observation:
    replicas = tuple(
        Replica(
            ReplicaId(UID, revision, 0),
            state,
            f"unix:/s/{revision}",
            started_at=T0,
            ready_at=T0 if state is ReplicaState.READY else None,
            exit=CRASHED if state is ReplicaState.EXITED else None,
        )
        for revision, state in servers.items()
    )
    models = {1: PRESENT, 2: artifact}
    ingress = Ingress("http://iris", ready=True) if managed else None
    return Observation(models, replicas, left=("model files",), ingress=ingress)


@pytest.mark.parametrize("mode", ["running", "stopped", "asleep", "sleepy", "deleted"])
@pytest.mark.parametrize("wish", sorted(ROLLOUTS))
def test_a_plan_comes_to_rest_while_the_world_stands_still(mode: str, wish: str) -> None:
    worlds = product(SERVERS.values(), (PRESENT, FETCHING, FAILED, ArtifactState()), (False, True))
    for servers, artifact, managed in worlds:
        endpoint = endpoint_of(*ROLLOUTS[wish], mode)
        seen = observed(servers, artifact, managed)
        confirmed: EndpointRoutes | None = None
        for seconds in MOMENTS:
            now = T0 + timedelta(seconds=seconds)
            for _ in range(PASSES_MAX):
                step = plan(endpoint, seen, confirmed, now)
                endpoint, confirmed = replace(endpoint, status=step.status), step.routes
            again = plan(endpoint, seen, confirmed, now)
            where = (mode, wish, servers, artifact.phase, managed, seconds)
            assert (again.status, again.routes, again.events) == (endpoint.status, confirmed, ()), where
            if not again.finished:
                later = again.look_again_seconds
                assert later is None or later >= LOOK_SOON_SECONDS, where


def test_a_try_that_nobody_wants_or_that_is_due_already_is_nothing_to_wait_for() -> None:
    early, late = (RestartRecord(name, 1, CRASHED, T0 + timedelta(seconds=5)) for name in ("r1-0", "r2-0"))
    assert next_failure_deadline(PRESENT, (early, late), (), {"r1-0"}, T0) == 5.0
    assert next_failure_deadline(PRESENT, (late,), (), {"r1-0"}, T0) is None
    overdue = T0 + timedelta(seconds=6)
    assert next_failure_deadline(PRESENT, (early, late), (), {"r1-0", "r2-0"}, overdue) is None
    failed = replace(FAILED, next_attempt_at=T0 + timedelta(seconds=5))
    assert next_failure_deadline(failed, (), (), set(), overdue) is None
