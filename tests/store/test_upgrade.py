"""Opening: the schema is made, kept and checked; two that open at once do not meet half-way."""

from __future__ import annotations

import asyncio
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from inferplane.domain.errors import Unavailable
from inferplane.store import dialect, schema
from inferplane.store.sql import Store
from inferplane.store.upgrade import MIGRATIONS


async def test_opening_again_finds_what_was_there(database_url: str, make: Any) -> None:
    for number in range(3):
        store = await Store.open(database_url)
        async with store.transaction() as tx:
            assert len(await tx.list_workspaces()) == number
            await tx.add_workspace(make.workspace(f"w{number}"))
        await store.close()


async def test_migrations_make_the_tables_that_the_code_uses(database_url: str, store: Store) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": _type_differs})
        return list(compare_metadata(context, schema.metadata))

    database = await dialect.connect(database_url)
    try:
        async with database.reader.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await database.close()


def test_head_is_the_newest_migration_and_revisions_sort() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert script.get_heads() == [schema.HEAD]
    assert revisions == sorted(revisions, reverse=True)
    assert all(re.fullmatch(r"\d{4}", revision) for revision in revisions)


async def test_what_the_first_version_stored_is_there_after_the_upgrade(database_url: str, make: Any) -> None:
    """Events written before anybody spoke of GPUs are about no GPU request."""
    await _migrate(database_url, "0001")
    await _execute(
        database_url,
        "INSERT INTO workspaces VALUES ('old', '[\"local\"]', '[]', '', '', 1000000)",
        "INSERT INTO events (at, kind, message, actor, workspace, endpoint, endpoint_uid, reason, data)"
        " VALUES (1000000, 'WorkspaceCreated', 'm', 'a', 'old', '', '', '', '{}')",
    )
    store = await Store.open(database_url)
    try:
        # The version before goes on writing for a while: without the new column.
        await _execute(
            database_url,
            "INSERT INTO events (at, kind, message, actor, workspace, endpoint, endpoint_uid, reason, data)"
            " VALUES (2000000, 'WorkspaceChanged', 'm', 'a', 'old', '', '', '', '{}')",
        )
        async with store.transaction() as tx:
            assert [event.gpu_request_id for event in await tx.list_events("old")] == ["", ""]
            await tx.insert_gpu_request(make.gpu_request(workspace="old"))
    finally:
        await store.close()


async def test_many_open_an_empty_database_at_once(database_url: str, make: Any) -> None:
    stores = await asyncio.gather(*(Store.open(database_url) for _ in range(5)))
    try:
        async with stores[0].transaction() as tx:
            await tx.add_workspace(make.workspace())
        async with stores[-1].read() as tx:
            assert len(await tx.list_workspaces()) == 1
    finally:
        await asyncio.gather(*(store.close() for store in stores))


def test_an_up_to_date_database_opens_without_the_migration_tool(
    database_url: str, writer: Callable[..., subprocess.Popen[str]]
) -> None:
    first, _ = writer("open").communicate(timeout=60)
    assert "alembic" in first
    again, _ = writer("open").communicate(timeout=60)
    assert again.strip() == "[]"


async def test_a_newer_database_is_refused_in_words(database_url: str) -> None:
    await (await Store.open(database_url)).close()
    await _execute(database_url, "UPDATE alembic_version SET version_num = '9000'")
    with pytest.raises(Unavailable, match=r"has schema 9000, and this version knows schemas up to \d{4}"):
        await Store.open(database_url)


async def test_a_failed_upgrade_changes_nothing(database_url: str) -> None:
    """The database belongs to something else that has a table of the same name."""
    await _execute(database_url, "CREATE TABLE events (x INTEGER)")
    with pytest.raises(Unavailable, match="could not be brought from schema none"):
        await Store.open(database_url)
    database = await dialect.connect(database_url)
    async with database.reader.connect() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["events"]
    await database.close()
    await _execute(database_url, "DROP TABLE events")
    await (await Store.open(database_url)).close()


async def test_the_file_is_its_owners_alone(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "deep" / "folder with % and ü" / "i.db"
    store = await Store.open(f"sqlite:///{path}")
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    await store.close()
    assert modes == {"i.db": 0o600, "i.db-wal": 0o600, "i.db-shm": 0o600}


async def test_a_database_without_a_name_goes_when_it_is_closed(make: Any) -> None:
    store = await Store.open("sqlite://")

    async def add(number: int) -> None:
        async with store.transaction() as tx:
            await tx.add_workspace(make.workspace(f"w{number}"))
        async with store.read() as tx:
            await tx.get_workspace(f"w{number}")

    await asyncio.gather(*(add(number) for number in range(5)))
    async with store.read() as tx:
        assert len(await tx.list_workspaces()) == 5
    await store.close()
    again = await Store.open("sqlite://")
    async with again.read() as tx:
        assert await tx.list_workspaces() == []
    await again.close()


def _type_differs(_context: object, _found: object, _wanted: object, found: Any, wanted: Any) -> bool | None:
    """None leaves the comparison to the tool, which does not see a collation chosen by database."""
    if isinstance(wanted, schema.Key) and found.collation == "C":
        return False
    return None


async def _execute(url: str, *statements: str) -> None:
    database = await dialect.connect(url)
    async with database.begin_write(durable=True) as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
    await database.close()


async def _migrate(url: str, revision: str) -> None:
    def migrate(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    database = await dialect.connect(url)
    async with database.begin_write(durable=True) as connection:
        await connection.run_sync(migrate)
    await database.close()
