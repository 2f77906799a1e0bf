"""What an endpoint may expect of whatever runs it: one suite for every engine, those of Kubernetes included.

The steps are those that the endpoint controller takes, in its words; the only difference between the two kinds
of engines is theirs (`engines.port`): where the cluster has controllers of its own, nothing is stopped one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from engine_world import endpoint, target, wait_until
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import InferenceEndpoint, Replica, ReplicaId, ReplicaState, Revision
from inferplane.engines.port import (
    Engine,
    EngineError,
    FetchModel,
    Observation,
    Release,
    StartReplica,
    StopReplica,
)

READY = ReplicaState.READY
OVER = (ReplicaState.EXITED, ReplicaState.STOPPING)
MODEL: Mapping[str, Any] = {"storage_uri": "s3://models/iris"}


class AnyWorld(Protocol):
    """As in conftest."""

    engine: Engine

    async def again(self) -> Engine: ...
    async def away(self) -> None: ...
    async def back(self) -> Engine: ...
    def doom(self, one: InferenceEndpoint) -> None: ...
    async def ruin(self, one: InferenceEndpoint, replica: ReplicaId) -> None: ...
    async def count(self, one: InferenceEndpoint) -> int: ...


@dataclass(frozen=True)
class Steps:
    """What the controller does, on one engine."""

    engine: Engine

    async def begin(self, one: InferenceEndpoint) -> None:
        """Everything that the wished revision needs to be said."""
        revision = one.spec.revision
        await self.engine.apply(target(one), FetchModel(revision))

        async def is_here() -> bool:
            return (await self.engine.observe(one.uid)).artifact(revision).phase is ArtifactPhase.PRESENT

        await wait_until(is_here, "the model")
        await self.engine.apply(target(one), StartReplica(ReplicaId(one.uid, revision, 0)))

    async def until(self, uid: str, that: Callable[[Observation], object], what: str) -> Observation:
        async def probe() -> Observation | None:
            seen = await self.engine.observe(uid)
            return seen if that(seen) else None

        return await wait_until(probe, what)

    async def serve(self, one: InferenceEndpoint) -> Observation:
        """Begin, and wait until its revision answers."""
        await self.begin(one)
        return await self.until(one.uid, lambda seen: answers(seen, one.spec.revision), "it to answer")

    async def update(self, one: InferenceEndpoint, before: int) -> Observation:
        """Bring the wished revision, then put the one before to rest."""
        seen = await self.serve(one)
        if seen.ingress is None:
            await self.engine.apply(
                target(one.at_revision(before)), StopReplica(ReplicaId(one.uid, before, 0), 5)
            )
        return await self.until(
            one.uid, lambda o: answers(o, one.spec.revision) and not answers(o, before), "the old one to go"
        )

    async def remove(self, one: InferenceEndpoint) -> None:
        """As in a deletion: one step after the other until nothing is left."""

        async def step() -> bool:
            seen = await self.engine.observe(one.uid)
            if seen == Observation():
                return True
            alive = [each for each in seen.replicas if each.state not in OVER]
            try:
                if seen.ingress is None and alive:
                    for each in alive:
                        await self.engine.apply(target(one), StopReplica(each.id, 5))
                else:
                    await self.engine.apply(target(one), Release())
            except EngineError:
                return False  # the controller tries again, too
            return False

        await wait_until(step, "nothing to be left")


def answers(seen: Observation, revision: int) -> list[Replica]:
    return [each for each in seen.replicas if each.id.revision == revision and each.state is READY]


def one_endpoint() -> InferenceEndpoint:
    return endpoint(model=MODEL)


def second(one: InferenceEndpoint) -> InferenceEndpoint:
    """The endpoint with another model wished."""
    first = one.spec.model
    at = datetime(2026, 11, 25, tzinfo=UTC)
    model = replace(first, storage_uri="s3://models/iris/2", env=(("B", "2"),))
    revisions = (Revision(1, first, at), Revision(2, model, at))
    return replace(one, generation=2, spec=replace(one.spec, model=model, revision=2, revisions=revisions))


async def test_what_is_created_answers_and_is_owned(any_world: AnyWorld) -> None:
    steps, one = Steps(any_world.engine), one_endpoint()
    seen = await steps.serve(one)
    assert [each.id.name for each in seen.replicas] == ["r1-0"]
    assert seen.replicas[0].exit is None
    assert seen.replicas[0].started_at is not None
    assert await any_world.engine.owned() == {one.uid}
    assert seen.left


async def test_saying_it_again_makes_nothing_twice(any_world: AnyWorld) -> None:
    steps, one = Steps(any_world.engine), one_endpoint()
    before = await steps.serve(one)
    for _ in range(3):
        await steps.begin(one)
    after = await any_world.engine.observe(one.uid)
    assert [replace(each, waiting=None) for each in after.replicas] == list(before.replicas)
    assert await any_world.count(one) == 1


async def test_after_a_restart_it_is_adopted(any_world: AnyWorld) -> None:
    one = one_endpoint()
    before = await Steps(any_world.engine).serve(one)
    engine = await any_world.again()
    after = await Steps(engine).until(one.uid, lambda seen: answers(seen, 1), "it to be seen")
    assert after.replicas == before.replicas
    assert after.mark == before.mark
    assert await engine.owned() == {one.uid}
    await Steps(engine).begin(one)
    assert (await engine.observe(one.uid)).replicas == before.replicas
    assert await any_world.count(one) == 1


async def test_an_update_takes_over_from_what_serves(any_world: AnyWorld) -> None:
    steps, one = Steps(any_world.engine), one_endpoint()
    await steps.serve(one)
    seen = await steps.update(second(one), before=1)
    assert answers(seen, 2)


async def test_a_failing_update_leaves_what_serves_alone_and_says_how_it_fails(any_world: AnyWorld) -> None:
    steps, one = Steps(any_world.engine), one_endpoint()
    first = answers(await steps.serve(one), 1)
    broken = second(one)
    any_world.doom(one)
    await steps.begin(broken)
    await any_world.ruin(one, ReplicaId(one.uid, 2, 0))

    def has_failed(seen: Observation) -> bool:
        return any(each.id.revision == 2 and each.exit is not None for each in seen.replicas)

    seen = await steps.until(one.uid, has_failed, "the failure")
    assert answers(seen, 1) == first
    failed = next(each for each in seen.replicas if each.id.revision == 2)
    assert failed.exit is not None
    assert failed.exit.message
    # Back to what serves: saying it once more changes nothing about it.
    await steps.begin(replace(broken, generation=3).at_revision(1))
    assert answers(await any_world.engine.observe(one.uid), 1)


async def test_a_delete_while_it_is_created_leaves_nothing(any_world: AnyWorld) -> None:
    steps, one = Steps(any_world.engine), one_endpoint()
    await any_world.engine.apply(target(one), FetchModel())
    await steps.remove(one)
    await steps.begin(one)
    await steps.remove(one)
    assert await any_world.engine.owned() == frozenset()
    assert await any_world.count(one) == 0


async def test_a_delete_may_be_asked_for_twice(any_world: AnyWorld) -> None:
    steps, one = Steps(any_world.engine), one_endpoint()
    await steps.serve(one)
    await steps.remove(one)
    for _ in range(2):
        await any_world.engine.apply(target(one), Release())
    await any_world.engine.release_orphan(one.uid)
    assert await any_world.engine.observe(one.uid) == Observation()
    await steps.serve(one)  # and it may come again


async def test_an_engine_that_was_away_lost_nothing(any_world: AnyWorld) -> None:
    one = one_endpoint()
    before = await Steps(any_world.engine).serve(one)
    await any_world.away()
    engine = await any_world.back()
    after = await Steps(engine).until(
        one.uid, lambda seen: seen.unreachable is None and answers(seen, 1), "it to be back"
    )
    assert after.replicas == before.replicas
    assert await engine.owned() == {one.uid}
    await Steps(engine).begin(one)
    assert await any_world.count(one) == 1
