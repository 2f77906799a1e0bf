"""Changing an endpoint with the SDK against the real API; no controllers run, so tests say what they see."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from api_world import World
from inferplane import AsyncClient, Client, ConflictError, InvalidError, WaitTimeoutError
from inferplane.domain.endpoint import Replica, ReplicaId, ReplicaState
from inferplane.domain.rollout import RolloutNote, RolloutPhase

TWO = "/models/two.joblib"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def team(world: World) -> str:
    return world.workspace()


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(world.url, world.owner.key) as owner:
        yield owner


def running(world: World, team: str) -> str:
    name = world.create(team)
    world.run(team, name)
    return name


def at(world: World, team: str, name: str, phase: RolloutPhase) -> None:
    """What the controller would have written by then."""
    stored = world.stored(team, name)
    rollout = stored.spec.rollout
    assert rollout is not None
    ids = [ReplicaId(stored.uid, each, 0) for each in (rollout.base, stored.spec.revision)]
    status = replace(
        stored.status,
        observed_generation=stored.generation,
        rollout=RolloutNote(rollout.base, stored.spec.revision, phase, stored.created_at, "worse"),
        replicas=tuple(Replica(each, ReplicaState.READY, address="unix:/s") for each in ids),
        routed=tuple(each.name for each in ids),
    )
    world.become(stored, status)


def test_from_a_share_to_everything_and_back(world: World, client: Client, team: str) -> None:
    name = running(world, team)
    checks = client.try_update(name, workspace=team, uri=TWO, canary_percent=10)
    assert "10 % of requests" in checks[0].message
    assert client.update(name, workspace=team, uri=TWO, canary_percent=10).revision == 2
    with pytest.raises(WaitTimeoutError):
        client.wait_until_updated(name, 0, workspace=team)
    at(world, team, name, RolloutPhase.SHIFTED)
    found = client.wait_until_updated(name, workspace=team)
    assert found.rollout is not None
    assert (found.rollout.phase, found.rollout.canary_percent) == ("Shifted", 10)
    assert [(each.revision, each.percent) for each in found.traffic] == [(2, 10), (1, 90)]
    assert client.promote(name, workspace=team).revision == 2
    assert client.rollback(name, workspace=team).revision == 1
    assert [each.state for each in client.revisions(name, workspace=team)] == ["rolledBack", "serving"]


def test_one_that_was_put_back_is_told_and_not_waited_for(world: World, client: Client, team: str) -> None:
    name = running(world, team)
    client.update(name, workspace=team, uri=TWO)
    at(world, team, name, RolloutPhase.ROLLED_BACK)
    found = client.wait_until_updated(name, workspace=team)
    assert (found.status, found.reason) == ("Degraded", "RolledBack")
    with pytest.raises(ConflictError) as caught:
        client.promote(name, workspace=team)
    assert caught.value.reason == "RolledBack"


def test_what_cannot_be_names_its_field(world: World, client: Client, team: str) -> None:
    name = running(world, team)
    with pytest.raises(InvalidError) as caught:
        client.update(name, workspace=team, uri=TWO, canary_percent=5, strategy="stopThenStart")
    assert caught.value.field == "canary"


def test_the_same_key_makes_one_revision(world: World, client: Client, team: str) -> None:
    name = running(world, team)
    made = [client.update(name, workspace=team, uri=TWO, idempotency_key="k") for _ in range(2)]
    assert made[0] == made[1]
    assert world.stored(team, name).spec.revision == 2


def test_the_same_words_can_be_awaited(world: World, team: str) -> None:
    name = running(world, team)

    async def change() -> list[int]:
        async with AsyncClient(world.url, world.owner.key) as client:
            made = [await client.update(name, workspace=team, uri=TWO, mirror_percent=20)]
            made.append(await client.promote(name, workspace=team))
            made.append(await client.rollback(name, workspace=team))
            return [each.revision for each in made]

    assert asyncio.run(change()) == [2, 2, 1]
