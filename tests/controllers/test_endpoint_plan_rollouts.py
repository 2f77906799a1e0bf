"""The plan while one revision takes over from another: servers, routes, models and what is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from inferplane.controllers.endpoint_plan import Plan, plan
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    Exit,
    InferenceEndpoint,
    ModelSpec,
    PublicStatus,
    Replica,
    ReplicaId,
    ReplicaState,
    Revision,
    public_state,
)
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.revisions import changed, promoted, went_back
from inferplane.domain.rollout import RevisionTraffic, Rollout, RolloutPhase, Strategy
from inferplane.engines.port import DropModel, FetchModel, Observation, StartReplica, StopReplica
from inferplane.gateway.route_table import EndpointRoutes

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"


@dataclass
class Play:
    """An endpoint with what an engine and a gateway would have of it; `turn` lets the plan decide once."""

    endpoint: InferenceEndpoint
    servers: dict[tuple[int, int], ReplicaState] = field(default_factory=dict)
    models: dict[int, ArtifactState] = field(default_factory=dict)
    routes: EndpointRoutes | None = None
    seconds: float = 0.0
    told: list[tuple[str, ReasonCode | None]] = field(default_factory=list)

    def turn(self, *, seconds: float = 1.0, traffic: Mapping[int, RevisionTraffic] | None = None) -> Plan:
        """One pass; what it asks for is done at once, except that servers become ready by `ready`."""
        self.seconds += seconds
        now = T0 + timedelta(seconds=self.seconds)
        replicas = tuple(
            Replica(
                ReplicaId(UID, revision, index),
                state,
                f"unix:/s/r{revision}-{index}",
                started_at=T0,
                exit=Exit(now, 1, reason=ReasonCode.MODEL_LOAD_FAILED, message="not a model")
                if state is ReplicaState.EXITED
                else None,
            )
            for (revision, index), state in sorted(self.servers.items())
        )
        step = plan(
            self.endpoint, Observation(self.models, replicas), self.routes, now, by_revision=traffic or {}
        )
        self.endpoint = replace(self.endpoint, status=step.status)
        self.routes = step.routes
        self.told += [(event.kind, event.reason) for event in step.events]
        for action in step.actions:
            match action:
                case FetchModel(revision):
                    self.models[revision] = ArtifactState(ArtifactPhase.PRESENT, finished_at=now)
                case DropModel(revision):
                    del self.models[revision]
                case StartReplica(id=each):
                    self.servers[each.revision, each.index] = ReplicaState.LOADING
                case StopReplica(id=each):
                    routed = (
                        {upstream.replica for upstream in self.routes.upstreams} if self.routes else set()
                    )
                    assert each.name not in routed, "stopped while requests may come"
                    del self.servers[each.revision, each.index]
                case _:
                    raise AssertionError(action)
        return step

    def ready(self, revision: int) -> None:
        for number, index in self.servers:
            if number == revision:
                self.servers[number, index] = ReplicaState.READY

    def change(self, rollout: Rollout | None) -> None:
        number = self.endpoint.spec.next_revision
        model = ModelSpec("sklearn", f"file:///m{number}")
        spec = changed(self.endpoint, model, rollout, at=T0, by="ada")
        self.endpoint = replace(self.endpoint, spec=spec, generation=self.endpoint.generation + 1)

    @property
    def phase(self) -> RolloutPhase | None:
        note = self.endpoint.status.rollout
        return None if note is None else note.phase

    @property
    def upstreams(self) -> list[str]:
        return [] if self.routes is None else [each.replica for each in self.routes.upstreams]

    @property
    def word(self) -> tuple[PublicStatus, ReasonCode | None]:
        state = public_state(self.endpoint)
        return state.status, state.reason


def running() -> Play:
    """Revision 1 serves with one server."""
    spec = EndpointSpec(ModelSpec("sklearn", "file:///m1"))
    play = Play(InferenceEndpoint(UID, "w", "local", "iris", "w-iris-000000", spec, 1, T0, "ada"))
    play.turn()
    play.turn()
    play.ready(1)
    play.turn()
    play.turn()
    assert play.word == (PublicStatus.RUNNING, None)
    return play


def shifted(rollout: Rollout) -> Play:
    play = running()
    play.change(rollout)
    play.turn()
    play.turn()
    play.ready(2)
    play.turn()
    play.turn()
    return play


def test_an_update_is_started_beside_what_serves_and_takes_over_when_it_answers() -> None:
    play = running()
    play.change(Rollout(0))
    play.turn()
    assert (play.upstreams, play.word[0]) == (["r1-0"], PublicStatus.UPDATING)
    play.turn()
    assert set(play.servers) == {(1, 0), (2, 0)}
    play.ready(2)
    play.turn()
    assert (play.upstreams, play.phase) == (["r2-0"], RolloutPhase.SHIFTED)
    play.turn()
    assert play.word == (PublicStatus.RUNNING, None)
    assert set(play.servers) == {(1, 0), (2, 0)}, "the base is at hand while the candidate is watched"
    play.turn(seconds=30)
    play.turn()
    assert (set(play.servers), play.phase) == ({(2, 0)}, RolloutPhase.COMPLETE)
    play.turn()
    assert set(play.models) == {2}
    kinds = [kind for kind, _ in play.told]
    assert [kind for kind in kinds if kind.startswith("Rollout")] == [
        "RolloutStarted",
        "RolloutShifted",
        "RolloutCompleted",
    ]


def test_the_base_is_restarted_when_it_ends_while_the_candidate_is_not_there_yet() -> None:
    play = running()
    play.change(Rollout(0))
    play.turn()
    del play.servers[1, 0]
    play.turn()
    assert play.servers[1, 0] is ReplicaState.LOADING


def test_a_candidate_that_cannot_start_leaves_what_serves_alone() -> None:
    play = running()
    play.change(Rollout(0))
    play.turn()
    play.turn()
    play.servers[2, 0] = ReplicaState.EXITED
    play.turn()
    assert (play.upstreams, play.word) == (["r1-0"], (PublicStatus.DEGRADED, ReasonCode.MODEL_LOAD_FAILED))
    assert play.phase is RolloutPhase.STARTING


def test_a_canary_gets_its_share_until_it_is_promoted() -> None:
    play = shifted(Rollout(0, canary_percent=10, sticky_header="x-user"))
    assert play.routes is not None
    assert (play.upstreams, play.routes.shares) == (["r1-0", "r2-0"], ((1, 90), (2, 10)))
    assert play.routes.sticky_header == "x-user"
    assert play.word == (PublicStatus.UPDATING, ReasonCode.ROLLOUT_IN_PROGRESS)
    assert "revision 1 gets 90 % of requests, revision 2 gets 10 %" in public_state(play.endpoint).message
    play.turn(seconds=9999)
    assert play.phase is RolloutPhase.SHIFTED
    play.endpoint = replace(play.endpoint, spec=promoted(play.endpoint))
    for _ in range(4):
        play.turn()
    assert (play.upstreams, play.phase, set(play.servers)) == (["r2-0"], RolloutPhase.COMPLETE, {(2, 0)})


def test_a_canary_right_after_an_update_shares_with_what_the_update_brought() -> None:
    play = shifted(Rollout(0))
    play.change(Rollout(0, canary_percent=10))
    assert play.endpoint.spec.rollout is not None
    assert play.endpoint.spec.rollout.base == 2
    for _ in range(3):
        play.turn()
        assert play.upstreams == ["r2-0"], "requests stay where they are"
    assert set(play.servers) == {(2, 0), (3, 0)}
    play.ready(3)
    play.turn()
    assert play.routes is not None
    assert (play.upstreams, play.routes.shares) == (["r2-0", "r3-0"], ((2, 90), (3, 10)))


def test_a_shadow_gets_copies_and_no_share() -> None:
    play = shifted(Rollout(0, mirror_percent=50))
    assert play.routes is not None
    assert (play.routes.shares, play.routes.mirror) == (((1, 100),), (2, 50))
    assert play.upstreams == ["r1-0", "r2-0"]


def test_a_worse_candidate_loses_its_requests_and_its_servers() -> None:
    play = shifted(Rollout(0, canary_percent=50))
    play.turn(traffic={1: RevisionTraffic(200, 0), 2: RevisionTraffic(200, 100)})
    assert (play.upstreams, play.phase) == (["r1-0"], RolloutPhase.ROLLED_BACK)
    play.turn()
    play.turn()
    assert set(play.servers) == {(1, 0)}
    assert play.word == (PublicStatus.DEGRADED, ReasonCode.ROLLED_BACK)
    assert "50 % of its 200 requests failed" in public_state(play.endpoint).message
    assert ("RolledBack", ReasonCode.ROLLED_BACK) in play.told
    play.endpoint = replace(play.endpoint, spec=went_back(play.endpoint, None))
    play.turn()
    assert public_state(play.endpoint).status is PublicStatus.RUNNING, "going back accepts it"


def test_a_new_change_after_a_rollback_begins_anew_from_what_serves() -> None:
    play = shifted(Rollout(0, canary_percent=50))
    play.turn(traffic={2: RevisionTraffic(200, 100)})
    play.turn()
    play.turn()
    play.change(Rollout(0))
    play.turn()
    play.turn()
    assert (set(play.servers), play.upstreams) == ({(1, 0), (3, 0)}, ["r1-0"])


def test_going_back_in_the_middle_sends_everything_to_the_base_at_once() -> None:
    play = shifted(Rollout(0, canary_percent=50))
    play.endpoint = replace(play.endpoint, spec=went_back(play.endpoint, None))
    play.turn()
    assert play.upstreams == ["r1-0"]
    play.turn()
    play.turn()
    assert set(play.servers) == {(1, 0)}
    assert play.word == (PublicStatus.RUNNING, None)


def test_in_place_the_base_ends_before_the_candidate_starts_and_that_is_told() -> None:
    play = running()
    play.change(Rollout(0, strategy=Strategy.STOP_THEN_START))
    play.turn()
    assert (play.upstreams, play.phase) == (["r1-0"], RolloutPhase.PREPARING), "its model is fetched first"
    play.turn()
    assert (play.upstreams, set(play.servers)) == ([], {(1, 0)}), "unrouted first"
    play.turn()
    assert play.servers == {}
    play.turn()
    assert set(play.servers) == {(2, 0)}
    play.ready(2)
    for _ in range(3):
        play.turn()
    assert (play.upstreams, play.phase, play.word[0]) == (
        ["r2-0"],
        RolloutPhase.COMPLETE,
        PublicStatus.RUNNING,
    )


def test_in_place_a_candidate_that_cannot_start_gives_its_place_back() -> None:
    play = running()
    play.change(Rollout(0, strategy=Strategy.STOP_THEN_START))
    for _ in range(4):
        play.turn()
    play.servers[2, 0] = ReplicaState.EXITED
    for _ in range(3):
        play.turn()
    assert play.servers[1, 0] is ReplicaState.LOADING
    play.ready(1)
    play.turn()
    play.turn()
    assert (play.upstreams, play.word) == (["r1-0"], (PublicStatus.DEGRADED, ReasonCode.ROLLED_BACK))


def test_two_changes_in_a_row_leave_only_the_base_and_the_last_one() -> None:
    play = running()
    play.change(Rollout(0))
    play.turn()
    play.turn()
    play.change(Rollout(0))
    for _ in range(3):
        play.turn()
    assert set(play.servers) == {(1, 0), (3, 0)}
    assert set(play.models) == {1, 3}


def test_a_revision_that_is_not_remembered_is_not_started() -> None:
    play = running()
    spec = replace(
        play.endpoint.spec,
        revision=5,
        revisions=(Revision(5, ModelSpec("sklearn", "file:///m5"), T0),),
        rollout=Rollout(1),
    )
    play.endpoint = replace(play.endpoint, spec=spec)
    play.turn()
    play.turn()
    assert (5, 0) in play.servers
