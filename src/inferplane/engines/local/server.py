"""One running model server: from its start, or its adoption, to the explanation of its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from inferplane.domain.endpoint import Exit, ReplicaState
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.exits import Evidence, explain_exit
from inferplane.engines.local.health import is_live
from inferplane.engines.local.launch import Intent, ReplicaPaths
from inferplane.engines.local.limits import MEBIBYTE, Limits
from inferplane.engines.local.logfile import rotate, tail
from inferplane.engines.local.process import (
    ProcessGone,
    ProcessWatch,
    descendants,
    is_same_process,
    kernel_oom_kills,
    kill_holders,
    memory_bytes,
    start_ticks,
)
from inferplane.engines.local.records import (
    ProcessRecord,
    ServerStatus,
    StopRecord,
    read_ended,
    read_intent,
    read_process,
    read_record,
    read_status,
    read_stop,
    remove,
    write_ended,
    write_process,
    write_stop,
)
from inferplane.engines.port import Clock
from inferplane.locks import is_locked, lock_holders
from inferplane.observability import get_logger

log = get_logger("engine")

_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every server of one engine shares. `changed` gets the endpoint's uid."""

    clock: Clock
    limits: Limits
    changed: Callable[[str], None]


class RunningServer:
    """A model server whose process lives, or has just ended and is not explained yet.

    It holds nothing that the folder does not hold too, except timers and the count of failed health
    checks: another engine can take over at any moment by making its own.
    """

    def __init__(
        self, paths: ReplicaPaths, intent: Intent, record: ProcessRecord, around: Surroundings
    ) -> None:
        """Begin to watch the process. Raises ProcessGone when it is not there."""
        self.paths = paths
        self.intent = intent
        self.unresponsive = False
        self.explained = asyncio.Event()
        self.exit: Exit | None = None
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._oom_kills = kernel_oom_kills()
        self._stop: StopRecord | None = None
        self._ladder: asyncio.Task[None] | None = None
        self._explaining: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._check_at = self._loop.time() + around.limits.health_interval_seconds
        self._health_failures = 0
        self._steady = False
        self._sweeps = 0
        self._descendants: tuple[int, ...] = ()
        self._status_mark = _mark(paths.status)
        self._status_read: tuple[tuple[int, int] | None, ServerStatus | None] = (None, None)
        self._watch = ProcessWatch(record, self._process_ended)
        if (stop := read_stop(paths.stop)) is not None:
            self._climb(stop)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._watch.record.pid

    @property
    def has_process(self) -> bool:
        """Whether the process lives, asked of the kernel."""
        return not self._watch.has_ended

    @property
    def is_steady(self) -> bool:
        """Whether it was ready when last looked at and may use what memory it likes: it can wait for the next look."""
        return self._steady

    # --- ending it --------------------------------------------------------------------------------

    def stop(
        self,
        grace_seconds: float,
        *,
        reason: ReasonCode | None = None,
        message: str = "",
        quiet: bool = False,
    ) -> None:
        """Ask the server to end and force it after the grace. Asked again, the earlier end counts.

        The reason that was given first stays.
        """
        now = self._around.clock()
        wanted = StopRecord(now, now + timedelta(seconds=grace_seconds), reason, message, quiet=quiet)
        before = self._stop
        if before is not None:
            wanted = replace(
                before, deadline=min(before.deadline, wanted.deadline), quiet=before.quiet or quiet
            )
            if wanted == before:
                return
        self._climb(wanted)

    def _climb(self, stop: StopRecord) -> None:
        asked_before = self._stop is not None
        self._note_stop(stop)
        if self._ladder is not None:
            self._ladder.cancel()
        self._ladder = self._loop.create_task(self._end(stop, ask=not asked_before))

    async def _end(self, stop: StopRecord, *, ask: bool) -> None:
        """The ladder: ask (once: a second SIGTERM means hurry to some), wait, kill."""
        remaining = (stop.deadline - self._around.clock()).total_seconds()
        if remaining > 0:
            if ask:
                self._watch.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._watch.ended.wait()
                return
        self._note_stop(replace(stop, forced=True))
        self._watch.kill_group()
        try:
            async with asyncio.timeout(self._around.limits.kill_seconds):
                await self._watch.ended.wait()
        except TimeoutError:
            log.warning("a killed model server does not end", replica=str(self.paths.directory), pid=self.pid)

    def _note_stop(self, stop: StopRecord) -> None:
        self._stop = stop
        try:
            write_stop(self.paths.stop, stop)
        except OSError as error:  # a full disk must not keep a server alive
            log.warning("cannot note a stop", replica=str(self.paths.directory), error=str(error))

    # --- its end ----------------------------------------------------------------------------------

    def _process_ended(self) -> None:
        if self._explaining is None:
            self._explaining = self._loop.create_task(self._explain())

    async def _explain(self) -> None:
        """Leave no helper of the server behind, find out how it ended, write that down, tell.

        Whatever goes wrong on the way, the end itself is told: others wait for it.
        """
        try:
            self.exit = await self._find_out()
        except (
            Exception
        ) as error:  # no evidence (out of descriptors, a broken log) is no reason to stay silent
            log.exception("cannot explain an end", replica=str(self.paths.directory))
            self.exit = Exit(self._around.clock(), message=f"how it ended could not be found out: {error}")
        finally:
            self._watch.close()
            self.explained.set()
            self._around.changed(self.intent.replica.endpoint_uid)

    async def _find_out(self) -> Exit:
        self._watch.kill_group()
        code = self._watch.reap()
        if code is None and self._watch.record.forked:
            code = await self._code_from_fork_server()
        await self._free_lock()
        oom = kernel_oom_kills() > self._oom_kills
        return record_end(self.paths, code, self._around, stop=self._stop, short_of_memory=oom)

    async def _code_from_fork_server(self) -> int | None:
        """The fork server reaps its children and leaves their exit codes in their folders."""
        deadline = self._loop.time() + self._around.limits.exit_record_seconds
        while True:
            code = exit_code_on_file(self.paths.exit, self.pid)
            if code is not None or self._loop.time() >= deadline:
                return code
            await asyncio.sleep(_POLL_SECONDS)

    async def _free_lock(self) -> None:
        """Processes that the server started and that left its group may still hold its lock."""
        deadline = self._loop.time() + self._around.limits.kill_seconds
        while is_locked(self.paths.lock) and self._loop.time() < deadline:
            kill_holders(self.paths.lock)
            await asyncio.sleep(_POLL_SECONDS)

    # --- looking after it -------------------------------------------------------------------------

    def sweep(self) -> None:
        """Notice what nobody announces: a lost hint, too much memory, too slow a start, a large log."""
        if self._watch.has_ended:
            self._process_ended()
            return
        if (mark := _mark(self.paths.status)) != self._status_mark:
            self._status_mark = mark
            self._around.changed(self.intent.replica.endpoint_uid)
        self._enforce_memory()
        state = self._state_by(mark)
        self._steady = state is ReplicaState.READY and self.intent.memory_bytes is None
        if state in (ReplicaState.STARTING, ReplicaState.LOADING):
            self._enforce_start_timeout()
        elif state in (ReplicaState.READY, ReplicaState.UNRESPONSIVE):
            self._check_health()
        try:
            rotate(self.paths.log, self._around.limits.log_bytes_max)
        except OSError as error:
            log.warning("cannot rotate a log", replica=str(self.paths.directory), error=str(error))

    def state(self) -> ReplicaState:
        """Where the server is in its life, as long as its process lives."""
        return self._state_by(_mark(self.paths.status))

    def _state_by(self, mark: tuple[int, int] | None) -> ReplicaState:
        if self._stop is not None:
            return ReplicaState.STOPPING
        status = self._status_by(mark)
        word = status.state if status is not None else "starting"
        if word == "ready":
            return ReplicaState.UNRESPONSIVE if self.unresponsive else ReplicaState.READY
        if word == "draining":
            return ReplicaState.STOPPING
        return ReplicaState.STARTING if word == "starting" else ReplicaState.LOADING

    def status(self) -> ServerStatus | None:
        """What the server last said about itself; the file is read again only when it changed."""
        return self._status_by(_mark(self.paths.status))

    def _status_by(self, mark: tuple[int, int] | None) -> ServerStatus | None:
        if mark != self._status_read[0]:
            self._status_read = (mark, read_status(self.paths.status))
        return self._status_read[1]

    def _enforce_memory(self) -> None:
        limit = self.intent.memory_bytes
        if limit is None or self._stop is not None:
            return
        if self._sweeps % self._around.limits.steady_sweeps == 0:
            self._descendants = descendants(self.pid)
        self._sweeps += 1
        used = memory_bytes(self.pid, limit, self._descendants)
        if used > limit:
            message = f"the model server used {_size(used)} of memory; its limit is {_size(limit)}"
            self.stop(0.0, reason=ReasonCode.OUT_OF_MEMORY, message=message)
            self._around.changed(self.intent.replica.endpoint_uid)

    def _enforce_start_timeout(self) -> None:
        timeout = self.intent.start_timeout_seconds
        elapsed = (self._around.clock() - self.intent.started_at).total_seconds()
        if elapsed > timeout:
            message = f"the model server was not ready within its start timeout of {timeout:g} s"
            self.stop(
                self._around.limits.timeout_grace_seconds, reason=ReasonCode.START_TIMEOUT, message=message
            )
            self._around.changed(self.intent.replica.endpoint_uid)

    def _check_health(self) -> None:
        if self._loop.time() >= self._check_at and (self._checking is None or self._checking.done()):
            self._checking = self._loop.create_task(self._ask_health())

    async def _ask_health(self) -> None:
        limits = self._around.limits
        path = self.intent.address.removeprefix("unix:")
        live = await is_live(path, limits.health_timeout_seconds)
        self._check_at = self._loop.time() + limits.health_interval_seconds
        self._health_failures = 0 if live else self._health_failures + 1
        unresponsive = self._health_failures >= limits.health_failures_max
        if unresponsive != self.unresponsive:
            self.unresponsive = unresponsive
            self._around.changed(self.intent.replica.endpoint_uid)

    async def let_go(self) -> None:
        """Stop watching and leave the process alone."""
        tasks = [task for task in (self._ladder, self._explaining, self._checking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watch.close()


def adopt(paths: ReplicaPaths, around: Surroundings) -> RunningServer | None:
    """Take over the server that holds the lock in this folder; None when none does any more.

    The note of the process is believed only if the kernel confirms it. Without one (the control
    plane was killed between start and note) the kernel is asked who holds the lock. Raises OSError.
    """
    intent = read_intent(paths.intent)
    if intent is None:
        return None
    record = read_process(paths.pid)
    if record is None or not is_same_process(record):
        record = _holder(paths)
        if record is None:
            return None
        write_process(paths.pid, record)
    with contextlib.suppress(ProcessGone):
        return RunningServer(paths, intent, record, around)
    return None


def _holder(paths: ReplicaPaths) -> ProcessRecord | None:
    """The server among the processes that hold the lock: the leader of its session, else the oldest."""
    records = []
    for pid in lock_holders(paths.lock):
        if (ticks := start_ticks(pid)) is not None:
            with contextlib.suppress(ProcessLookupError):
                records.append((os.getsid(pid) != pid, ticks, pid))
    if not records:
        return None
    _, ticks, pid = min(records)
    return ProcessRecord(pid, ticks)


def record_end(
    paths: ReplicaPaths,
    code: int | None,
    around: Surroundings,
    *,
    stop: StopRecord | None,
    short_of_memory: bool = False,
) -> Exit:
    """Explain an end from what lies in the folder, and write the verdict there once.

    After a quiet stop nothing is written and the run is forgotten, except for its log.
    """
    if (known := read_ended(paths.ended)) is not None:
        return known
    limits = around.limits
    lines = tail(
        paths.log,
        lines_max=limits.log_tail_lines,
        bytes_max=limits.log_tail_bytes,
        line_bytes_max=limits.log_line_bytes_max,
    )
    ended = explain_exit(
        Evidence(
            at=around.clock(),
            code=code,
            stop=stop or read_stop(paths.stop),
            status=read_status(paths.status),
            kernel_short_of_memory=short_of_memory,
            log_tail=tuple(lines),
        )
    )
    try:
        if stop is None or not stop.quiet:
            write_ended(paths.ended, ended)
        remove(paths.pid, paths.stop, paths.socket)
        if stop is not None and stop.quiet:
            remove(paths.status, paths.exit, paths.intent)
    except OSError as error:  # the end is told from memory until the disk takes writes again
        log.warning("cannot note how a model server ended", replica=str(paths.directory), error=str(error))
    return ended


def exit_code_on_file(path: Path, pid: int) -> int | None:
    """The exit code that a fork server left for this process; None if it did not (yet)."""
    content = read_record(path)
    if content is None or content.get("pid") != pid:
        return None
    with contextlib.suppress(TypeError, ValueError, KeyError):
        if content["signal"]:
            return -signal.Signals[content["signal"]]
        return int(content["exit_code"])
    return None


def _mark(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116 - of every server, twice a second: pathlib takes as long again
        return found.st_ino, found.st_mtime_ns
    return None


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:.0f} MiB" if count >= MEBIBYTE else f"{count} bytes"
