"""How long reading all GPU requests keeps everybody else on the event loop waiting.

    python bench/read_requests.py [--requests 20000]

SQLite. Side by side: every row turned into a value in one go at each read; the way the store does it, for the
first read, for a second one, and for one after 1 % of the requests have changed. The longest stall is what a
task that only wants its turn every millisecond has seen. `gpr/list` is one workspace's history, newest 10,000
of all that have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from scheduler_cycle import BEGIN, WORKSPACES, a_request
from sqlalchemy import insert, select

from inferplane.domain.gpu_request import ProvisioningStatus
from inferplane.domain.workspace import Workspace
from inferplane.store import gpu_codec
from inferplane.store.schema import gpu_requests
from inferplane.store.sql import Store


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = await Store.open(f"sqlite:///{Path(folder) / 'bench.db'}")
        await fill(store, count)
        print(f"\n{count:,} GPU requests that have not ended, and as many that have\n")
        print("| read | takes | longest stall of the event loop |")
        print("|---|---|---|")
        await measured("all in one go", lambda: in_one_go(store))
        await measured("the store, first", lambda: live(store))
        await measured("the store, again", lambda: live(store))
        await change(store, count // 100)
        await measured("the store, after 1 % changed", lambda: live(store))
        await measured("history, all rows, then cut", lambda: history(store, None))
        await measured("history, newest 10,000", lambda: history(store, 10_000))
        gc.collect()
        began = time.perf_counter()
        gc.collect()
        whole = time.perf_counter() - began
        gc.freeze()
        began = time.perf_counter()
        gc.collect()
        print(
            f"\ngarbage collection: {whole * 1e3:.0f} ms; frozen: {(time.perf_counter() - began) * 1e3:.1f} ms"
        )
        await store.close()


async def fill(store: Store, count: int) -> None:
    chance = Random(1)
    async with store.transaction() as tx:
        for name in WORKSPACES:
            await tx.add_workspace(Workspace(name, ("worker-1",), BEGIN))
        live = [a_request(number, chance, BEGIN) for number in range(count)]
        over = [
            replace(each, id=f"{each.id}-over", status=ProvisioningStatus.COMPLETE, completed_at=BEGIN)
            for each in live
        ]
        rows = [gpu_codec.gpu_request_to_row(each) for each in (*live, *over)]
        for begin in range(0, len(rows), 1000):
            await tx._many(insert(gpu_requests), rows[begin : begin + 1000])


async def change(store: Store, count: int) -> None:
    async with store.transaction() as tx:
        for each in await tx.list_gpu_requests(live_only=True, limit=count):
            await tx.save_gpu_request(replace(each, priority=77))


async def in_one_go(store: Store) -> None:
    async with store.read() as tx:
        rows = await tx._all(select(gpu_requests).where(gpu_requests.c.live == 1))
    [gpu_codec.gpu_request_from_row(row._mapping) for row in rows]


async def live(store: Store) -> None:
    async with store.read() as tx:
        await tx.list_gpu_requests(live_only=True)


async def history(store: Store, newest: int | None) -> None:
    async with store.read() as tx:
        await tx.list_gpu_requests(newest=newest)


async def measured(what: str, work: Callable[[], Awaitable[None]]) -> None:
    gc.collect()
    stalls = [0.0]

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - before - 0.001)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await work()
    took = time.perf_counter() - began
    await asyncio.sleep(0.01)
    watching.cancel()
    print(f"| {what} | {took:.2f} s | {max(stalls) * 1e3:.0f} ms |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    asyncio.run(main(parser.parse_args().requests))
