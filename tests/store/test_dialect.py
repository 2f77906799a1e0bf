"""URLs, and databases that do not answer: a sentence, never a driver's own error."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from inferplane.domain.errors import Invalid, StaleVersion, Unavailable
from inferplane.store.sql import Store


class PostgresServer(Protocol):
    def url(self, database: str) -> str: ...
    def sql(self, statement: str) -> None: ...


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://host/db", "databases of kind mysql are not supported"),
        ("::", "cannot be read"),
        ("", "cannot be read"),
        ("postgresql://host:port/db", "cannot be read"),
        ("postgresql://host/db?frobnicate=1", "parameter frobnicate"),
        ("postgresql://host/db?connect_timeout=soon", "connect_timeout"),
        ("postgresql://host/db?sslmode=sometimes", "sslmode"),
    ],
)
async def test_a_url_that_means_nothing_is_invalid(url: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        await Store.open(url)
    assert caught.value.field == "database_url"


async def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(Unavailable) as caught:
        await Store.open(f"postgresql://me:hunter2@127.0.0.1:{_closed_port()}/db")
    assert "hunter2" not in str(caught.value)


async def test_sqlite_refusals_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and long enough to be looked at" * 100)
    (tmp_path / "file").touch()
    for path, words in {
        tmp_path: "is a directory",
        tmp_path / "file" / "i.db": "cannot create the database",
        tmp_path / "text.db": "not a database",
    }.items():
        with pytest.raises(Unavailable, match=words):
            await Store.open(f"sqlite:///{path}")


async def test_a_postgresql_that_is_not_there_is_unavailable(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    for url in (
        f"postgresql://postgres@127.0.0.1:{_closed_port()}/x",
        f"postgresql://postgres@/x?host={tmp_path}",
        postgres_server.url("no_such_database"),
        postgres_server.url("postgres").replace("postgres@", "no_such_user@"),
    ):
        with pytest.raises(Unavailable):
            await Store.open(url)


async def test_the_short_name_and_libpq_words_are_understood(postgres_url: str) -> None:
    url = postgres_url.replace("postgresql://", "postgres://") + "&connect_timeout=5&application_name=x"
    await (await Store.open(url)).close()


async def test_a_lost_connection_is_unavailable_once_and_then_replaced(
    postgres_url: str, postgres_server: PostgresServer, make: Any
) -> None:
    store = await Store.open(postgres_url)
    name = postgres_url.split("/")[3].split("?")[0]
    kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    try:
        with pytest.raises(Unavailable):  # noqa: PT012 - the block is the transaction that fails
            async with store.transaction() as tx:
                await tx.add_workspace(make.workspace())
                await asyncio.to_thread(postgres_server.sql, kill)
                await tx.list_workspaces()
        async with store.transaction() as tx:
            assert await tx.list_workspaces() == []
            await tx.add_workspace(make.workspace())
        await asyncio.to_thread(postgres_server.sql, kill)
        async with store.read() as tx:
            assert len(await tx.list_workspaces()) == 1
    finally:
        await store.close()


async def test_a_deadlock_is_a_lost_compare_and_set(postgres_url: str, make: Any) -> None:
    """One writes a row and then an event, the other the other way round: PostgreSQL ends one of them."""
    store = await Store.open(postgres_url)
    both_began = asyncio.Barrier(2)

    async def row_then_event() -> None:
        async with store.transaction() as tx:
            await tx.update_workspace(make.workspace())
            await both_began.wait()
            await tx.append_event(make.event())

    async def event_then_row() -> None:
        async with store.transaction() as tx:
            await tx.append_event(make.event())
            await both_began.wait()
            await tx.update_workspace(make.workspace())

    try:
        async with store.transaction() as tx:
            await tx.add_workspace(make.workspace())
        ends = await asyncio.gather(row_then_event(), event_then_row(), return_exceptions=True)
    finally:
        await store.close()
    assert [type(end) for end in ends if end is not None] == [StaleVersion]


async def test_readers_cannot_write(store: Store, make: Any) -> None:
    with pytest.raises(Exception, match=r"read-?only"):
        async with store.read() as tx:
            await tx.add_workspace(make.workspace())
    async with store.read() as tx:
        assert await tx.list_workspaces() == []


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


async def test_a_database_has_one_control_plane_and_is_free_when_it_has_gone(database_url: str) -> None:
    first, second = await Store.open(database_url), await Store.open(database_url)
    try:
        async with first.claim():
            with pytest.raises(Unavailable, match="another platform already works on this database"):
                async with second.claim():
                    pytest.fail("claimed twice")
        async with second.claim():
            pass
    finally:
        await first.close()
        await second.close()


_HOLDERS = (
    "pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"
)


async def test_a_claim_survives_the_end_of_its_session(
    postgres_url: str, postgres_server: PostgresServer, until: Any
) -> None:
    """As when PostgreSQL is started anew: nobody else wanted the database meanwhile."""
    name = postgres_url.split("/")[3].split("?")[0]
    engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"))

    async def holder() -> int | None:
        async with engine.connect() as connection:
            found = await connection.execute(text(f"SELECT {_HOLDERS} AND datname = '{name}'"))
            return found.scalar_one_or_none()

    first, second = await Store.open(postgres_url), await Store.open(postgres_url)
    try:
        async with first.claim() as claim:
            before = await holder()
            assert before is not None
            await asyncio.to_thread(postgres_server.sql, f"SELECT pg_terminate_backend({before})")
            async with asyncio.timeout(30), engine.connect() as look:
                while await holder() in (None, before):
                    await look.execute(text("SELECT pg_sleep(0.05)"))
            with pytest.raises(Unavailable, match="another platform already works on this database"):
                async with second.claim():
                    pytest.fail("claimed twice")
            broken = asyncio.create_task(claim.broken())
            await asyncio.sleep(0)
            assert not broken.done()
            broken.cancel()
        async with second.claim():
            pass
    finally:
        await first.close()
        await second.close()
        await engine.dispose()


async def test_whoever_lost_its_claim_to_another_is_told(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    name = postgres_url.split("/")[3].split("?")[0]
    kill = f"SELECT pg_terminate_backend(pid) FROM (SELECT {_HOLDERS} AND datname = '{name}') AS holders"
    first, second = await Store.open(postgres_url), await Store.open(postgres_url)

    async def until_taken(claims: AsyncExitStack) -> None:
        while True:  # the first may be quicker
            claiming = asyncio.create_task(claims.enter_async_context(second.claim()))
            await asyncio.to_thread(postgres_server.sql, kill)
            with suppress(Unavailable):
                await claiming
                return

    try:
        async with first.claim() as claim, AsyncExitStack() as claims, asyncio.timeout(60):
            await until_taken(claims)
            said = await claim.broken()
        assert said.message.startswith("another platform has taken over this database")
    finally:
        await first.close()
        await second.close()


async def test_an_error_of_the_database_does_not_carry_values(store: Store) -> None:
    with pytest.raises(exc.DBAPIError) as caught:
        async with store._database.begin_write(durable=False) as connection:
            await connection.execute(text("SELECT :value FROM nowhere"), {"value": "hunter2"})
    assert "hunter2" not in str(caught.value)
