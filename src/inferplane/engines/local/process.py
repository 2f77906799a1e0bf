"""One model server as a process: its lock, its identity, its end, its memory.

A process number alone is a poor name: numbers are used again. Three things make it a good one.
The *lock* that a server inherits (`inferplane.locks`) says whether any process of that replica lives,
and refuses a second start. The *start time* that the kernel keeps for each process tells an old
number from a new process with it. The *pidfd* names the process itself: a signal through it cannot
hit a stranger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from inferplane.engines.local.launch import LaunchRequest
from inferplane.engines.local.records import ProcessRecord
from inferplane.locks import lock_holders

PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STAT_START_TICKS = 19  # field 22 of /proc/<pid>/stat, counted from behind the command's name
_STAT_STATE = 0
FAMILY_MAX = 1000
"""Processes of one server that are looked at for its memory."""


class ProcessGone(Exception):
    """The process is not there (any more), or its number now belongs to another."""


# --- identity -------------------------------------------------------------------------------------


def start_ticks(pid: int) -> int | None:
    """The kernel's start time of the process, in clock ticks since boot; None when it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_STAT_START_TICKS])


def is_same_process(record: ProcessRecord) -> bool:
    """Whether the number still belongs to the process that was noted."""
    return start_ticks(record.pid) == record.start_ticks


def _stat(pid: int) -> list[str] | None:
    try:
        content = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name stands in parentheses and may hold anything, a parenthesis included.
    return content.rpartition(")")[2].split()


# --- starting -------------------------------------------------------------------------------------


def spawn(argv: Sequence[str], request: LaunchRequest, lock: int) -> ProcessRecord:
    """Start `argv` as the request says, in a session of its own, with `lock` inherited.

    Limits are set from outside right after the start, while the new interpreter has one thread:
    setting them in the child would mean running Python between fork and exec. Raises OSError.
    """
    log = os.open(request.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=request.directory,
            env=dict(request.environment),
            start_new_session=True,
            pass_fds=(lock,),
        )
    finally:
        os.close(log)
    pid = process.pid
    # From here on the process is ours to reap by its number. This object must neither wait for it
    # nor complain when it outlives us, which is what servers do when the control plane is killed.
    process.returncode = 0
    with contextlib.suppress(OSError):  # it may have ended already
        if request.cores:
            os.sched_setaffinity(pid, request.cores)
    limit(pid, request)
    return ProcessRecord(pid, start_ticks(pid) or 0)


def limit(pid: int, request: LaunchRequest) -> None:
    """Lower the kernel's limits of the process to those of the request; a lower one stays."""
    for which, wanted in (
        (resource.RLIMIT_DATA, request.data_bytes_max),
        (resource.RLIMIT_CORE, request.core_bytes_max),
    ):
        if wanted is None:
            continue
        with contextlib.suppress(OSError):  # it may have ended already
            soft, hard = resource.prlimit(pid, which)
            resource.prlimit(pid, which, (_lower(soft, wanted), _lower(hard, wanted)))


def _lower(present: int, wanted: int) -> int:
    return wanted if present == resource.RLIM_INFINITY else min(present, wanted)


# --- watching and ending --------------------------------------------------------------------------


class ProcessWatch:
    """Watches one process and tells once when it has ended. It need not be our child.

    `on_end` is called from the event loop, before our own child is reaped.
    """

    def __init__(self, record: ProcessRecord, on_end: Callable[[], None]) -> None:
        """Raises ProcessGone when the process is not there, OSError when it cannot be watched."""
        try:
            self._pidfd = os.pidfd_open(record.pid)
        except ProcessLookupError as error:
            raise ProcessGone(f"process {record.pid} is gone") from error
        # Asked after the pidfd was opened: from here on the number cannot change hands unnoticed.
        if not is_same_process(record):
            os.close(self._pidfd)
            raise ProcessGone(f"process {record.pid} is another one by now")
        self.record = record
        self.ended = asyncio.Event()
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._readable)

    def _readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.ended.set()
        self._on_end()

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, asked of the kernel."""
        if self._pidfd < 0:
            return True
        poll = select.poll()  # not `select`, which knows no descriptor above 1023
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process; no matter if it has ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """Ask the process to finish and end."""
        self.send(signal.SIGTERM)

    def kill_group(self) -> None:
        """SIGKILL to the process and to everything it started that stayed in its group.

        The number still names the group as long as the process itself is there, dead or alive but
        not reaped, or any member is: so nobody else's group can be hit.
        """
        self.send(signal.SIGKILL)
        record = self.record
        if start_ticks(record.pid) in (record.start_ticks, None):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """The exit code (negative for a signal) of our own ended child; None for anybody else's."""
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.record.pid, os.WNOHANG)
            if pid == self.record.pid:
                return os.waitstatus_to_exitcode(status)
        return None

    def close(self) -> None:
        """Stop watching. The process is left alone."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def kill_holders(lock: Path) -> None:
    """SIGKILL to whatever still holds the lock: helpers that outlived their server."""
    for pid in lock_holders(lock):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


# --- memory ---------------------------------------------------------------------------------------


def memory_bytes(pid: int, threshold: int, known: Sequence[int] = ()) -> int:
    """Memory that the process and those it started use. Exact above `threshold`; below it, an upper bound
    that is cheap to get, of the process and those of its descendants that are `known`.

    Pages shared with a parent (servers forked from a warm one share its libraries) count for each
    sharer by its part. Reading that takes the kernel a walk over all pages, so the plain resident
    size, which is never smaller, is asked first. 0 when the process is gone.
    """
    bound = sum(_resident_bytes(each) for each in (pid, *known))
    if bound <= threshold:
        return bound
    used = 0
    for each in (pid, *descendants(pid)):  # asked anew: numbers that were known may be others' by now
        proportional = _proportional_bytes(each)
        used += _resident_bytes(each) if proportional is None else proportional
    return used


def descendants(pid: int) -> tuple[int, ...]:
    """The processes that this one started and that are there, theirs too: workers of a server, say.

    Those whose parent has ended are somebody else's by now and not found.
    """
    found: dict[int, None] = {}
    parents = [pid]
    while parents and len(found) < FAMILY_MAX:
        for child in _children(parents.pop()):
            if child not in found:
                found[child] = None
                parents.append(child)
    return tuple(found)


def _children(pid: int) -> list[int]:
    tasks = PROC / str(pid) / "task"
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(tasks):  # noqa: PTH208 - names are all that is wanted
            with contextlib.suppress(OSError):
                children += map(int, (tasks / task / "children").read_text().split())
    return children


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since boot; 0 if it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def machine_memory_bytes() -> int:
    """Memory of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES


def _resident_bytes(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _proportional_bytes(pid: int) -> int | None:
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return None
