"""The collector with a real store: what the log says is in the table, once, also after being cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest_asyncio

from inferplane.controllers.usage import EXPIRED_KEYS_KEPT, USAGE_KEPT, UsageCollector
from inferplane.domain.endpoint_access import EndpointKey
from inferplane.domain.workspace import Workspace
from inferplane.store.sql import Store

NOW = datetime(2026, 1, 31, 10, 30, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(f"sqlite:///{tmp_path / 'inferplane.db'}")
    async with opened.transaction() as tx:
        await tx.add_workspace(Workspace("default", ("local",), NOW))
    yield opened
    await opened.close()


def write(log: Path, *numbers: int) -> None:
    facts = {"time": NOW.isoformat(), "endpoint": "iris.default", "uid": "u1", "status": 200}
    with log.open("a") as file:
        for number in numbers:
            file.write(json.dumps({**facts, "requestId": str(number)}) + "\n")


async def requests(store: Store) -> int:
    async with store.read() as tx:
        found = await tx.list_usage("default", since=NOW - DAY, until=NOW + DAY, bucket=DAY, limit=9)
    return sum(each.used.requests for each in found)


async def test_the_log_is_counted_once_also_by_the_next_process(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, 1, 2, 3)
    await UsageCollector(store, log, lambda: NOW).collect()
    write(log, 4)
    await UsageCollector(store, log, lambda: NOW).collect()
    await UsageCollector(store, log, lambda: NOW).collect()
    assert await requests(store) == 4


async def test_cut_off_anywhere_it_counts_each_line_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    for number in range(30):
        write(log, number)
        work = asyncio.create_task(UsageCollector(store, log, lambda: NOW).collect())
        for _ in range(number):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    await UsageCollector(store, log, lambda: NOW).collect()
    assert await requests(store) == 30


async def test_it_goes_on_by_itself_until_it_is_closed(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    collector = UsageCollector(store, log, lambda: NOW)
    collector.start()
    write(log, 1, 2)
    async with asyncio.timeout(20):
        while await requests(store) < 2:
            pass
    await collector.close()
    await collector.close()


async def test_old_hours_and_keys_are_forgotten(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, 1)
    await UsageCollector(store, log, lambda: NOW).collect()
    async with store.transaction() as tx:
        await tx.add_endpoint_key(EndpointKey("k", "default", "n", NOW, NOW + DAY))
    await UsageCollector(store, log, lambda: NOW + EXPIRED_KEYS_KEPT).prune()
    async with store.read() as tx:
        assert await tx.count_endpoint_keys("default") == 1
    await UsageCollector(store, log, lambda: NOW + USAGE_KEPT + DAY).prune()
    assert await requests(store) == 0
    async with store.read() as tx:
        assert await tx.count_endpoint_keys("default") == 0
