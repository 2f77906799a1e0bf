"""Several processes on one database, and what is left when they are killed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from inferplane.domain.events import Event
from inferplane.store.sql import Store

Writer = Callable[..., "subprocess.Popen[str]"]


async def test_killed_writers_leave_all_or_nothing(database_url: str, writer: Writer) -> None:
    """Four begin on an empty database together; three are killed in the midst of it, one ends well."""
    killed_after = {"a": 3, "b": 11, "c": 24}
    processes = {prefix: writer("many", prefix, "100000") for prefix in killed_after}
    survivor = writer("many", "z", "60")
    accepted: set[str] = set()
    for prefix, lines in killed_after.items():
        output = processes[prefix].stdout
        assert output is not None
        accepted |= {output.readline().strip() for _ in range(lines)}
        processes[prefix].kill()
        # What it printed before it died counts as well; a torn last line does not.
        accepted |= {line.strip() for line in output.read().splitlines(keepends=True) if line.endswith("\n")}
    out, _ = survivor.communicate(timeout=60)
    assert survivor.returncode == 0
    accepted |= set(out.split())
    assert len(accepted) >= 3 + 11 + 24 + 60

    store = await Store.open(database_url)
    try:
        async with store.read() as tx:
            stored = [endpoint.name for endpoint in await tx.list_endpoints()]
            events: list[Event] = []
            while page := await tx.list_events(after_seq=events[-1].seq if events else 0):
                events += page
            secrets = [(await tx.endpoint_secret(f"uid-{name}")).get("TOKEN") for name in stored]
        async with store.transaction() as tx:
            await tx.remove_endpoint(f"uid-{stored[0]}")  # nobody dead holds a lock
    finally:
        await store.close()
    assert accepted <= set(stored)
    assert sorted(event.endpoint for event in events) == sorted(stored)
    assert secrets == stored


async def test_a_writer_killed_inside_its_transaction_leaves_nothing(
    database_url: str, writer: Writer, make: Any
) -> None:
    store = await Store.open(database_url)
    try:
        async with store.transaction() as tx:
            await tx.add_workspace(make.workspace())
        process = writer("hang")
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        async with store.read() as tx:
            assert await tx.list_endpoints() == []
        process.kill()
        process.wait()
        async with store.transaction() as tx:
            assert await tx.list_endpoints() == []
            assert await tx.list_events() == []
            assert await tx.endpoint_secret("uid-half-way") == {}
            await tx.insert_endpoint(make.endpoint("half-way"), {})
            await tx.append_event(make.event(endpoint=make.endpoint("half-way")))
    finally:
        await store.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_writers_of_two_processes_wait_for_each_other(database_url: str, writer: Writer) -> None:
    """SQLite lets one process write at a time: the others wait and are not refused."""
    processes = [writer("many", prefix, "80") for prefix in ("a", "b", "c")]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert len(out.split()) == 80
