"""Leases of two control planes on one database, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from inferplane.controllers.leases import MARGIN_SECONDS, Leases, Sole, check
from inferplane.domain.errors import StaleLease
from inferplane.domain.lease import (
    LEASE_LASTS,
    PLATFORM_LEASE,
    Fence,
    Lease,
    cluster_lease,
    next_epoch,
    to_take,
)
from inferplane.store.sql import Store

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LASTS = LEASE_LASTS.total_seconds()
WORKER = cluster_lease("worker-1")
AT_ONCE = timedelta(0)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inferplane.db'}"
    url = request.getfixturevalue("postgres_url")
    assert isinstance(url, str)
    return url


@dataclass
class World:
    """A database, and two control planes that share a clock; each can be stopped from seeing it move."""

    stores: list[Store]
    seconds: float = 0.0
    behind: float = 0.0  # how far the database's clock went back
    said: list[str] = field(default_factory=list)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds - self.behind)

    def ticks(self) -> float:
        return 1000.0 + self.seconds

    def control_plane(
        self, number: int, wanted: dict[str, timedelta] | None = None, *, holder: str = ""
    ) -> Leases:
        names = {PLATFORM_LEASE: AT_ONCE, WORKER: AT_ONCE} if wanted is None else wanted
        return Leases(
            self.stores[number],
            holder or f"process-{number}",
            lambda _: names,
            self.ticks,
            gained=lambda name: self.said.append(f"{number} gains {name}"),
            lost=lambda name: self.said.append(f"{number} loses {name}"),
            now=self.now,
        )


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    stores = [await Store.open(database_url), await Store.open(database_url)]
    yield World(stores)
    for store in stores:
        await store.close()


async def write_under(store: Store, fence: Fence | None) -> None:
    """Raises StaleLease."""
    async with store.transaction(fence=fence) as tx:
        await tx.advance_generation()


async def test_who_comes_first_holds_it_and_the_other_waits(world: World) -> None:
    first, second = world.control_plane(0), world.control_plane(1)
    await first.round()
    await second.round()
    assert [first.fence(name) is not None for name in (PLATFORM_LEASE, WORKER)] == [True, True]
    assert [second.fence(name) for name in (PLATFORM_LEASE, WORKER)] == [None, None]
    for _ in range(20):
        world.seconds += LASTS / 2
        await first.round()
        await second.round()
    assert second.fence(WORKER) is None
    assert world.said == [f"0 gains {WORKER}", f"0 gains {PLATFORM_LEASE}"]


async def test_who_is_not_renewed_stops_before_the_other_may_begin(world: World) -> None:
    first, second = world.control_plane(0), world.control_plane(1)
    await first.round()
    world.seconds += LASTS - MARGIN_SECONDS
    assert first.fence(WORKER) is None
    await second.round()
    assert second.fence(WORKER) is None
    world.seconds += MARGIN_SECONDS
    await second.round()
    taken = second.fence(WORKER)
    assert taken is not None


async def test_a_holder_that_does_not_know_better_is_refused_by_the_store(world: World) -> None:
    first, second = world.control_plane(0), world.control_plane(1)
    await first.round()
    old = first.fence(WORKER)
    assert old is not None
    await write_under(world.stores[0], old)
    world.seconds += LASTS
    await second.round()
    new = second.fence(WORKER)
    assert new is not None
    assert new.epoch > old.epoch
    with pytest.raises(StaleLease, match="gone to another control plane"):
        await write_under(world.stores[0], old)
    await write_under(world.stores[1], new)
    with pytest.raises(StaleLease):
        check(first, old)
    await first.round()
    assert first.fence(WORKER) is None
    assert world.said[-2:] == [f"0 loses {WORKER}", f"0 loses {PLATFORM_LEASE}"]


async def test_what_is_given_back_is_taken_at_once(world: World) -> None:
    first, second = world.control_plane(0), world.control_plane(1)
    await first.round()
    old = first.fence(WORKER)
    await first.close()
    assert first.fence(WORKER) is None
    await second.round()
    assert second.fence(WORKER) is not None
    with pytest.raises(StaleLease):
        await write_under(world.stores[0], old)


async def test_after_an_outage_in_which_nobody_took_it_the_epoch_goes_on(world: World) -> None:
    first = world.control_plane(0)
    await first.round()
    before = first.fence(WORKER)
    world.seconds += 100 * LASTS
    assert first.fence(WORKER) is None  # so somebody was sent away
    world.said.clear()
    await first.round()
    assert first.fence(WORKER) == before
    assert f"0 gains {WORKER}" in world.said  # and is called back


async def test_a_restarted_process_takes_its_own_lease_again_at_once(world: World) -> None:
    killed = world.control_plane(0, holder="home-a")
    await killed.round()
    before = killed.fence(WORKER)
    again = world.control_plane(1, holder="home-a")
    await again.round()
    after = again.fence(WORKER)
    assert before is not None
    assert after is not None
    assert after.epoch > before.epoch
    with pytest.raises(StaleLease):
        await write_under(world.stores[0], before)


async def test_who_can_only_wind_down_borrows_and_lets_others_have_their_turn(world: World) -> None:
    patience = timedelta(seconds=30)
    able, unable = world.control_plane(0, {WORKER: AT_ONCE}), world.control_plane(1, {WORKER: patience})
    await able.round()
    world.seconds += LASTS + 29
    await unable.round()
    assert unable.fence(WORKER) is None
    world.seconds += 1
    await unable.round()
    assert unable.fence(WORKER) is not None
    world.seconds += LASTS / 2
    await unable.round()  # is not renewed
    world.seconds += LASTS / 2
    await unable.round()
    assert unable.fence(WORKER) is None
    await able.round()
    assert able.fence(WORKER) is not None


async def test_what_is_not_wanted_any_more_is_not_renewed(world: World) -> None:
    wanted = {WORKER: AT_ONCE}
    first, second = world.control_plane(0, wanted), world.control_plane(1)
    await first.round()
    del wanted[WORKER]
    await first.round()
    assert first.fence(WORKER) is None
    world.seconds += LASTS
    await second.round()
    assert second.fence(WORKER) is not None


async def test_what_is_given_back_is_not_borrowed_at_once(world: World) -> None:
    """Who runs the cluster may only be on its way down and up again."""
    able, unable = world.control_plane(0), world.control_plane(1, {WORKER: timedelta(seconds=30)})
    await able.round()
    await able.close()
    world.seconds += 29
    await unable.round()
    assert unable.fence(WORKER) is None
    world.seconds += 1
    await unable.round()
    assert unable.fence(WORKER) is not None


async def test_what_was_borrowed_is_kept_once_there_is_an_engine(world: World) -> None:
    wanted = {WORKER: timedelta(seconds=30)}
    first = world.control_plane(0, wanted)
    await first.round()
    borrowed = first.fence(WORKER)
    wanted[WORKER] = AT_ONCE
    for _ in range(4):
        world.seconds += LASTS / 2
        await first.round()
    assert borrowed is not None
    assert first.fence(WORKER) == borrowed


async def test_the_database_has_a_clock(world: World) -> None:
    async with world.stores[0].read() as tx:
        now = await tx.database_now()
    assert now.tzinfo is not None
    assert now > START - timedelta(days=3650)


async def test_of_many_that_try_at_once_one_gets_it(world: World) -> None:
    """Whoever read the same row: only one take of an epoch succeeds."""
    async with world.stores[0].transaction() as tx:
        first = await tx.take_lease(WORKER, 0, "a", START, LEASE_LASTS)
    assert first is not None
    late = START + LEASE_LASTS
    async with world.stores[0].transaction() as one:
        taken = await one.take_lease(WORKER, first, "b", late, LEASE_LASTS)
    async with world.stores[1].transaction() as other:
        lost = await other.take_lease(WORKER, first, "c", late, LEASE_LASTS)
    assert taken is not None
    assert lost is None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_lease_does_not_change_hands_within_a_write_under_it(world: World) -> None:
    async with world.stores[0].transaction() as tx:
        epoch = await tx.take_lease(WORKER, 0, "a", START, LEASE_LASTS)
    assert epoch is not None
    late = START + LEASE_LASTS
    async with world.stores[0].transaction(fence=Fence(WORKER, "a", epoch)) as writing:
        async with world.stores[1].transaction() as taking:
            assert await taking.take_lease(WORKER, epoch, "b", late, LEASE_LASTS) is None
        async with world.stores[1].transaction() as renewing:  # which nobody has to wait for
            assert await renewing.renew_leases({WORKER: epoch}, "a", late, LEASE_LASTS) == {WORKER}
        await writing.advance_generation()
    async with world.stores[1].transaction() as taking:
        later = late + LEASE_LASTS
        assert await taking.take_lease(WORKER, epoch, "b", later, LEASE_LASTS) is not None


async def test_when_the_clock_goes_far_back_the_lease_of_a_dead_holder_is_taken_all_the_same(
    world: World,
) -> None:
    dead, second = world.control_plane(0), world.control_plane(1)
    await dead.round()
    world.behind = 3600.0
    await second.round()
    assert second.fence(WORKER) is None, "it may be alive, and renew it in a moment"
    world.seconds += LASTS
    await second.round()
    taken = second.fence(WORKER)
    assert taken is not None
    await write_under(world.stores[1], taken)


async def test_when_the_clock_goes_far_back_who_is_alive_keeps_what_it_has(world: World) -> None:
    first, second = world.control_plane(0), world.control_plane(1)
    await first.round()
    world.behind = 3600.0
    for _ in range(5):
        await second.round()
        assert second.fence(WORKER) is None
        world.seconds += LASTS / 3
        await first.round()
        assert first.fence(WORKER) is not None


def test_alone_everything_is_held() -> None:
    check(Sole(), Fence(WORKER))


def test_epochs_only_grow_also_after_a_backup_was_restored() -> None:
    restored = Lease(WORKER, "a", 5, START)
    assert next_epoch(restored, START) == int(START.timestamp())
    assert next_epoch(Lease(WORKER, "a", 2**40, START), START) == 2**40 + 1


def test_what_is_tried_is_wanted_not_held_and_free() -> None:
    leases = [
        Lease("a", "other", 1, START),
        Lease("b", "other", 1, START + timedelta(seconds=1)),
        Lease("c", "me", 1, START + timedelta(seconds=1)),
        Lease("e", "other", 1, START),
        Lease("unwanted", "other", 1, START),
    ]
    wanted = dict.fromkeys("abcde", AT_ONCE) | {"e": timedelta(seconds=1)}
    found = to_take(leases, wanted, "me", ["d"], START)
    assert [each if isinstance(each, str) else each.name for each in found] == ["a", "c"]
    assert to_take([], {"z": AT_ONCE}, "me", [], START) == ("z",)
