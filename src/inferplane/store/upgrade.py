"""Bring a database's schema up to date while opening it.

The common case, nothing to do, costs one look at the version table and does not import the migration
tool. Otherwise the steps run in one transaction that excludes other upgraders; of two processes that
start at once, the second waits, looks again and finds nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, exc, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.domain.errors import Unavailable
from inferplane.store.dialect import Database, translated
from inferplane.store.schema import HEAD

MIGRATIONS = Path(__file__).with_name("migrations")
VERSION_TABLE = "alembic_version"


async def upgrade(database: Database) -> None:
    """Run what migrations are missing. Raises Unavailable, also for a database that is newer than we are."""
    with translated():
        async with database.reader.connect() as connection:
            if await _version(connection) == HEAD:
                return
        async with database.begin_write(durable=True) as connection:
            await database.exclude_upgraders(connection)
            version = await _version(connection)
            if version == HEAD:
                return
            if version > HEAD:
                raise Unavailable(
                    f"the database has schema {version}, and this version knows schemas up to {HEAD}",
                    reason="NewerSchema",
                    next_action="Use the newer version of Inferplane that wrote it, or restore an older backup.",
                )
            try:
                await connection.run_sync(_migrate)
            except exc.DBAPIError as error:
                raise Unavailable(
                    f"the database could not be brought from schema {version or 'none'} to {HEAD}: {error.orig}",
                    reason="UpgradeFailed",
                    next_action="Nothing was changed. Use an empty database, or report this with the message.",
                ) from error


async def _version(connection: AsyncConnection) -> str:
    """The database's revision, "" for an empty one. Revisions are numbers of four digits, so they sort."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(VERSION_TABLE)):
        return ""
    return str((await connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))).scalar() or "")  # noqa: S608


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
