"""Rows that were read before: never another value than what the row says, and nobody waits for long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select

from inferplane.domain.gpu_request import reprioritised
from inferplane.domain.inventory import Node
from inferplane.store.remembered import READ_AT_A_TIME, Remembered, read_all
from inferplane.store.sql import Store


async def live(store: Store) -> list[Any]:
    async with store.read() as tx:
        return list(await tx.list_gpu_requests(live_only=True))


async def test_what_another_process_wrote_is_seen(store: Store, database_url: str, make: Any) -> None:
    request = make.gpu_request()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_gpu_request(request)
    assert await live(store) == [request]
    other = await Store.open(database_url)
    try:
        async with other.transaction() as tx:
            await tx.save_gpu_request(reprioritised(request, 7))
    finally:
        await other.close()
    assert [(each.priority, each.version) for each in await live(store)] == [(7, 2)]


async def test_what_was_undone_was_never_read(store: Store, make: Any) -> None:
    """Two writers may both make version 2 of it; only one of them happened."""
    request = make.gpu_request()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_gpu_request(request)

    async def change_of_mind() -> None:
        async with store.transaction() as tx:
            await tx.save_gpu_request(reprioritised(request, 7))
            assert [each.priority for each in await tx.list_gpu_requests(live_only=True)] == [7]
            raise LookupError

    with pytest.raises(LookupError):
        await change_of_mind()
    assert await live(store) == [request]
    async with store.transaction() as tx:
        await tx.save_gpu_request(reprioritised(request, 9))
    assert [(each.priority, each.version) for each in await live(store)] == [(9, 2)]


async def test_an_id_that_is_used_again_is_another_request(store: Store, make: Any) -> None:
    request = make.gpu_request()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_gpu_request(request)
    assert await live(store) == [request]
    again = replace(request, name="another")
    async with store.transaction() as tx:
        await tx.delete_gpu_request(request.id)
        await tx.insert_gpu_request(again)
    assert await live(store) == [again]


async def test_nodes_are_what_was_saved_last(store: Store) -> None:
    node = Node("worker-1", "gpu-0", "a2", "A100", 1, 80)
    for saved in (node, replace(node, gpu_count=8), node):
        async with store.transaction() as tx:
            await tx.save_nodes("worker-1", [saved])
        async with store.read() as tx:
            assert await tx.list_nodes() == [saved]


_NUMBERS = Table("numbers", MetaData(), Column("id", Integer), Column("body", Integer))


def numbers(*bodies: int) -> list[Any]:
    """Rows as the database gives them: (0, bodies[0]), (1, bodies[1]), …"""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        _NUMBERS.create(connection)
        if bodies:
            connection.execute(
                insert(_NUMBERS), [{"id": key, "body": body} for key, body in enumerate(bodies)]
            )
        rows = list(connection.execute(select(_NUMBERS)).all())
    engine.dispose()
    return rows


async def turns_of_others(work: Any) -> int:
    """How often somebody else had a turn while `work` was done."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(other())
    await work
    others.cancel()
    return turns


async def test_a_row_is_read_once_until_it_says_something_else() -> None:
    read: list[int] = []

    def to_value(row: Any) -> int:
        read.append(row["id"])
        return int(row["body"]) * 10

    remembered = Remembered(to_value)
    assert await remembered.all(numbers(1, 2, 3)) == [10, 20, 30]
    assert await remembered.all(numbers(1, 5, 3)) == [10, 50, 30]
    assert await remembered.all(numbers(1, 5, 3, 4)) == [10, 50, 30, 40]
    assert read == [0, 1, 2, 1, 3]


async def test_however_many_rows_there_are_each_is_read_once_and_the_gone_are_forgotten() -> None:
    reads = 0

    def to_value(row: Any) -> int:
        nonlocal reads
        reads += 1
        return int(row["body"])

    remembered = Remembered(to_value)
    many = numbers(*range(60_000))
    for _ in range(3):
        assert len(await remembered.all(many)) == 60_000
    assert reads == 60_000
    assert await remembered.all(many[:7]) == list(range(7))
    assert (len(remembered), reads) == (7, 60_000)


async def test_reading_some_rows_changes_nothing_of_what_is_remembered() -> None:
    read: list[int] = []

    def to_value(row: Any) -> int:
        read.append(row["id"])
        return int(row["body"])

    remembered = Remembered(to_value)
    rows = numbers(*range(5))
    await remembered.all(rows[:4])
    read.clear()
    for _ in range(2):
        assert await remembered.some(rows[3:]) == [3, 4]
    assert read == [4, 4], "what was never read with all others is read each time"
    assert await remembered.all(rows[:4]) == [0, 1, 2, 3]
    assert read == [4, 4]


async def test_lists_of_a_part_leave_the_others_remembered(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        for name in ("default", "other"):
            await tx.add_workspace(make.workspace(name))
            await tx.insert_gpu_request(make.gpu_request(f"gpr-{name}", workspace=name, endpoint=name))
            await tx.save_nodes(name, [Node(name, "gpu-0", "a2", "A100", 1, 80)])
    async with store.read() as tx:
        before: list[Any] = [*await tx.list_gpu_requests(live_only=True), *await tx.list_nodes()]
        await tx.list_gpu_requests(live_only=True, workspace="other")
        await tx.list_gpu_requests(live_only=True, endpoint_uid=before[0].endpoint_uid)
        await tx.list_gpu_requests(live_only=True, limit=1)
        await tx.list_gpu_requests(live_only=True, newest=1)
        await tx.list_gpu_requests(live_only=True, after_id="gpr-default")
        await tx.list_nodes("other")
        after = [*await tx.list_gpu_requests(live_only=True), *await tx.list_nodes()]
    assert [id(each) for each in after] == [id(each) for each in before]


async def test_reading_many_rows_lets_others_have_turns() -> None:
    rows = numbers(*range(10 * READ_AT_A_TIME))
    assert await turns_of_others(read_all(rows, lambda row: row["body"])) >= 10
    remembered = Remembered(lambda row: row["body"])
    assert await turns_of_others(remembered.all(rows)) >= 10
