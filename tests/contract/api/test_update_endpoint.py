"""PATCH, promote and rollback over HTTP: what is stored, what is answered, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api_world import Client, World
from inferplane.domain.endpoint import Replica, ReplicaId, ReplicaState
from inferplane.domain.rollout import RolloutNote, RolloutPhase
from inferplane.wire import paths

PROMOTE, ROLLBACK = paths.ENDPOINT_PROMOTE, paths.ENDPOINT_ROLLBACK


class Endpoint:
    """A running endpoint of its own workspace, changed by its owner."""

    def __init__(self, world: World, owner: Client) -> None:
        self.world, self.owner = world, owner
        self.team = world.workspace()
        self.name = world.create(self.team)
        world.run(self.team, self.name)

    @property
    def place(self) -> dict[str, str]:
        return {"workspace": self.team, "endpoint": self.name}

    def patch(self, query: str = "", **change: Any) -> Any:
        return self.owner("PATCH", f"{paths.ENDPOINT}{query}", {**self.place, **change})

    def describe(self) -> dict[str, Any]:
        found = self.owner("GET", f"{paths.ENDPOINT}?workspace={self.team}&endpoint={self.name}").data
        data: dict[str, Any] = found["endpoint"]
        return data

    def shift(self, phase: RolloutPhase, message: str = "") -> None:
        """What the controller would write once both revisions answer."""
        stored = self.world.stored(self.team, self.name)
        rollout = stored.spec.rollout
        assert rollout is not None
        ids = [ReplicaId(stored.uid, each, 0) for each in (rollout.base, stored.spec.revision)]
        note = RolloutNote(rollout.base, stored.spec.revision, phase, stored.created_at, message)
        self.world.become(
            stored,
            replace(
                stored.status,
                rollout=note,
                replicas=tuple(Replica(each, ReplicaState.READY, address="unix:/s") for each in ids),
                routed=tuple(each.name for each in ids),
            ),
        )


@pytest.fixture
def endpoint(world: World, owner: Client) -> Endpoint:
    return Endpoint(world, owner)


def test_a_part_of_the_model_is_laid_over_what_it_has(endpoint: Endpoint) -> None:
    assert endpoint.patch(modelSpec={"storageURI": "/models/v2.joblib"}).data == {
        "endpoint": endpoint.name,
        "revision": 2,
    }
    spec = endpoint.world.stored(endpoint.team, endpoint.name).spec
    assert (spec.model.format, spec.model.storage_uri) == ("sklearn", "/models/v2.joblib")
    assert spec.rollout is not None
    assert (spec.rollout.base, spec.rollout.canary_percent) == (1, None)


def test_scaling_and_limits_change_without_a_revision(endpoint: Endpoint) -> None:
    change: dict[str, Any] = {
        "autoscaling": {"minReplicas": 2, "maxReplicas": 4},
        "limits": {"timeoutSeconds": 7},
    }
    answer = endpoint.patch(**change).data
    assert (answer["revision"], answer["withoutRevision"]) == (1, "2 to 4 replicas; other limits")
    assert endpoint.patch(**change).data["withoutRevision"] == ""
    spec = endpoint.world.stored(endpoint.team, endpoint.name).spec
    assert (spec.scaling.min_replicas, spec.scaling.max_replicas, spec.limits.timeout_seconds) == (2, 4, 7)
    assert spec.revisions == ()


def test_a_canary_is_shown_moved_and_promoted(endpoint: Endpoint) -> None:
    endpoint.patch(modelSpec={"storageURI": "/models/v2.joblib"}, canary={"percent": 10}).ok()
    endpoint.shift(RolloutPhase.SHIFTED)
    seen = endpoint.describe()
    assert seen["traffic"] == [{"revision": 2, "percent": 10}, {"revision": 1, "percent": 90}]
    assert [(each["revision"], each["state"]) for each in seen["revisions"]] == [
        (2, "candidate"),
        (1, "serving"),
    ]
    assert (seen["rollout"]["phase"], seen["rollout"]["canaryPercent"]) == ("Shifted", 10)
    assert seen["status"] == "Updating"
    endpoint.patch(canary={"percent": 50}).ok()
    assert endpoint.describe()["traffic"][0]["percent"] == 50
    assert endpoint.owner("POST", PROMOTE, endpoint.place).data["revision"] == 2
    assert endpoint.describe()["rollout"]["canaryPercent"] is None


def test_while_an_update_is_watched_the_new_revision_serves_and_the_one_before_is_at_hand(
    endpoint: Endpoint,
) -> None:
    endpoint.patch(modelSpec={"storageURI": "/models/v2.joblib"}).ok()
    waiting = endpoint.describe()["revisions"]
    assert [(each["state"], each["note"]) for each in waiting] == [("candidate", ""), ("serving", "")]
    endpoint.shift(RolloutPhase.SHIFTED)
    newest, before = endpoint.describe()["revisions"]
    assert (newest["state"], newest["trafficPercent"], before["state"]) == ("serving", 100, "previous")
    assert newest["note"].startswith("watched until ")
    assert before["note"].startswith("kept until ")


def test_what_was_rolled_back_stays_so_after_the_next_change_and_its_restarts_are_its_own(
    endpoint: Endpoint,
) -> None:
    endpoint.patch(modelSpec={"storageURI": "/models/v2.joblib"}, canary={"percent": 10}).ok()
    endpoint.shift(RolloutPhase.ROLLED_BACK, "its model server keeps ending")
    stored = endpoint.world.stored(endpoint.team, endpoint.name)
    endpoint.world.become(stored, replace(stored.status, ends=(("r1-0", 1), ("r2-0", 5))))
    seen = endpoint.describe()
    assert seen["revisions"][0]["note"] == "its model server keeps ending"
    assert seen["evidence"]["restarts"] == 1
    endpoint.patch(modelSpec={"storageURI": "/models/v3.joblib"}).ok()
    assert [each["state"] for each in endpoint.describe()["revisions"]] == [
        "candidate",
        "rolledBack",
        "serving",
    ]


def test_the_way_back_in_the_middle_and_after_it_was_rolled_back(endpoint: Endpoint) -> None:
    endpoint.patch(modelSpec={"storageURI": "/models/v2.joblib"}, canary={"percent": 10}).ok()
    endpoint.shift(RolloutPhase.ROLLED_BACK, "50 % of its requests failed")
    seen = endpoint.describe()
    assert (seen["status"], seen["reason"]) == ("Degraded", "RolledBack")
    assert "50 % of its requests failed" in seen["message"]
    refused = endpoint.owner("POST", PROMOTE, endpoint.place)
    assert (refused.status, refused.error["reason"]) == (409, "RolledBack")
    assert endpoint.owner("POST", ROLLBACK, endpoint.place).data["revision"] == 1
    assert endpoint.describe()["status"] == "Running"
    assert endpoint.patch(modelSpec={"storageURI": "/models/v3.joblib"}).data["revision"] == 3


def test_an_endpoint_that_serves_nothing_changes_at_once(world: World, owner: Client) -> None:
    team = world.workspace()
    name = world.create(team)
    place = {"workspace": team, "endpoint": name}
    change = {**place, "modelSpec": {"storageURI": "/models/v2.joblib"}, "canary": {"percent": 10}}
    answer = owner("PATCH", paths.ENDPOINT, change).data
    assert "canary has no effect" in answer["warnings"][0]
    assert world.stored(team, name).spec.rollout is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"canary": {"percent": 101}}, "canary.percent"),
        ({"canary": {"percent": 10, "stickyHeader": "x-envoy-a"}}, "canary.stickyHeader"),
        ({"strategy": "yolo"}, "strategy"),
        ({"strategy": "stopThenStart", "canary": {"percent": 5}}, "canary"),
        ({"guard": {"errorPoints": 2}}, "guard.errorPoints"),
        ({"modelSpec": {"storageURI": "ftp://nowhere"}}, "modelSpec.storageURI"),
        ({"modelSpec": {"modelName": "cobol"}}, "modelSpec.modelName"),
        ({"modelSpec": {"storageURI": "/m"}, "rawModelSpec": "a: b"}, "rawModelSpec"),
        ({"autoscaling": {"minReplicas": 5, "maxReplicas": 2}}, "autoscaling.minReplicas"),
        ({"gpuSpec": {"gpuShape": "A100"}}, "gpuSpec"),
        ({}, ""),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(
    endpoint: Endpoint, change: dict[str, Any], field: str
) -> None:
    refused = endpoint.patch(**change)
    assert refused.status == 422
    said = [refused.error.get("field", ""), *(each["field"] for each in refused.error.get("details", []))]
    assert not field or field in said
    assert endpoint.world.stored(endpoint.team, endpoint.name).spec.revision == 1


def test_what_is_not_there_is_said(endpoint: Endpoint) -> None:
    assert endpoint.owner("POST", ROLLBACK, endpoint.place).status == 409
    assert endpoint.owner("POST", PROMOTE, endpoint.place).error["reason"] == "NoRollout"
    assert endpoint.owner("POST", ROLLBACK, {**endpoint.place, "revision": 9}).error["field"] == "revision"
    assert endpoint.owner("PATCH", paths.ENDPOINT, {"workspace": endpoint.team, "endpoint": "no"}).status in (
        404,
        422,
    )


def test_a_dry_run_says_what_would_happen_and_stores_nothing(endpoint: Endpoint) -> None:
    answer = endpoint.patch("?dryRun=true", modelSpec={"storageURI": "/models/v2.joblib"}).data
    assert answer["endpointName"] == endpoint.name
    assert "takes over from revision 1" in answer["preflight"][0]["message"]
    assert endpoint.world.stored(endpoint.team, endpoint.name).spec.revision == 1


def test_the_same_request_twice_makes_one_revision(endpoint: Endpoint) -> None:
    change = {**endpoint.place, "modelSpec": {"storageURI": "/models/v2.joblib"}}
    headers = {"Idempotency-Key": endpoint.name}
    first = endpoint.owner("PATCH", paths.ENDPOINT, change, headers=headers).data
    assert endpoint.owner("PATCH", paths.ENDPOINT, change, headers=headers).data == first
    assert endpoint.world.stored(endpoint.team, endpoint.name).spec.revision == 2


def test_other_credentials_are_kept_secret(endpoint: Endpoint) -> None:
    endpoint.patch(modelSpec={"storageURI": "/models/v2.joblib", "secret": {"AWS_SECRET": "hunter2"}}).ok()
    world = endpoint.world
    uid = world.stored(endpoint.team, endpoint.name).uid

    async def secret() -> dict[str, str]:
        async with world.store.read() as tx:
            return await tx.endpoint_secret(uid)

    assert world.do(secret()) == {"AWS_SECRET": "hunter2"}
    told = endpoint.owner("GET", f"{paths.AUDIT}?workspace={endpoint.team}")
    assert "EndpointUpdated" in str(told.body)
    assert "hunter2" not in str(told.body) + str(endpoint.describe())
