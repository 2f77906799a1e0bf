"""Several processes behind one address, for models that hold the interpreter's lock while they compute.

The first process loads the model, and only loads it; then it forks the workers, which share its memory and
its listening socket, and stays behind to watch them. It opens no event loop, starts no thread and computes
nothing, so that it can fork again when a worker dies. A model whose library starts threads while it is
loaded cannot be shared like that: it is served by one process, and the log says so.

Each worker is a whole model server: its own event loop, batches, queue and probe. Ready is said when every
worker has answered its probe. New connections go to the worker that has the fewest: they share a count
each, and one that has more stands back for a moment before it takes another. `/metrics` adds up what all
workers last said.

Until the model is loaded, connections wait; there is nobody yet who could answer "not ready".
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import mmap
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import msgspec

from inferplane.modelserver.config import ServerConfig
from inferplane.modelserver.errors import LoadError, LoadReason
from inferplane.modelserver.status import ModelInfo, ServerState, StatusWriter

if TYPE_CHECKING:
    from inferplane.modelserver.http import Connections
    from inferplane.modelserver.main import Loaded

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_WORKERS_DIE = 4
#: A worker that has as many connections as others need not wait; one that has more waits this long.
STAND_BACK_SECONDS = 0.002
#: How old another worker's share of the metrics may be.
PUBLISH_SECONDS = 0.5
SLOT_BYTES = 256 * 1024
#: Deaths of workers within the window that are made good; more end the server.
DEATHS_MAX = 5
DEATHS_WINDOW_SECONDS = 60.0
#: Beyond the drain time, before workers are killed.
KILL_MARGIN_SECONDS = 5.0
REPORT_BYTES_MAX = 1024 * 1024
PR_SET_PDEATHSIG = 1
#: Gauges that are not a sum over workers, and what they are.
NOT_SUMMED: dict[str, Callable[[float, float], float]] = {
    "inferplane_model_ready": min,
    "inferplane_model_load_seconds": max,
}


class Report(msgspec.Struct, frozen=True):
    """What a worker says once: its model as probed, or why it cannot serve."""

    info: ModelInfo = ModelInfo()
    reason: str = ""
    message: str = ""


class Shared:
    """Memory that the workers share: for each a count of connections and the text of its metrics."""

    _HEAD = struct.Struct("=QQQ")  # connections, edition of the text (odd while it is written), its length

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._map = mmap.mmap(-1, workers * SLOT_BYTES)

    def connections(self, index: int) -> int:
        """How many connections a worker has."""
        count: int = self._HEAD.unpack_from(self._map, index * SLOT_BYTES)[0]
        return count

    def fewest(self) -> int:
        """The least that any worker has."""
        return min(self.connections(index) for index in range(self.workers))

    def count(self, index: int, connections: int) -> None:
        """Say how many connections a worker has."""
        struct.pack_into("=Q", self._map, index * SLOT_BYTES, connections)

    def publish(self, index: int, text: bytes) -> None:
        """Replace a worker's metrics; a text that is too long is left out."""
        start = index * SLOT_BYTES
        _, edition, _ = self._HEAD.unpack_from(self._map, start)
        if len(text) > SLOT_BYTES - self._HEAD.size:
            return
        struct.pack_into("=Q", self._map, start + 8, edition | 1)
        self._map[start + self._HEAD.size : start + self._HEAD.size + len(text)] = text
        struct.pack_into("=QQ", self._map, start + 8, (edition | 1) + 1, len(text))

    def text(self, index: int) -> bytes:
        """A worker's metrics as it last said them; empty when they are just being written."""
        start = index * SLOT_BYTES
        for _ in range(3):
            _, edition, length = self._HEAD.unpack_from(self._map, start)
            text = self._map[start + self._HEAD.size : start + self._HEAD.size + length]
            if edition % 2 == 0 and self._HEAD.unpack_from(self._map, start)[1] == edition:
                return text
        return b""

    def clear(self, index: int) -> None:
        """Forget a worker that died: its connections are gone, its counts go on from 0 in the next one."""
        self.count(index, 0)
        self.publish(index, b"")


def added_up(texts: Iterable[str]) -> str:
    """One Prometheus text from those of several workers: equal series are added."""
    lines: dict[str, float | None] = {}
    for text in texts:
        for line in text.splitlines():
            if not line or line.startswith("#"):
                lines.setdefault(line, None)
                continue
            series, _, value = line.rpartition(" ")
            known = lines.get(series)
            combine = NOT_SUMMED.get(series.partition("{")[0])
            number = float(value)
            lines[series] = (
                number if known is None else combine(known, number) if combine is not None else known + number
            )
    # Series of one name stay together under its heading, also those that only a later text has.
    groups: dict[str, list[str]] = {}
    for series, total in lines.items():
        name = series.split(" ")[2] if series.startswith("#") else _family(series.partition("{")[0], groups)
        groups.setdefault(name, []).append(series if total is None else f"{series} {total:.12g}")
    return "\n".join(line for group in groups.values() for line in group) + "\n"


def _family(name: str, known: dict[str, list[str]]) -> str:
    for ending in ("_bucket", "_sum", "_count"):
        if name.endswith(ending) and name.removesuffix(ending) in known:
            return name.removesuffix(ending)
    return name


# The first process.


@dataclass(slots=True)
class _Worker:
    index: int
    pid: int
    pidfd: int
    pipe: int
    said: bytes = b""
    ready: bool = False


class _Stopped(BaseException):
    """A signal asked this process to end while it was loading."""


def serve_many(config: ServerConfig, status: StatusWriter, listener: socket.socket, pool_threads: int) -> int:
    """Load the model, fork the workers and watch them until a signal ends it. Returns the exit code."""
    from inferplane.modelserver.forkserver import thread_count
    from inferplane.modelserver.main import close_address, give_up, load_only, serve_alone

    status.write(ServerState.LOADING)
    log.info("loading %s model %s from %s", config.format, config.name, config.path)

    def stop(_number: int, _frame: object) -> NoReturn:
        raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    started = time.perf_counter()
    try:
        model = load_only(config, pool_threads)
    except _Stopped:
        close_address(config)
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - whatever it is, it is why this server cannot serve
        close_address(config)
        return give_up(status, error)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
    if thread_count() != 1:
        log.warning("loading this model has started threads, so it is served by one process, not several")
        return serve_alone(config, status, listener, pool_threads, model)
    gc.collect()
    gc.freeze()  # what is loaded stays for good: keeping the collector away keeps its pages shared
    return _Watch(config, status, listener, model, started).run()


class _Watch:
    """The first process's loop: reports, deaths and signals, on one selector."""

    def __init__(
        self,
        config: ServerConfig,
        status: StatusWriter,
        listener: socket.socket,
        model: object,
        started: float,
    ) -> None:
        self._config = config
        self._status = status
        self._listener = listener
        self._model = model
        self._started = started
        self._shared = Shared(config.worker_count)
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Worker] = {}
        self._deaths: list[float] = []
        self._info = ModelInfo()
        self._load_seconds = 0.0
        self._said_ready = False
        self._stopping = False
        self._kill_at = float("inf")
        self._code = EXIT_OK

    def run(self) -> int:
        """Fork, watch, and return the exit code when the last worker has ended."""
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(reading, selectors.EVENT_READ)
        for index in range(self._config.worker_count):
            self._fork(index)
        while self._workers:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is reading:
                    with contextlib.suppress(BlockingIOError):
                        reading.recv(4096)
                    self._stop(EXIT_OK)
                elif key.data[0] == "pipe":
                    self._hear(key.data[1])
                else:
                    self._bury(key.data[1])
            if time.monotonic() > self._kill_at:
                self._signal_all(signal.SIGKILL)
        log.info("stopped")
        return self._code

    def _patience(self) -> float | None:
        if self._kill_at == float("inf"):
            return None
        return max(0.0, self._kill_at - time.monotonic()) + 0.01

    def _fork(self, index: int) -> None:
        reading, writing = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            for key in list(self._selector.get_map().values()):
                os.close(key.fd)
            self._selector.close()
            os.close(reading)
            _become_worker(self._config, self._listener, self._model, index, self._shared, writing, parent)
        os.close(writing)
        worker = _Worker(index, pid, os.pidfd_open(pid), reading)
        self._workers[index] = worker
        self._selector.register(worker.pipe, selectors.EVENT_READ, ("pipe", worker))
        self._selector.register(worker.pidfd, selectors.EVENT_READ, ("end", worker))

    def _hear(self, worker: _Worker) -> None:
        data = os.read(worker.pipe, 65536)
        worker.said += data
        if data and len(worker.said) < REPORT_BYTES_MAX:
            return
        self._selector.unregister(worker.pipe)
        os.close(worker.pipe)
        worker.pipe = -1
        if not worker.said:
            return  # it died before it could say anything: its end tells the rest
        report = msgspec.json.decode(worker.said, type=Report)
        if report.reason:
            self._fail(report)
            return
        worker.ready = True
        self._info = report.info
        if all(one.ready for one in self._workers.values()) and not self._stopping and not self._said_ready:
            self._said_ready = True
            self._load_seconds = time.perf_counter() - self._started
            self._status.write(ServerState.READY, load_seconds=self._load_seconds, model=self._info)
            log.info("ready after %.3f s with %d workers", self._load_seconds, len(self._workers))

    def _bury(self, worker: _Worker) -> None:
        self._selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        if worker.pipe >= 0:
            self._selector.unregister(worker.pipe)
            os.close(worker.pipe)
        _, ended = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(ended)
        del self._workers[worker.index]
        self._shared.clear(worker.index)
        if self._stopping:
            return
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < DEATHS_WINDOW_SECONDS] + [now]
        log.error("worker %d ended with %d", worker.index, code)
        if len(self._deaths) > DEATHS_MAX:
            log.error("%d workers died within %.0f s", len(self._deaths), DEATHS_WINDOW_SECONDS)
            self._stop(EXIT_WORKERS_DIE)
        else:
            self._fork(worker.index)

    def _fail(self, report: Report) -> None:
        if self._stopping:
            return
        from inferplane.modelserver.main import EXIT_CANNOT_SERVE

        reason = LoadReason(report.reason)
        log.error("cannot serve: %s: %s", reason, report.message)
        self._status.write(ServerState.FAILED, reason=reason, message=report.message)
        self._said_ready = True  # that is the last word
        self._stop(EXIT_CANNOT_SERVE)

    def _stop(self, code: int) -> None:
        if self._stopping:
            return
        from inferplane.modelserver.main import close_address

        self._stopping = True
        self._code = code
        self._listener.close()
        close_address(self._config)
        if code == EXIT_OK:
            self._status.write(ServerState.DRAINING, load_seconds=self._load_seconds, model=self._info)
        self._kill_at = time.monotonic() + self._config.drain_seconds + KILL_MARGIN_SECONDS
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, number)


# A worker.


def _become_worker(
    config: ServerConfig,
    listener: socket.socket,
    model: object,
    index: int,
    shared: Shared,
    pipe: int,
    parent: int,
) -> NoReturn:
    """The child's side of the fork."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # A worker without the first process would have nobody who ends it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(code)
        from inferplane.modelserver.forkserver import reseed
        from inferplane.modelserver.main import work

        reseed()

        def report(loaded: Loaded | None, error: LoadError | None) -> None:
            said = Report()
            if error is not None:
                said = Report(reason=str(error.reason), message=error.message)
            elif loaded is not None:
                said = Report(info=loaded.info)
            os.write(pipe, msgspec.json.encode(said))
            os.close(pipe)

        code = work(config, listener, model, index, shared, report)
    except BaseException:
        log.exception("worker %d failed", index)
    finally:
        logging.shutdown()
        os._exit(code)


class Acceptor:
    """Takes connections for one worker, and leaves them to others that have fewer."""

    def __init__(self, listener: socket.socket, connections: Connections, shared: Shared, index: int) -> None:
        self._listener = listener
        self._connections = connections
        self._shared = shared
        self._index = index
        self._loop = asyncio.get_running_loop()
        self._coming: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        connections.changed = self._count
        self._loop.add_reader(listener.fileno(), self._readable)

    def close(self) -> None:
        """Take no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _count(self) -> None:
        self._shared.count(self._index, len(self._connections.open) + len(self._coming))

    def _readable(self) -> None:
        if self._shared.connections(self._index) <= self._shared.fewest():
            self._take()
            return
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(STAND_BACK_SECONDS, self._take_after_pause)

    def _take_after_pause(self) -> None:
        self._pause = None
        self._take()  # nobody else did
        self._loop.add_reader(self._listener.fileno(), self._readable)

    def _take(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # another worker was quicker, or the caller has left already
        client.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(self._open(client))
        self._coming.add(task)
        task.add_done_callback(self._came)
        self._count()

    async def _open(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connections, client)
        except OSError:
            client.close()

    def _came(self, task: asyncio.Task[object]) -> None:
        self._coming.discard(task)
        self._count()
