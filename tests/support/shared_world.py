"""A world that several control planes act upon, in one SQLite file: what a cluster is to them.

It remembers replicas and models, refuses who acts in an epoch that is over, and keeps a log of every act that
is only ever added to: by whom, in which epoch, and whether anything came of it. Run as a program it is a
control plane whose clusters are all such a world: `shared_world.py WORLD_FILE`, configured by the environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import Replica, ReplicaId, ReplicaState
from inferplane.domain.preflight import Check
from inferplane.engines.port import (
    Action,
    DropModel,
    EngineError,
    FetchModel,
    LogLine,
    Observation,
    Release,
    StartReplica,
    StopReplica,
    Target,
)

READY_AFTER = timedelta(seconds=0.2)
GONE_AFTER = timedelta(seconds=0.2)
LOOK_SECONDS = 0.1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replicas (
    cluster TEXT, uid TEXT, revision INT, number INT, started REAL, stopped REAL,
    PRIMARY KEY (cluster, uid, revision, number));
CREATE TABLE IF NOT EXISTS models (
    cluster TEXT, uid TEXT, revision INT, PRIMARY KEY (cluster, uid, revision));
CREATE TABLE IF NOT EXISTS epochs (cluster TEXT PRIMARY KEY, epoch INT);
CREATE TABLE IF NOT EXISTS acts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, cluster TEXT, epoch INT, holder TEXT, uid TEXT, act TEXT,
    came_of_it TEXT);
"""


@dataclass(frozen=True, slots=True)
class Act:
    """One line of the log. `came_of_it` is done, again (it was so already) or refused."""

    seq: int
    at: float
    cluster: str
    epoch: int
    holder: str
    uid: str
    act: str
    came_of_it: str


class World:
    """The file. Opened for each look, as it is shared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            database.executescript(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous=OFF")
            yield database

    def acts(self) -> list[Act]:
        """The whole log, in order."""
        with self._open() as database:
            return [Act(*row) for row in database.execute("SELECT * FROM acts ORDER BY seq")]

    def running(self) -> dict[str, int]:
        """How many replicas run, by endpoint uid."""
        with self._open() as database:
            rows = database.execute("SELECT uid, count(*) FROM replicas WHERE stopped IS NULL GROUP BY uid")
            return dict(rows.fetchall())

    def known(self, cluster: str) -> set[str]:
        """Every endpoint of which something is there."""
        with self._open() as database:
            return {
                uid
                for table in ("replicas", "models")
                for (uid,) in database.execute(f"SELECT uid FROM {table} WHERE cluster = ?", (cluster,))
            }

    def look(self, cluster: str, uid: str) -> tuple[list[tuple[int, int, float, float | None]], list[int]]:
        """Replicas (revision, number, started, stopped) and models (revision) of an endpoint."""
        with self._open() as database:
            replicas = database.execute(
                "SELECT revision, number, started, stopped FROM replicas WHERE cluster = ? AND uid = ?"
                " ORDER BY revision, number",
                (cluster, uid),
            ).fetchall()
            models = database.execute(
                "SELECT revision FROM models WHERE cluster = ? AND uid = ?", (cluster, uid)
            )
            return replicas, [revision for (revision,) in models]

    def act(self, cluster: str, epoch: int, holder: str, uid: str, action: Action, now: datetime) -> None:
        """Do it and write it down, or write down that it was refused. Raises EngineError."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("SELECT epoch FROM epochs WHERE cluster = ?", (cluster,)).fetchone()
            refused = epoch == 0 or (row is not None and row[0] > epoch)
            came = "refused" if refused else _do(database, cluster, uid, action, now.timestamp())
            database.execute(
                "INSERT INTO acts (at, cluster, epoch, holder, uid, act, came_of_it) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (now.timestamp(), cluster, epoch, holder, uid, repr(action), came),
            )
            if not refused:
                database.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (cluster, epoch))
            database.execute("COMMIT")
        if refused:
            raise EngineError("another control plane acts here now")


def _do(database: sqlite3.Connection, cluster: str, uid: str, action: Action, now: float) -> str:
    where = "cluster = ? AND uid = ?"
    match action:
        case FetchModel(revision):
            added = database.execute(
                "INSERT OR IGNORE INTO models VALUES (?, ?, ?)", (cluster, uid, revision)
            )
            return "done" if added.rowcount else "again"
        case DropModel(revision):
            database.execute(f"DELETE FROM models WHERE {where} AND revision = ?", (cluster, uid, revision))
        case StartReplica(replica):
            key = (cluster, uid, replica.revision, replica.index)
            there = f"{where} AND revision = ? AND number = ?"
            database.execute(
                f"DELETE FROM replicas WHERE {there} AND stopped < ?",
                (*key, now - GONE_AFTER.total_seconds()),
            )
            added = database.execute(
                "INSERT OR IGNORE INTO replicas VALUES (?, ?, ?, ?, ?, NULL)", (*key, now)
            )
            return "done" if added.rowcount else "again"
        case StopReplica(replica, _):
            changed = database.execute(
                f"UPDATE replicas SET stopped = ? WHERE {where} AND revision = ? AND number = ? AND stopped IS NULL",
                (now, cluster, uid, replica.revision, replica.index),
            )
            return "done" if changed.rowcount else "again"
        case Release():
            database.execute(f"DELETE FROM replicas WHERE {where}", (cluster, uid))
            database.execute(f"DELETE FROM models WHERE {where}", (cluster, uid))
    return "done"


class SharedEngine:
    """Implements `engines.port.Engine` on such a world. Looks regularly for what time brings about."""

    def __init__(self, world: World, cluster: str, holder: str, epoch: Callable[[], int]) -> None:
        self._world = world
        self._cluster = cluster
        self._holder = holder
        self._epoch = epoch
        self._task: asyncio.Task[None] | None = None
        self._moving: set[str] = set()

    async def start(self, wake: Callable[[str], None]) -> None:
        self._task = asyncio.create_task(self._announce(wake))

    async def close(self, *, stop_servers: bool) -> None:
        """The world goes on without a control plane."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _announce(self, wake: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for uid in sorted(self._moving):
                wake(uid)

    async def observe(self, uid: str) -> Observation:
        now = datetime.now(UTC)
        replicas, models = self._world.look(self._cluster, uid)
        seen = [
            Replica(
                ReplicaId(uid, revision, number),
                _state(datetime.fromtimestamp(started, UTC), stopped, now),
                address=f"127.0.0.1:{1000 + number}",
                started_at=datetime.fromtimestamp(started, UTC),
                ready_at=datetime.fromtimestamp(started, UTC) + READY_AFTER,
            )
            for revision, number, started, stopped in replicas
            if stopped is None or now.timestamp() - stopped < GONE_AFTER.total_seconds()
        ]
        if any(each.state is not ReplicaState.READY for each in seen):
            self._moving.add(uid)
        else:
            self._moving.discard(uid)
        artifacts = {
            each: ArtifactState(ArtifactPhase.PRESENT, uri="file:///m", path="/m") for each in models
        }
        return Observation(artifacts, tuple(seen), left=("model files",) if models else ())

    async def apply(self, target: Target, action: Action) -> None:
        uid = target.endpoint.uid
        now = datetime.now(UTC)
        self._world.act(self._cluster, self._epoch(), self._holder, uid, action, now)
        self._moving.add(uid)

    async def owned(self) -> frozenset[str]:
        return frozenset(self._world.known(self._cluster))

    async def release_orphan(self, uid: str) -> None:
        now = datetime.now(UTC)
        self._world.act(self._cluster, self._epoch(), self._holder, uid, Release(), now)

    async def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        for line in ("there are no logs here",):
            yield LogLine("r1-0", line)

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        return (Check("storage", True, None, "the model is there"),)


def _state(started: datetime, stopped: float | None, now: datetime) -> ReplicaState:
    if stopped is not None:
        return ReplicaState.STOPPING
    return ReplicaState.READY if now - started >= READY_AFTER else ReplicaState.LOADING


async def _main(world: World) -> None:
    from inferplane.bootstrap import run_platform
    from inferplane.observability import configure_logging
    from inferplane.settings import load_settings

    settings = load_settings({}, os.environ, user_home=Path("/nonexistent")).settings
    configure_logging(settings.log_level)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    holder = settings.home.name
    async with run_platform(
        settings, engine_for=lambda cluster, epoch: SharedEngine(world, cluster.name, holder, epoch)
    ) as running:
        print(running.ready_line, flush=True)
        await stop.wait()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as _runner:
        _runner.run(_main(World(Path(sys.argv[1]))))
