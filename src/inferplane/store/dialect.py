"""Everything that differs between SQLite and PostgreSQL, and the translation of their errors.

SQLite: write-ahead log, one writer connection (the database knows only one writer anyway, and a lock
of our own queues fairly where its busy wait does not) beside a few readers that each see one snapshot.
A write begins with BEGIN IMMEDIATE, so it never fails half-way because another process wrote first.
Durability is `synchronous=FULL`: a commit returns when it is on the disk. NORMAL would survive the
death of our process just as well, but a power cut could take back the last commits, and with them an
endpoint whose creation somebody was told of. Facts that are observed again anyway (status) may be
written with `durable=False`, which skips that wait; a later durable commit takes them to the disk too,
so what a power cut loses is always only the newest end.

PostgreSQL: READ COMMITTED, decided by compare-and-set and unique constraints. Writers of events take one
advisory lock until they commit: sequence numbers then become visible in their order, and whoever
follows the events by number misses none. It is taken when the first event is appended, so a transaction
writes its rows first; should two meet the wrong way round, PostgreSQL ends one and the caller sees
StaleVersion.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Select, Table, event, exc, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from inferplane.domain.errors import (
    AlreadyExists,
    Conflict,
    InferplaneError,
    Invalid,
    StaleVersion,
    Unavailable,
)
from inferplane.observability import get_logger

SQLITE_READERS_MAX = 4
SQLITE_LOCK_WAIT_SECONDS = 15.0
SQLITE_VERSION_MIN = (3, 35, 0)  # RETURNING
SQLITE_CACHE_KIB = 16 * 1024

POSTGRES_POOL_SIZE = 5
POSTGRES_POOL_EXTRA = 5
POSTGRES_CONNECT_TIMEOUT_SECONDS = 10.0
POSTGRES_COMMAND_TIMEOUT_SECONDS = 60.0
POSTGRES_LOCK_TIMEOUT_MS = 15_000
POSTGRES_IDLE_IN_TRANSACTION_MS = 30_000  # a stopped process must not hold the others up for longer
POSTGRES_NOTICE_BYTES_MAX = 7000  # PostgreSQL takes a little less than 8000
POSTGRES_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
POOL_WAIT_SECONDS = 30.0
CLAIM_SECONDS = 3.0
CLAIM_POLL_SECONDS = 0.05
CLAIM_WATCH_SECONDS = 1.0
LISTEN_AGAIN_SECONDS = 1.0
CLAIM_ANSWER_SECONDS = 10.0  # a session that is silent for longer is given up

# Names of advisory locks: arbitrary, but the same in every process that shares a database.
_LOCK_UPGRADE = 0x1F_E2_0001
_LOCK_EVENTS = 0x1F_E2_0002
_LOCK_CONTROL_PLANE = 0x1F_E2_0003  # shared by all; versions before leases take it alone
_LOCK_OWN_CLUSTERS = 0x1F_E2_0004  # of the one that keeps clusters on its own machine
_LOCK_COUNTS = 0x1F_E2_0005

_CHANNEL = "inferplane"
_SQLITE_NOW = "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000"
_POSTGRES_NOW = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"

_log = get_logger("store")

_RETRYABLE = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_UNIQUE, _FOREIGN_KEY = "23505", "23503"


class Hint(StrEnum):
    """What a process that shares a PostgreSQL tells the others it has committed."""

    CHANGES = "changes"  # something with an event
    LEASES = "leases"  # it gave some back


Hear = Callable[[Hint, str], None]
"""Told of what another process has committed, and what it is about ("" where that is not said)."""


class Claim:
    """That this is the only control plane on a database; see `Database.claim`."""

    def __init__(self) -> None:
        self._broken: asyncio.Future[Unavailable] = asyncio.get_running_loop().create_future()

    async def broken(self) -> Unavailable:
        """Wait until another control plane has the database, if that ever happens; returns what to say then.

        Whoever claimed it has to stop.
        """
        return await asyncio.shield(self._broken)

    def give_up(self, error: Unavailable) -> None:
        """It belongs to another one now."""
        if not self._broken.done():
            self._broken.set_result(error)


@dataclass(frozen=True, slots=True)
class Database:
    """An opened database: where to read, where to write, and how many may write at once.

    `one_writer` is None where the database itself lets writers in side by side. `throwaway` is a folder
    that goes with the database. `token` tells our own notifications from those of others.
    """

    name: str
    writer: AsyncEngine
    reader: AsyncEngine
    one_writer: asyncio.Lock | None = None
    throwaway: Path | None = None
    token: str = field(default_factory=partial(secrets.token_hex, 8))

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite; asked in this module only."""
        return self.name == "sqlite"

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def exclude_upgraders(self, connection: AsyncConnection) -> None:
        """Within a write transaction: let no other process change the schema until it ends."""
        if not self.is_sqlite:  # on SQLite, BEGIN IMMEDIATE has done so
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_UPGRADE})")

    async def order_events(self, connection: AsyncConnection) -> None:
        """Within a write transaction: events appended from here on become visible in their order."""
        if not self.is_sqlite:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_EVENTS})")

    def holding(self, statement: Select[Any]) -> Select[Any]:
        """The statement, such that its rows are ours until the write transaction ends.

        Rows that refer to them can still be inserted by others: `FOR NO KEY UPDATE` is as much as is needed
        to come one after the other.
        """
        # On SQLite there is only one writer at a time anyway.
        return statement if self.is_sqlite else statement.with_for_update(key_share=True)

    def taking(self, statement: Select[Any]) -> Select[Any]:
        """The statement, such that its rows are nobody else's until the write transaction ends.

        Rows that somebody else has locked are passed by.
        """
        return statement if self.is_sqlite else statement.with_for_update(skip_locked=True)

    def sharing(self, statement: Select[Any]) -> Select[Any]:
        """The statement, such that nobody is `taking` its rows until the write transaction ends."""
        return statement if self.is_sqlite else statement.with_for_update(read=True, key_share=True)

    async def now_micros(self, connection: AsyncConnection) -> int:
        """The database's time, in microseconds since 1970: one clock for all who use it."""
        found = await connection.exec_driver_sql(_SQLITE_NOW if self.is_sqlite else _POSTGRES_NOW)
        return int(found.scalar_one())

    async def notify(self, connection: AsyncConnection, hint: Hint, about: str = "") -> None:
        """Within a write transaction: once it is committed, tell the other processes that `listen`.

        What it is about is left out where it is too long to be told.
        """
        if not self.is_sqlite:
            fits = len(about.encode()) <= POSTGRES_NOTICE_BYTES_MAX
            said = f"{hint} {self.token} {about if fits else ''}"
            await connection.execute(
                text("SELECT pg_notify(:channel, :said)"), {"channel": _CHANNEL, "said": said}
            )

    async def count_alone(self, connection: AsyncConnection) -> None:
        """Within a write transaction: what is counted from here on stays true until it ends.

        For what belongs to nobody in particular; others who do the same wait.
        """
        if not self.is_sqlite:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_COUNTS})")

    def write_turn(self) -> AbstractAsyncContextManager[object]:
        """Wait for one's turn to write, within this process."""
        return nullcontext() if self.one_writer is None else self.one_writer

    @asynccontextmanager
    async def begin_write(self, *, durable: bool) -> AsyncIterator[AsyncConnection]:
        """A connection within a write transaction, committed at the end."""
        async with self.writer.connect() as connection:
            if self.is_sqlite and not durable:
                await connection.execution_options(relaxed=True)  # see `_on_begin`
            async with connection.begin():
                if not self.is_sqlite and not durable:
                    await connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield connection

    @asynccontextmanager
    async def claim(self, *, shared: bool = False) -> AsyncIterator[Claim]:
        """Be the only control plane on this database until the block ends, however this process ends.

        With `shared` be one of several, on PostgreSQL; beside those there may be one that is not shared.
        Raises Unavailable when another process is. A killed one counts until the system has noticed,
        so the question is asked for a moment.
        """
        claiming = _claim_file(self) if self.is_sqlite else _claim_session(self.writer, shared)
        async with claiming as claim:
            yield claim

    async def listen(self, hear: Hear) -> None:
        """Call `hear` whenever another process has notified, until cancelled; on SQLite nobody can.

        What is said while there is no connection is not heard: this is a hint, nothing to rely on.
        """
        if self.is_sqlite:
            return
        while True:
            try:
                await _hear_session(self.writer, self.token, hear)
            except Exception as error:  # noqa: BLE001 - whatever ended it: looking now and then goes on without it
                _log.debug("hints of other processes are not heard", error=str(error))
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    async def close(self) -> None:
        """Close every connection."""
        await self.writer.dispose()
        if self.reader is not self.writer:
            await self.reader.dispose()
        if self.throwaway is not None:
            shutil.rmtree(self.throwaway, ignore_errors=True)


async def connect(url: str) -> Database:
    """Prepare a database. Raises Invalid for a URL we cannot mean, Unavailable when SQLite refuses."""
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise Invalid(
            "the database URL cannot be read", field="database_url", next_action=_URL_HELP
        ) from error
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite":
        return await _connect_sqlite(parsed)
    if kind in {"postgres", "postgresql"}:
        return _connect_postgres(parsed)
    raise Invalid(f"databases of kind {kind} are not supported", field="database_url", next_action=_URL_HELP)


_URL_HELP = "Use sqlite:///path/to/file or postgresql://user:password@host:port/database."


# SQLite


async def _connect_sqlite(url: URL) -> Database:
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        wanted = ".".join(map(str, SQLITE_VERSION_MIN))
        raise Unavailable(
            f"this Python has SQLite {sqlite3.sqlite_version}; at least {wanted} is needed",
            next_action="Use a newer Python, or PostgreSQL.",
        )
    throwaway = None
    if not url.database or url.database == ":memory:":
        # A file that goes, rather than memory: tests then run what users run.
        throwaway = Path(tempfile.mkdtemp(prefix="inferplane-store-"))
        url = url.set(database=str(throwaway / "inferplane.db"))
    url = url.set(drivername="sqlite+aiosqlite")
    # Without an isolation level the driver leaves BEGIN to us.
    arguments: dict[str, Any] = {"timeout": SQLITE_LOCK_WAIT_SECONDS, "isolation_level": None}
    _create_private_file(Path(str(url.database)))
    writer = create_async_engine(
        url,
        connect_args=arguments,
        pool_size=1,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        hide_parameters=True,  # values may be secrets; an error must not carry them into a log
    )
    _on_connect(writer, _sqlite_pragmas(query_only=False))
    _on_begin(writer, "BEGIN IMMEDIATE")
    reader = create_async_engine(
        url,
        connect_args=arguments,
        pool_size=SQLITE_READERS_MAX,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        hide_parameters=True,
    )
    _on_connect(reader, _sqlite_pragmas(query_only=True))
    _on_begin(reader, "BEGIN")
    database = Database("sqlite", writer, reader, asyncio.Lock(), throwaway)
    try:
        await _use_write_ahead_log(writer)
    except BaseException:
        await database.close()
        raise
    return database


def _create_private_file(path: Path) -> None:
    """Make the database file readable by its owner only; SQLite gives -wal and -shm the same mode.

    An existing file is left alone: opening and closing it here would drop the locks that another
    connection of this process holds on it (POSIX locks belong to the process, not to the handle).
    """
    if path.is_dir():
        raise Unavailable(f"the database {path} is a directory")
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process was quicker
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise Unavailable(f"cannot create the database {path}: {error.strerror}") from error


async def _use_write_ahead_log(engine: AsyncEngine) -> None:
    """Switch to WAL. The switch ignores the busy wait, so two first starts at once need this loop."""
    deadline = asyncio.get_running_loop().time() + SQLITE_LOCK_WAIT_SECONDS
    while True:
        try:
            with translated():
                async with engine.connect() as connection:
                    raw = (await connection.get_raw_connection()).driver_connection
                    assert raw is not None
                    # Past SQLAlchemy, which would begin a transaction first.
                    cursor = await raw.execute("PRAGMA journal_mode=WAL")
                    await cursor.close()
        except Unavailable as error:
            if not _is_busy(error) or asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return


def _is_busy(error: Unavailable) -> bool:
    cause = error.__cause__
    code = _sqlite_code(cause.orig if isinstance(cause, exc.DBAPIError) else cause)
    return code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}  # extended codes keep these 8 bits


def _sqlite_pragmas(*, query_only: bool) -> tuple[str, ...]:
    pragmas = (
        "PRAGMA foreign_keys=ON",
        "PRAGMA synchronous=FULL",
        f"PRAGMA cache_size=-{SQLITE_CACHE_KIB}",
        "PRAGMA temp_store=MEMORY",
    )
    return (*pragmas, "PRAGMA query_only=ON") if query_only else pragmas


def _on_connect(engine: AsyncEngine, statements: tuple[str, ...]) -> None:
    def prepare(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        try:
            for statement in statements:
                cursor.execute(statement)
        finally:
            cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)


def _on_begin(engine: AsyncEngine, statement: str) -> None:
    def begin(connection: Connection) -> None:
        # This setting can only be changed between transactions, and stays with the connection.
        wanted = "NORMAL" if connection.get_execution_options().get("relaxed") else "FULL"
        if connection.info.get("synchronous", "FULL") != wanted:
            connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
            connection.info["synchronous"] = wanted
        connection.exec_driver_sql(statement)

    event.listen(engine.sync_engine, "begin", begin)


# PostgreSQL


def _connect_postgres(url: URL) -> Database:
    url, arguments = _postgres_arguments(url)
    try:
        engine = create_async_engine(
            url,
            connect_args=arguments,
            pool_size=POSTGRES_POOL_SIZE,
            max_overflow=POSTGRES_POOL_EXTRA,
            pool_timeout=POOL_WAIT_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except (exc.ArgumentError, ValueError) as error:
        raise Invalid(
            "the database URL cannot be read", field="database_url", next_action=_URL_HELP
        ) from error
    # Driver and pool are shared; only what BEGIN says differs.
    return Database("postgresql", engine, engine.execution_options(postgresql_readonly=True))


def _postgres_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """The URL for the driver, and its arguments: libpq's words in the query become asyncpg's."""
    settings = {
        "application_name": "inferplane",
        "jit": "off",
        "lock_timeout": str(POSTGRES_LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(POSTGRES_IDLE_IN_TRANSACTION_MS),
    }
    arguments: dict[str, Any] = {
        "timeout": POSTGRES_CONNECT_TIMEOUT_SECONDS,
        "command_timeout": POSTGRES_COMMAND_TIMEOUT_SECONDS,
        "server_settings": settings,
    }
    kept: dict[str, str | tuple[str, ...]] = {}
    for key, value in url.query.items():
        text = value if isinstance(value, str) else value[-1]
        match key:
            case "host" | "port":
                kept[key] = value
            case "sslmode":
                arguments["ssl"] = _ssl_mode(text)
            case "application_name" | "search_path":
                settings[key] = text
            case "connect_timeout":
                arguments["timeout"] = _seconds(key, text)
            case _:
                raise Invalid(
                    f"the database URL has the parameter {key}, which is not supported",
                    field="database_url",
                    next_action="Known parameters: host, port, sslmode, application_name, search_path, connect_timeout.",
                )
    return url.set(drivername="postgresql+asyncpg", query=kept), arguments


def _ssl_mode(text: str) -> str:
    if text not in POSTGRES_SSL_MODES:
        raise Invalid(
            f"sslmode in the database URL must be one of {', '.join(POSTGRES_SSL_MODES)}",
            field="database_url",
        )
    return text


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Invalid(
            f"{name} in the database URL must be a number of seconds", field="database_url"
        ) from error


# Claims


@asynccontextmanager
async def _claim_file(database: Database) -> AsyncIterator[Claim]:
    """A lock file beside the database; the kernel gives it back."""
    path = Path(f"{database.writer.url.database}.claim")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for last in _tries():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if last:
                    raise _in_use() from error
                await asyncio.sleep(CLAIM_POLL_SECONDS)
            else:
                break
        yield Claim()
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _claim_session(engine: AsyncEngine, shared: bool) -> AsyncIterator[Claim]:
    """Advisory locks of a session that does nothing else; PostgreSQL gives them back with the session.

    Versions before leases took the first lock for themselves alone: sharing it keeps them apart from us.
    """
    first = f"pg_try_advisory_lock_shared({_LOCK_CONTROL_PLANE})"
    alone = f"CASE WHEN {first} THEN pg_try_advisory_lock({_LOCK_OWN_CLUSTERS}) ELSE false END"
    claim, session = Claim(), _LockSession(engine, first if shared else alone)
    try:
        await session.take()
        watching = asyncio.create_task(_keep(session, claim), name="store: the claim")
        try:
            yield claim
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    finally:
        await session.drop()


class _LockSession:
    """The session that holds the locks that the condition `lock` takes, if there is one."""

    def __init__(self, engine: AsyncEngine, lock: str) -> None:
        self._engine = engine
        self._lock = lock
        self._connection: AsyncConnection | None = None

    async def take(self) -> None:
        """Take the lock. Raises Unavailable, of reason DatabaseInUse where another session has it."""
        with translated():
            self._connection = await self._engine.connect()
            session = await self._connection.execution_options(isolation_level="AUTOCOMMIT")
            for last in _tries():
                taken = await session.exec_driver_sql(f"SELECT {self._lock}")  # ours, no user's text
                if taken.scalar_one():
                    return
                if last:
                    raise _in_use()
                await asyncio.sleep(CLAIM_POLL_SECONDS)

    async def check(self) -> None:
        """Raises Unavailable when the session is not there any more."""
        if self._connection is None:
            raise Unavailable("there is no session")
        with translated():
            async with asyncio.timeout(CLAIM_ANSWER_SECONDS):
                await self._connection.exec_driver_sql("SELECT 1")

    async def drop(self) -> None:
        """End the session: it must not go back into the pool with the lock."""
        if (connection := self._connection) is None:
            return
        self._connection = None
        with suppress(exc.DBAPIError, OSError):  # it is gone already
            await connection.invalidate()
        with suppress(exc.DBAPIError, OSError):
            await connection.close()


async def _keep(session: _LockSession, claim: Claim) -> None:
    """Take the lock again when its session ends, as it does when PostgreSQL is started anew.

    As long as PostgreSQL does not answer nobody else can take it either. Somebody who was quicker keeps it.
    """
    while True:
        await asyncio.sleep(CLAIM_WATCH_SECONDS)
        try:
            await session.check()
            continue
        except Exception as error:  # noqa: BLE001 - whatever it was, this session is not known to hold the lock
            _log.warning("the session that claims the database was lost", error=str(error))
        await session.drop()
        try:
            await session.take()
        except Unavailable as error:
            await session.drop()
            if error.reason == _IN_USE:
                claim.give_up(_taken_over())
                return
        except Exception:  # noqa: BLE001 - a watch that ends silently would leave two at work
            await session.drop()
            _log.exception("the database cannot be claimed again")
        else:
            _log.info("the database is claimed again")


async def _hear_session(engine: AsyncEngine, own: str, hear: Hear) -> None:
    """Listen on a connection of its own for as long as it lasts, to all but what is our `own`."""

    def heard(_connection: object, _pid: int, _channel: str, said: str) -> None:
        word, token, about = (*said.split(" ", 2), "", "", "")[:3]
        if token != own and word in tuple(Hint):  # others may know more words
            hear(Hint(word), about)

    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        over = asyncio.Event()
        raw.add_termination_listener(lambda _: over.set())
        await raw.add_listener(_CHANNEL, heard)
        try:
            await over.wait()
        finally:
            await connection.invalidate()  # it must not go back into the pool with a listener


def _tries() -> Iterator[bool]:
    """Once for each try; True with the last."""
    count = int(CLAIM_SECONDS / CLAIM_POLL_SECONDS)
    yield from (number == count for number in range(count + 1))


_IN_USE = "DatabaseInUse"


def _taken_over() -> Unavailable:
    return Unavailable(
        "another platform has taken over this database, after PostgreSQL ended the session that kept it for this one",
        reason=_IN_USE,
        field="database_url",
        next_action="Let one platform work on a database. Stop the other one before this one is started again.",
    )


def _in_use() -> Unavailable:
    return Unavailable(
        "another platform already works on this database",
        reason=_IN_USE,
        field="database_url",
        next_action="Stop it first, or name another database with --database-url or INFERPLANE_DATABASE_URL. Several"
        " can share a database of PostgreSQL if they keep no cluster on their own machines (--no-local).",
    )


# Errors


@contextmanager
def translated() -> Iterator[None]:
    """Turn the libraries' errors into the domain's, once, with the cause kept."""
    try:
        yield
    except exc.DBAPIError as error:
        known = _meaning(error)
        if known is None:
            raise
        raise known from error
    except sqlite3.Error as error:
        raise Unavailable(f"the database failed: {error}", next_action=_TRY_AGAIN) from error
    except exc.TimeoutError as error:
        raise Unavailable("every connection to the database is in use", next_action=_TRY_AGAIN) from error
    except OSError as error:
        # asyncpg lets refused connections, timeouts and DNS failures through as they are.
        raise Unavailable(f"the database does not answer: {error}", next_action=_TRY_AGAIN) from error


_TRY_AGAIN = "Try again in a moment; if it stays so, check the database."


def _meaning(error: exc.DBAPIError) -> InferplaneError | None:
    """The domain's word for a driver's error, or None for a mistake of ours."""
    cause = error.orig
    state = str(getattr(cause, "sqlstate", None) or _SQLITE_STATES.get(_sqlite_code(cause), ""))
    if state == _UNIQUE:
        return AlreadyExists("this exists already")
    if state == _FOREIGN_KEY:
        return Conflict("this refers to something that does not exist, or is still referred to")
    if state in _RETRYABLE:
        return StaleVersion("another transaction was in the way; read again")
    if isinstance(error, exc.ProgrammingError | exc.DataError | exc.IntegrityError):
        return None
    return Unavailable(f"the database failed: {_first_line(cause)}", next_action=_TRY_AGAIN)


def _sqlite_code(cause: BaseException | None) -> int:
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None and cause is not None:
        code = getattr(cause.__cause__, "sqlite_errorcode", None)
    return code if isinstance(code, int) else 0


_SQLITE_STATES = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: _UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: _UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: _FOREIGN_KEY,
}


def _first_line(cause: BaseException | None) -> str:
    return (str(cause).splitlines() or [type(cause).__name__])[0]
