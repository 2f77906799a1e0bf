"""A client of the fork server: a warm parent that has imported the libraries and forks model servers.

Starting a new interpreter costs a second or more, nearly all of it imports. The fork server
(`inferplane.modelserver.forkserver`) pays that once. It is one process per home, in its own session,
holding a lock just as servers do. After a `kill -9` of the control plane it lives on and reaps its
children, so their exit codes are not lost; the next control plane finds it by its lock and socket.
If it dies, its children live on, a new one is started, and exit codes of the older children are
unknown from then on.

Whatever goes wrong with it, a server still starts, in a new interpreter. The one thing to get right
is never to have both: before falling back after a request that was not answered, the fork server is
ended, and the kernel is asked whether a child holds the replica's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferplane.engines.local.launch import LaunchRequest, needs_new_interpreter
from inferplane.engines.local.launchers import Launcher
from inferplane.engines.local.limits import Limits
from inferplane.engines.local.logfile import rotate
from inferplane.engines.local.process import (
    ProcessGone,
    ProcessWatch,
    kill_holders,
    limit,
    spawn,
    start_ticks,
)
from inferplane.engines.local.records import ProcessRecord
from inferplane.engines.port import EngineError
from inferplane.locks import acquire_lock, is_locked, lock_holders
from inferplane.observability import get_logger

log = get_logger("engine")

# -P: as for servers, nothing is imported from the working directory.
FORK_SERVER_PROGRAM = (sys.executable, "-P", "-m", "inferplane.modelserver.forkserver")
CONTROL_SOCKET_NAME = "fork.sock"

_ANSWER_BYTES_MAX = 1024**2
_POLL_SECONDS = 0.02
_RETRY_FIRST_SECONDS = 1.0
_RETRY_MAX_SECONDS = 300.0


class ForkLauncher:
    """Starts servers by asking the fork server; where that cannot be done, by `otherwise`.

    `directory` holds the fork server's lock and log. `formats` are the model formats whose
    libraries it imports beforehand. One of another `version` than this ("": any will do) is
    replaced, so that an upgraded platform does not go on serving old code. Several fork servers in one
    folder of sockets need control sockets of different names.
    """

    def __init__(
        self,
        *,
        directory: Path,
        sockets: Path,
        environment: Mapping[str, str],
        formats: tuple[str, ...],
        otherwise: Launcher,
        limits: Limits,
        version: str = "",
        program: tuple[str, ...] = FORK_SERVER_PROGRAM,
        control_name: str = CONTROL_SOCKET_NAME,
    ) -> None:
        self._directory = directory
        self._control = sockets / control_name
        self._environment = environment
        self._formats = formats
        self._otherwise = otherwise
        self._limits = limits
        self._version = version
        self._program = program
        self._one_at_a_time = asyncio.Lock()
        self._ready = asyncio.Event()
        # Set once the present attempt to have a fork server has succeeded or failed: starts wait
        # for one that is still importing, not for one that does not come.
        self._decided = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._connection: socket.socket | None = None
        self._watch: ProcessWatch | None = None
        self._received = b""

    async def start(self) -> None:
        """Begin to find or start the fork server in the background, and to keep one there."""
        self._keeper = asyncio.create_task(self._keep())

    def is_running_already(self) -> bool:
        """Whether a fork server of an earlier control plane is there."""
        return is_locked(self._lock)

    async def launch(self, request: LaunchRequest, lock: int) -> ProcessRecord:
        """Start one server. Raises OSError or EngineError when no way works."""
        if needs_new_interpreter(request.environment, self._environment):
            return await self._otherwise.launch(request, lock)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.fork_server_wait_seconds):
                await self._decided.wait()
        async with self._one_at_a_time:
            pid = await self._fork(request, lock) if self._ready.is_set() else None
        if pid is None:
            return await self._otherwise.launch(request, lock)
        limit(pid, request)
        return ProcessRecord(pid, start_ticks(pid) or 0, forked=True)

    async def close(self, *, stop: bool) -> None:
        """Let go of the fork server; with `stop`, end it. Its children are the engine's to end."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if stop:
            if self._connection is not None:
                with contextlib.suppress(OSError, ValueError, TimeoutError):
                    await self._ask({"op": "shutdown"})
                await self._until_gone(self._limits.fork_seconds)
            await self._kill()
            if self._watch is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.kill_seconds):
                        await self._watch.ended.wait()
            self._control.unlink(missing_ok=True)
        self._hang_up()
        if self._watch is not None:
            if stop:
                self._watch.reap()
            self._watch.close()
            self._watch = None
        await self._otherwise.close(stop=stop)

    # --- asking -----------------------------------------------------------------------------------

    async def _fork(self, request: LaunchRequest, lock: int) -> int | None:
        """The child's number, or None when it surely was not started."""
        question = {
            "op": "start",
            "config_path": str(request.config_path),
            "log_path": str(request.log_path),
            "env": dict(request.environment),
            "cwd": str(request.directory),
            "cpu_affinity": list(request.cores) or None,
        }
        try:
            answer = await self._ask(question, lock)
            return int(answer["pid"])
        except KeyError:
            log.warning("the fork server refused; starting a new interpreter", error=answer.get("error", ""))
            return None
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("the fork server did not answer; it is replaced", error=repr(error))
            self._hang_up()
            await self._kill()
            return self._orphan(request.directory / "lock")

    def _orphan(self, lock: Path) -> int | None:
        """A child that was started although we got no answer: it holds the replica's lock."""
        holders = [pid for pid in lock_holders(lock) if self._is_leader(pid)]
        return min(holders, default=None)

    @staticmethod
    def _is_leader(pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            return os.getsid(pid) == pid
        return False

    async def _ask(self, question: Mapping[str, Any], *descriptors: int) -> Mapping[str, Any]:
        """One question, one answer. Raises OSError, ValueError or TimeoutError."""
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected to the fork server")
        loop = asyncio.get_running_loop()
        line = json.dumps(question).encode() + b"\n"
        async with asyncio.timeout(self._limits.fork_seconds):
            # The descriptors travel with the first byte; the rest may have to wait for room.
            sent = socket.send_fds(connection, [line[:1]], descriptors) if descriptors else 0
            await loop.sock_sendall(connection, line[sent:])
            while b"\n" not in self._received:
                chunk = await loop.sock_recv(connection, 65536)
                if not chunk:
                    raise ConnectionResetError("the fork server hung up")
                self._received += chunk
                if len(self._received) > _ANSWER_BYTES_MAX:
                    raise ValueError("the fork server's answer does not end")
        answer, _, self._received = self._received.partition(b"\n")
        content = json.loads(answer)
        return content if isinstance(content, dict) else {"error": "the answer is not an object"}

    # --- keeping one there ------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have a fork server, for ever: after each end of one, get the next; slower if they fail."""
        pause = _RETRY_FIRST_SECONDS
        while True:
            try:
                watch = await self._find_or_start()
            except Exception as error:  # noqa: BLE001 - whatever it is: without this loop no start is decided any more
                log.warning("there is no fork server; servers start in new interpreters", error=repr(error))
                self._decided.set()
                with contextlib.suppress(OSError):
                    await self._kill()
            else:
                self._ready.set()
                self._decided.set()
                pause = _RETRY_FIRST_SECONDS
                await watch.ended.wait()
                log.warning("the fork server ended", pid=watch.record.pid)
                self._decided.clear()
            self._hang_up()
            self._drop_watch()
            await asyncio.sleep(pause)
            pause = min(_RETRY_MAX_SECONDS, pause * 2)

    async def _find_or_start(self) -> ProcessWatch:
        """Connect to the fork server of this home, or start one and connect. Raises several errors."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_locked(self._lock):
            watch = await self._take_over()
            if watch is not None:
                return watch
            await self._kill()
        lock = acquire_lock(self._lock)
        if lock is None:
            raise EngineError("an earlier fork server does not end")
        try:
            log_path = self._directory / "server.log"
            rotate(log_path, self._limits.log_bytes_max)
            self._control.unlink(missing_ok=True)
            request = LaunchRequest(
                config_path=self._control,
                log_path=log_path,
                directory=self._directory,
                environment=self._environment,
            )
            arguments = (str(self._control), "--preload", ",".join(self._formats))
            record = spawn([*self._program, *arguments], request, lock)
        finally:
            os.close(lock)
        self._watch = ProcessWatch(record, _nothing)
        await self._connect_to(self._watch)
        return self._watch

    async def _take_over(self) -> ProcessWatch | None:
        """Go on with the fork server of an earlier control plane, if it is of this version and well."""
        holders = lock_holders(self._lock)
        if len(holders) != 1:
            return None
        try:
            self._watch = ProcessWatch(ProcessRecord(holders[0], start_ticks(holders[0]) or 0), _nothing)
            await self._connect_to(self._watch)
        except (OSError, ValueError, TimeoutError, ProcessGone, EngineError) as error:
            log.warning("the earlier fork server cannot be used; it is replaced", error=str(error))
            self._hang_up()
            self._drop_watch()
            return None
        log.info("took over the fork server that was running", pid=holders[0])
        return self._watch

    async def _connect_to(self, watch: ProcessWatch) -> None:
        """Wait until the fork server answers, which it does once its imports are done."""
        async with asyncio.timeout(self._limits.fork_server_start_seconds):
            while not watch.ended.is_set():
                if self._connect():
                    hello = await self._ask({"op": "hello"})
                    if self._version and hello.get("version") != self._version:
                        raise EngineError(f"it is of version {hello.get('version')}")
                    if hello.get("threads", 1) != 1:
                        raise EngineError(f"it has {hello['threads']} threads and cannot fork")
                    return
                await asyncio.sleep(_POLL_SECONDS)
        raise EngineError(f"it ended while starting; see {self._directory / 'server.log'}")

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(self._control))
        except OSError:
            connection.close()
            return False
        self._connection = connection
        self._received = b""
        return True

    def _hang_up(self) -> None:
        self._ready.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _drop_watch(self) -> None:
        if self._watch is not None:
            self._watch.reap()
            self._watch.close()
            self._watch = None

    async def _kill(self) -> None:
        """Leave no fork server. Its children are in sessions of their own and live on."""
        if self._watch is not None:
            self._watch.send(signal.SIGKILL)
        if is_locked(self._lock):
            kill_holders(self._lock)
            await self._until_gone(self._limits.kill_seconds)

    async def _until_gone(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while is_locked(self._lock) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a lock held elsewhere
            await asyncio.sleep(_POLL_SECONDS)

    @property
    def _lock(self) -> Path:
        return self._directory / "lock"


class LauncherByFormat:
    """Sends some formats' servers to launchers of their own, and the rest to the usual one.

    A launcher of its own gets ready when the first server of its formats is wanted: what it imports is
    large, and most installations never need it. One whose fork server has outlived the control plane
    before this one is taken over at once, so that nobody forgets it.
    """

    def __init__(self, usual: Launcher, own: Mapping[str, ForkLauncher]) -> None:
        self._usual = usual
        self._own = own
        self._started: set[ForkLauncher] = set()

    async def start(self) -> None:
        """Get the usual launcher ready, and what an earlier control plane left."""
        await self._usual.start()
        for launcher in set(self._own.values()):
            if launcher.is_running_already():
                await self._start(launcher)

    async def launch(self, request: LaunchRequest, lock: int) -> ProcessRecord:
        """Start one server. Raises OSError or EngineError."""
        own = self._own.get(request.format)
        if own is None:
            return await self._usual.launch(request, lock)
        await self._start(own)
        return await own.launch(request, lock)

    async def close(self, *, stop: bool) -> None:
        """Let go of every launcher."""
        for launcher in set(self._own.values()) if stop else self._started:
            await launcher.close(stop=stop)
        self._started.clear()
        await self._usual.close(stop=stop)

    async def _start(self, launcher: ForkLauncher) -> None:
        if launcher not in self._started:
            self._started.add(launcher)
            await launcher.start()


def _nothing() -> None:
    """The keeper waits for the watch's event; there is nothing else to tell."""
