"""What one process commits, another one on the same PostgreSQL is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from inferplane.domain.endpoint import EndpointStatus
from inferplane.domain.errors import Unavailable
from inferplane.store.dialect import Hint
from inferplane.store.sql import Change, Store

Until = Callable[..., Any]


@pytest_asyncio.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[Store, Store]]:
    one, other = await Store.open(postgres_url), await Store.open(postgres_url)
    yield one, other
    await one.close()
    await other.close()


async def test_a_change_without_an_event_is_heard_by_others(
    pair: tuple[Store, Store], make: Any, until: Until
) -> None:
    """Events are looked for anyway; of this one nobody would hear."""
    one, other = pair
    async with one.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint := make.endpoint(), {})
    heard: list[Change] = []
    other.subscribe(heard.append)
    wanted = Change("default", "iris", endpoint.uid)
    version = endpoint.version

    async def save() -> None:
        nonlocal version
        async with one.transaction() as tx:
            version = await tx.save_endpoint_status(endpoint.uid, version, EndpointStatus())

    def told() -> bool:
        return wanted in heard

    async with (
        asyncio.timeout(20),
        other._database.writer.connect() as look,
    ):  # until it listens, nothing is heard
        while not (
            await look.execute(text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))
        ).scalar():
            await look.execute(text("SELECT pg_sleep(0.02)"))
    await save()
    await until(told)


async def test_one_does_not_hear_oneself(pair: tuple[Store, Store], make: Any, until: Until) -> None:
    one, other = pair
    of_one: list[Hint] = []
    of_other: list[Hint] = []
    one.on_hint(of_one.append)
    stop = other.on_hint(of_other.append)
    async with asyncio.timeout(20):
        while not of_other:
            async with one.transaction() as tx:
                await tx.append_event(make.event())
            await asyncio.sleep(0.02)
    assert of_one == []
    stop()


async def test_many_changes_at_once_are_seen_in_their_events(
    pair: tuple[Store, Store], make: Any, until: Until
) -> None:
    one, other = pair
    heard: set[str] = set()
    other.subscribe(lambda change: heard.add(change.endpoint))
    names = {f"{'long-name-' * 5}{number:03}" for number in range(200)}
    async with one.transaction() as tx:
        await tx.add_workspace(make.workspace())
        for name in sorted(names):
            await tx.insert_endpoint(make.endpoint(name), {})
        for name in sorted(names):
            await tx.append_event(make.event(endpoint=make.endpoint(name)))
    await until(lambda: names <= heard)


async def test_what_cannot_be_read_is_no_harm(pair: tuple[Store, Store], make: Any, until: Until) -> None:
    one, other = pair
    heard: list[Change] = []
    other.subscribe(heard.append)
    async with one._database.writer.connect() as connection:
        for said in (
            "",
            "x",
            "changes",
            "changes t {",
            'changes t [["a"]]',
            "changes t [[1,2,3,4]]",
            "later t",
        ):
            await connection.execute(text("SELECT pg_notify('inferplane', :said)"), {"said": said})
        await connection.commit()
    async with one.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.append_event(make.event())
    await until(lambda: bool(heard))
    assert heard[0].endpoint == ""


async def test_several_share_a_database_beside_one_with_a_local_cluster(pair: tuple[Store, Store]) -> None:
    one, other = pair
    async with one.claim(shared=True), other.claim(shared=True):
        pass
    async with one.claim(), other.claim(shared=True):
        with pytest.raises(Unavailable, match="already works on this database"):
            async with other.claim():
                pytest.fail("two with a local cluster")


async def test_a_version_from_before_leases_is_not_let_in(pair: tuple[Store, Store]) -> None:
    """It asked for this lock, for itself."""
    one, other = pair
    asked = text(f"SELECT pg_try_advisory_lock({0x1F_E2_0003})")
    async with one.claim(shared=True), other._database.writer.connect() as old:
        assert not (await old.execute(asked)).scalar()
