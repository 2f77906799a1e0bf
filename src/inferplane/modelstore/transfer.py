"""One object from its origin into one file, whatever happens to the connection in between.

The file on disk is the progress: its length says where to go on. A part is continued only when it is
certain to belong to the same version (a validator that the server must honour by If-Range, a pinned
address, or a digest that will be checked); otherwise it begins anew. Bytes are hashed as they are
written, so the digest costs no second pass, except over what an earlier run had left.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.disk import READ_BYTES
from inferplane.modelstore.failure import (
    FetchFailed,
    ObjectChanged,
    bytes_text,
    from_disk_error,
    from_http_error,
    from_status,
)
from inferplane.modelstore.http_origin import content_range
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.origin import Origin, RemoteObject


@dataclass(frozen=True, slots=True)
class Arrived:
    """An object that is here: its size in bytes and its hex sha256."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Watch:
    """What a transfer reports and asks while it goes on.

    `at` is told how many bytes of the object are here; `resumed` how many of them need not be
    fetched again; `pausing` why there is a pause. `room` raises FetchFailed when that many more
    bytes must not be written.
    """

    at: Callable[[int], None]
    resumed: Callable[[int], None]
    pausing: Callable[[str], None]
    room: Callable[[int], None]


class Part:
    """The file being written, with its digest so far. Blocking; used from worker threads.

    The lock makes `close` wait for a write that still runs in its thread after a cancellation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._descriptor = -1

    def open(self, *, keep: bool) -> None:
        """Open for appending; what is there is kept and hashed, or dropped."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            if not keep:
                os.ftruncate(self._descriptor, 0)
            while chunk := os.read(self._descriptor, READ_BYTES):
                self._hash.update(chunk)
                self.size += len(chunk)

    def write(self, data: bytes) -> None:
        """Append."""
        with self._lock:
            if self._descriptor < 0:
                return
            view = memoryview(data)
            while view:
                written = os.write(self._descriptor, view)
                self._hash.update(view[:written])
                self.size += written
                view = view[written:]

    def restart(self) -> None:
        """Drop everything and begin at 0."""
        with self._lock:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._hash = hashlib.sha256()
            self.size = 0

    def close(self) -> None:
        """Close; harmless when closed."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    @property
    def sha256(self) -> str:
        """Hex digest of what is here."""
        return self._hash.hexdigest()


async def transfer(
    client: httpx.AsyncClient,
    origin: Origin,
    found: RemoteObject,
    path: Path,
    *,
    keep: bool,
    ranges: bool,
    limits: StoreLimits,
    watch: Watch,
) -> Arrived:
    """Fetch `found` into `path`. `keep` allows what lies at `path` to be continued.

    Raises FetchFailed (DownloadInterrupted when it broke too often), ObjectChanged.
    """
    part = Part(path)
    try:
        await asyncio.to_thread(part.open, keep=keep and ranges)
        job = _Transfer(client, origin, found, part, limits, watch)
        await job.run()
        return Arrived(part.size, part.sha256)
    except OSError as error:
        raise from_disk_error(error, str(path.parent)) from error
    finally:
        part.close()


class _Transfer:
    def __init__(
        self,
        client: httpx.AsyncClient,
        origin: Origin,
        found: RemoteObject,
        part: Part,
        limits: StoreLimits,
        watch: Watch,
    ) -> None:
        self._client = client
        self._origin = origin
        self._found = found
        self._part = part
        self._limits = limits
        self._watch = watch

    async def run(self) -> None:
        """Try until the object is here whole."""
        found, part = self._found, self._part
        if found.size is not None and part.size > found.size:
            part.restart()
        if part.size:
            self._watch.resumed(part.size)
        self._watch.at(part.size)
        failures = 0
        for _ in range(self._limits.resumes_max):
            if found.size is not None and part.size == found.size:
                return
            before = part.size
            try:
                await self._once()
            except FetchFailed as failure:
                if not failure.transient:
                    raise
                failures = 1 if part.size > before else failures + 1
                if failures >= self._limits.tries_without_progress:
                    raise self._given_up(failure) from failure
                pause = self._limits.backoff_seconds(failures)
                self._watch.pausing(
                    f"{failure.message}; going on in {pause:.1f} s at {bytes_text(part.size)}"
                )
                await asyncio.sleep(pause)
            else:
                return
        raise self._given_up(None)

    async def _once(self) -> None:
        """One connection: ask for the rest, write what comes. Returns when the object is whole."""
        address = await self._origin.address(self._found)
        headers = dict(address.headers) | {"accept-encoding": "identity"}
        offset = self._part.size
        if offset:
            headers["range"] = f"bytes={offset}-"
            if self._found.validator:
                headers["if-range"] = self._found.validator
        try:
            async with self._client.stream("GET", address.url, headers=headers) as response:
                self._begin(response, offset)
                await self._write_all(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise from_http_error(error, self._origin.shown, self._origin.host) from error
        if self._found.size is not None and self._part.size != self._found.size:
            raise FetchFailed(
                ReasonCode.DOWNLOAD_INTERRUPTED,
                f"{self._origin.shown} ended after {bytes_text(self._part.size)}"
                f" of {bytes_text(self._found.size)}",
                transient=True,
            )

    def _begin(self, response: httpx.Response, offset: int) -> None:
        """Judge the answer's head against what was asked; afterwards the part is at the right place."""
        status = response.status_code
        if status == 412 or (status == 416 and offset):
            raise ObjectChanged
        if status not in {200, 206}:
            raise from_status(status, self._origin.shown)
        self._refuse_other_version(response)
        first, total = content_range(response.headers.get("content-range", ""))
        if status == 206 or (offset and first is not None):  # some servers say 200 and send the range
            if first != offset or (total is not None and self._found.size not in {None, total}):
                raise ObjectChanged
            if offset:
                self._watch.resumed(offset)
            return
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        length = response.headers.get("content-length", "")
        if not encoded and length.isdigit() and self._found.size not in {None, int(length)}:
            raise ObjectChanged
        if offset:
            self._part.restart()
            self._watch.resumed(0)
            self._watch.at(0)

    def _refuse_other_version(self, response: httpx.Response) -> None:
        for ours, theirs in (
            (self._found.etag.strip('"'), response.headers.get("etag", "").strip('"')),
            (self._found.modified, response.headers.get("last-modified", "")),
        ):
            if ours and theirs:
                if ours != theirs:
                    raise ObjectChanged
                return

    async def _write_all(self, response: httpx.Response) -> None:
        """Gather chunks into larger writes, made in a thread; what came before a cut is kept."""
        loop = asyncio.get_running_loop()
        waiting = bytearray()
        written_at = loop.time()
        try:
            async for chunk in response.aiter_bytes():
                waiting += chunk
                if (
                    len(waiting) >= self._limits.write_bytes
                    or loop.time() - written_at >= self._limits.write_seconds
                ):
                    data = bytes(waiting)
                    waiting.clear()  # before the write: a cancellation in it must not lead to a second one
                    await self._write(data)
                    written_at = loop.time()
            data = bytes(waiting)
            waiting.clear()
            await self._write(data)
        finally:
            if waiting:  # the connection broke: keep what came
                self._part.write(bytes(waiting))
                self._watch.at(self._part.size)

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        self._watch.room(len(data))
        await asyncio.to_thread(self._part.write, data)
        self._watch.at(self._part.size)

    def _given_up(self, failure: FetchFailed | None) -> FetchFailed:
        """The last word: unreachable when nothing ever came, interrupted when something did."""
        received = self._part.size
        if failure is not None and not received:
            return failure
        of = "" if self._found.size is None else f" of {bytes_text(self._found.size)}"
        last = f": {failure.message}" if failure is not None else ""
        return FetchFailed(
            ReasonCode.DOWNLOAD_INTERRUPTED,
            f"the download of {self._origin.shown} broke after {bytes_text(received)}{of}{last}",
        )
