"""One fetch, from a source that was understood to a finished entry.

The steps, each of which may be the last one before a kill: ask the origin what is there; reuse the
entry if that version is here already; write the objects into a folder under `partial`, going on
where an earlier run stopped; check digests; unpack an archive; mark the folder as finished by
renaming it to `entries`. A file or folder of this machine is used in place and only looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import Scheme
from inferplane.modelstore.archive import is_archive, unpack
from inferplane.modelstore.cache import Cache, Entry, meta_of
from inferplane.modelstore.client import HttpClients
from inferplane.modelstore.content import FIRST_BYTES, refuse_empty, refuse_pointer
from inferplane.modelstore.disk import (
    CONTENT,
    DOWNLOAD,
    META,
    PLAN,
    Stopped,
    StoreFolder,
    boot_id,
    file_digest,
    holds_more_files,
    only_child,
    path_bytes,
    path_digest,
    read_json,
    sync_tree,
    tree_digest,
    write_json,
)
from inferplane.modelstore.failure import FetchFailed, ObjectChanged, disk_full, from_disk_error
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.origin import Listing, Origin, RemoteObject
from inferplane.modelstore.source import Wanted, resolved
from inferplane.modelstore.transfer import Arrived, Watch, transfer

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """How far a fetch is, for everyone who waits for it. Changed in the event loop only."""

    changed: Callable[[], None]
    total_bytes: int | None = None
    message: str = ""
    received: dict[str, int] = field(default_factory=dict)
    resumed: dict[str, int] = field(default_factory=dict)

    @property
    def received_bytes(self) -> int:
        """Bytes that are here, of all objects."""
        return sum(self.received.values())

    @property
    def resumed_from_bytes(self) -> int:
        """Bytes of these that did not have to be fetched again after the last interruption."""
        return sum(self.resumed.values())


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every fetch works with. `long_jobs` runs what takes seconds (hashing, unpacking).

    `free_bytes` tells the space left for a folder. `make_room` drops unused entries until so many
    bytes are free, as far as it can.
    """

    folder: StoreFolder
    cache: Cache
    clients: HttpClients
    limits: StoreLimits
    clock: Callable[[], datetime]
    long_jobs: Executor
    free_bytes: Callable[[Path], int]
    make_room: Callable[[int], Awaitable[None]]
    slots: Slots


class Slots:
    """Bounds on fetches at once: in all, and per host, so that one slow host cannot hold up the others."""

    def __init__(self, limits: StoreLimits) -> None:
        self._all = asyncio.Semaphore(limits.fetches_at_once)
        self._per_host = limits.fetches_per_host
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def busy(self, host: str) -> bool:
        """Whether a fetch from this host would have to wait now."""
        return self._all.locked() or (host in self._hosts and self._hosts[host][0].locked())

    @contextlib.asynccontextmanager
    async def take(self, host: str) -> AsyncIterator[None]:
        """Wait for a place."""
        semaphore, users = self._hosts.get(host, (asyncio.Semaphore(self._per_host), 0))
        self._hosts[host] = (semaphore, users + 1)
        try:
            async with semaphore, self._all:
                yield
        finally:
            semaphore, users = self._hosts.pop(host)
            if users > 1:
                self._hosts[host] = (semaphore, users - 1)


async def fetch(shop: Workshop, wanted: Wanted, source_key: str, progress: Progress) -> Entry:
    """Bring the source here. Raises FetchFailed; cancelled, it leaves what can be resumed."""
    try:
        found = await _resolved(shop, wanted, source_key)
        if isinstance(found, Entry):
            return found
        wanted = found
        if wanted.uri.scheme is not Scheme.FILE:
            await asyncio.to_thread(shop.clients.prepare)
        else:
            return await _Local(shop, wanted, source_key, progress).run()
        return await _Remote(shop, wanted, source_key, progress).run()
    except OSError as error:
        raise from_disk_error(error, str(shop.folder.root)) from error


async def _resolved(shop: Workshop, wanted: Wanted, source_key: str) -> Wanted | Entry:
    """Where the files are; what is here already where a registry does not answer. Raises FetchFailed."""
    try:
        async with asyncio.timeout(shop.limits.first_contact_seconds):
            return await resolved(wanted, shop.clients)
    except FetchFailed as failure:
        known = shop.cache.newest(source_key)
        if not failure.transient or known is None:
            raise
        return known
    except TimeoutError as error:
        raise FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE,
            f"the registry answers too slowly ({wanted.uri.shown})",
            transient=True,
        ) from error


async def long_job(shop: Workshop, job: Callable[[Callable[[], bool]], T]) -> T:
    """Run `job(stopped)` in a thread; when cancelled, tell it to stop and wait until it has, because
    it may be writing into a folder that is about to be removed.
    """
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(shop.long_jobs, job, stop.is_set)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen; the cancellation is what counts
        raise


def look_here(path: Path, shown: str, files_max: int) -> tuple[int, bool, str]:
    """(bytes, is a file, a word for the version) of a path on this machine. Blocks. Raises FetchFailed."""
    try:
        facts = path.stat()
        if path.is_dir():
            if not any(path.iterdir()):
                raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"the folder {shown} is empty")
            if holds_more_files(path, most=files_max):
                raise FetchFailed(
                    ReasonCode.NOT_A_MODEL,
                    f"{shown} holds more than {files_max} files; point the URI at the model's own folder",
                )
            size, is_file = path_bytes(path), False
        elif path.is_file():
            refuse_empty(shown, facts.st_size)
            with path.open("rb") as file:
                refuse_pointer(shown, file.read(FIRST_BYTES))
            size, is_file = facts.st_size, True
        else:
            raise FetchFailed(ReasonCode.NOT_A_MODEL, f"{shown} is neither a file nor a folder")
    except OSError as error:
        raise _local_failure(error, shown) from error
    return size, is_file, f"{facts.st_mtime_ns:x}-{facts.st_size:x}-{facts.st_ino:x}"


class _Remote:
    def __init__(self, shop: Workshop, wanted: Wanted, source_key: str, progress: Progress) -> None:
        self._shop = shop
        self._wanted = wanted
        self._key = source_key
        self._progress = progress
        self._client = shop.clients.new()
        self._origin: Origin = wanted.origin(self._client, shop.clock)

    async def run(self) -> Entry:
        known = self._shop.cache.newest(self._key)
        if known is not None and self._wanted.digest:
            return known  # the digest names the bytes; no need to ask
        if self._shop.slots.busy(self._origin.host):
            self._progress.message = f"waiting for other downloads from {self._origin.host}"
            self._progress.changed()
        async with self._client, self._shop.slots.take(self._origin.host):
            for _ in range(self._shop.limits.replans_max):
                with contextlib.suppress(ObjectChanged):
                    return await self._attempt(known)
        raise FetchFailed(
            ReasonCode.DOWNLOAD_INTERRUPTED, f"what is stored at {self._origin.shown} keeps changing"
        )

    async def _attempt(self, known: Entry | None) -> Entry:
        try:
            listing = await self._list()
        except FetchFailed as failure:
            if failure.transient and known is not None:
                return known  # unreachable: what is here is better than nothing
            raise
        _refuse_clashes(listing, self._origin.shown)
        entry_key = f"{self._key}-{listing.version}"
        entry = self._shop.cache.get(entry_key)
        if entry is not None:
            return entry
        place = self._shop.folder.partials / entry_key
        keep = await asyncio.to_thread(self._prepare, place, listing)
        self._begin(listing)
        try:
            await self._room_for_all(listing, await asyncio.to_thread(_bytes_here, place))
            arrived = await self._transfer_all(listing, place, keep)
        except FetchFailed as failure:
            if failure.reason is ReasonCode.DISK_FULL:
                self._shop.folder.discard(place)  # the space is needed more than the head start
            raise
        return await self._finish(place, listing, arrived)

    async def _list(self) -> Listing:
        await self._shop.clients.check_host(self._origin.host, self._origin.shown)
        tries = self._shop.limits.first_contact_tries
        for attempt in range(1, tries + 1):
            try:
                async with asyncio.timeout(self._shop.limits.first_contact_seconds):
                    return await self._origin.look()
            except FetchFailed as failure:
                if not failure.transient or attempt == tries:
                    raise
            except TimeoutError as error:
                raise FetchFailed(
                    ReasonCode.STORAGE_UNREACHABLE,
                    f"{self._origin.host} answers too slowly ({self._origin.shown})",
                    transient=True,
                ) from error
            await asyncio.sleep(self._shop.limits.backoff_seconds(attempt))
        raise AssertionError("unreachable")

    def _prepare(self, place: Path, listing: Listing) -> bool:
        """Make the folder, and drop those of other versions. True when what it holds may be continued.

        After a start of the machine it may not: what was written last could be missing from it.
        """
        for other in self._shop.folder.partials.glob(f"{self._key}-*"):
            if other != place:
                self._shop.folder.discard(other)
        plan = read_json(place / PLAN)
        keep = plan is not None and plan.get("boot") == boot_id()
        if not keep:
            self._shop.folder.discard(place)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(
            place / PLAN,
            {
                "boot": boot_id(),
                "uri": self._origin.shown,
                "objects": len(listing.objects),
                "total_bytes": listing.total_bytes,
            },
        )
        return keep

    def _begin(self, listing: Listing) -> None:
        self._progress.total_bytes = listing.total_bytes
        self._progress.received.clear()
        self._progress.resumed.clear()
        self._progress.message = ""
        self._progress.changed()

    async def _room_for_all(self, listing: Listing, have: int) -> None:
        total = listing.total_bytes
        if total is None:
            return
        needed = max(0, total - have) + self._shop.limits.disk_reserve_bytes
        root = self._shop.folder.root
        missing = needed - self._shop.free_bytes(root)
        if missing > 0:
            await self._shop.make_room(missing)
        free = self._shop.free_bytes(root)
        if needed > free:
            raise disk_full(needed, free, str(root))

    async def _transfer_all(self, listing: Listing, place: Path, keep: bool) -> dict[str, Arrived]:
        arrived: dict[str, Arrived] = {}
        at_once = asyncio.Semaphore(self._shop.limits.objects_at_once)

        async def one(found: RemoteObject) -> None:
            async with at_once:
                certain = bool(found.validator or found.pinned or (self._wanted.digest and listing.single))
                arrived[found.name] = await transfer(
                    self._client,
                    self._origin,
                    found,
                    _place_of(place, listing, found),
                    keep=keep and certain,
                    ranges=listing.ranges,
                    limits=self._shop.limits,
                    watch=self._watch(found),
                )

        try:
            async with asyncio.TaskGroup() as group:
                for found in listing.objects:
                    group.create_task(one(found))
        except BaseExceptionGroup as failures:
            raise _first(failures) from failures
        return arrived

    def _watch(self, found: RemoteObject) -> Watch:
        progress = self._progress

        def at(size: int) -> None:
            progress.received[found.name] = size
            progress.message = ""
            progress.changed()

        def resumed(size: int) -> None:
            progress.resumed[found.name] = size

        def pausing(message: str) -> None:
            progress.message = message
            progress.changed()

        return Watch(at, resumed, pausing, self._check_room)

    def _check_room(self, count: int) -> None:
        """Raise FetchFailed (DiskFull) when `count` more bytes would eat into the reserve. Any thread."""
        root = self._shop.folder.root
        free = self._shop.free_bytes(root)
        if free < count + self._shop.limits.disk_reserve_bytes:
            raise disk_full(count + self._shop.limits.disk_reserve_bytes, free, str(root))

    async def _finish(self, place: Path, listing: Listing, arrived: dict[str, Arrived]) -> Entry:
        """From complete objects to a marked entry."""
        try:
            self._verify(listing, arrived)
            if listing.single:
                only = _place_of(place, listing, listing.objects[0])
                refuse_empty(self._origin.shown, arrived[listing.objects[0].name].size)
                with only.open("rb") as file:
                    refuse_pointer(self._origin.shown, file.read(FIRST_BYTES))
                if is_archive(only.name):
                    await _unpack(self._shop, only, place)
        except FetchFailed:
            self._shop.folder.discard(place)  # complete and wrong: nothing to resume
            raise
        self._progress.message = ""
        entry = await long_job(
            self._shop,
            lambda stopped: _publish(
                self._shop, place, self._key, _digest_of(listing, arrived), self._origin.shown, stopped
            ),
        )
        self._shop.cache.add(entry)
        return entry

    def _verify(self, listing: Listing, arrived: dict[str, Arrived]) -> None:
        for found in listing.objects:
            got = arrived[found.name].sha256
            if found.sha256 and found.sha256 != got:
                raise FetchFailed(
                    ReasonCode.CHECKSUM_MISMATCH,
                    f"{found.name} of {self._origin.shown} should have sha256:{found.sha256},"
                    f" by the storage's own word, and has sha256:{got}",
                )
        _check_digest(self._wanted, _digest_of(listing, arrived))


class _Local:
    """A path on this machine."""

    def __init__(self, shop: Workshop, wanted: Wanted, source_key: str, progress: Progress) -> None:
        self._shop = shop
        self._wanted = wanted
        self._key = source_key
        self._progress = progress
        self._path = Path(wanted.uri.path)

    async def run(self) -> Entry:
        size, is_file, version = await asyncio.to_thread(
            look_here, self._path, self._wanted.uri.shown, self._shop.limits.objects_max
        )
        if is_file and is_archive(self._path.name):
            return await self._archive(size, version)
        digest = ""
        if self._wanted.digest or size <= self._shop.limits.digest_inline_bytes_max:
            digest = await long_job(self._shop, lambda stopped: self._read(stopped))
            _check_digest(self._wanted, digest)
        self._progress.received["file"] = size
        self._progress.total_bytes = size
        now = self._shop.clock()
        return Entry("", self._key, self._path, digest, size, now, now)

    def _read(self, stopped: Callable[[], bool]) -> str:
        try:
            return path_digest(self._path, stopped)
        except OSError as error:
            raise _local_failure(error, self._wanted.uri.shown) from error

    async def _archive(self, size: int, version: str) -> Entry:
        entry_key = f"{self._key}-{version}"
        entry = self._shop.cache.get(entry_key)
        if entry is not None:
            return entry
        place = self._shop.folder.partials / entry_key
        self._shop.folder.discard(place)
        place.mkdir(parents=True, mode=0o700)
        self._progress.total_bytes = size
        try:
            digest = await long_job(self._shop, lambda stopped: file_digest(self._path, stopped))
            _check_digest(self._wanted, digest)
            await _unpack(self._shop, self._path, place)
        except FetchFailed:
            self._shop.folder.discard(place)
            raise
        self._progress.received["file"] = size
        entry = await long_job(
            self._shop,
            lambda stopped: _publish(self._shop, place, self._key, digest, self._wanted.uri.shown, stopped),
        )
        self._shop.cache.add(entry)
        return entry


def _place_of(place: Path, listing: Listing, found: RemoteObject) -> Path:
    """Where an object is written: an archive beside the content that will come out of it."""
    inside = DOWNLOAD if listing.single and is_archive(found.name) else CONTENT
    return place / inside / found.name


def _refuse_clashes(listing: Listing, shown: str) -> None:
    """A bucket may hold both `a` and `a/b`, or one name in two spellings; a file system may not."""
    names = {found.name for found in listing.objects}
    above = {
        "/".join(parts[:n]) for parts in (name.split("/") for name in names) for n in range(1, len(parts))
    }
    clash = min(names & above, default="")
    if clash or len(names) != len(listing.objects):
        raise FetchFailed(
            ReasonCode.NOT_A_MODEL,
            f"{shown} holds objects that cannot lie in one folder"
            + (
                f": “{clash}” is both an object and a folder"
                if clash
                else ", because their names are the same"
            ),
        )


def _bytes_here(place: Path) -> int:
    """Bytes that an earlier run has left in a partial."""
    return sum(path_bytes(place / inside) for inside in (CONTENT, DOWNLOAD) if (place / inside).exists())


async def _unpack(shop: Workshop, archive: Path, place: Path) -> None:
    """Unpack into the partial's content, anew, whatever an earlier run had unpacked."""
    shop.folder.discard(place / CONTENT)

    def job(stopped: Callable[[], bool]) -> None:
        def room(count: int) -> None:
            if stopped():
                raise Stopped
            free = shop.free_bytes(shop.folder.root)
            if free < count + shop.limits.disk_reserve_bytes:
                raise disk_full(count + shop.limits.disk_reserve_bytes, free, str(shop.folder.root))

        unpack(archive, place / CONTENT, shop.limits, room)
        if archive.is_relative_to(place):
            shutil.rmtree(archive.parent)

    await long_job(shop, job)


def _publish(
    shop: Workshop, place: Path, source_key: str, digest: str, shown: str, stopped: Callable[[], bool]
) -> Entry:
    """Turn a complete partial into an entry. The rename is the moment at which it exists."""
    content = place / CONTENT
    children = list(content.iterdir())
    single = children[0] if len(children) == 1 and children[0].is_file() else only_child(content)
    size = path_bytes(content)
    now = shop.clock()
    entry = Entry(place.name, source_key, single, digest, size, now, now)
    write_json(place / META, meta_of(entry, place, shown))
    for leftover in place.glob(f"{PLAN}*"):
        leftover.unlink()
    sync_tree(place)
    if stopped():
        raise Stopped  # an entry that nobody was told of would count nowhere
    target = shop.folder.entries / place.name
    shop.folder.discard(target)  # only there when its bookkeeping could not be read
    place.rename(target)
    return Entry(place.name, source_key, target / single.relative_to(place), digest, size, now, now)


def _digest_of(listing: Listing, arrived: dict[str, Arrived]) -> str:
    if listing.single:
        return f"sha256:{arrived[listing.objects[0].name].sha256}"
    return tree_digest((name, got.sha256) for name, got in arrived.items())


def _check_digest(wanted: Wanted, found: str) -> None:
    if wanted.digest and wanted.digest != found:
        raise FetchFailed(
            ReasonCode.CHECKSUM_MISMATCH,
            f"{wanted.uri.shown} should have {wanted.digest} and has {found}",
        )


def _local_failure(error: OSError, shown: str) -> FetchFailed:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"there is no file or folder at {shown}")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return FetchFailed(
            ReasonCode.STORAGE_FORBIDDEN, f"the user that runs the platform may not read {shown}"
        )
    return FetchFailed(
        ReasonCode.STORAGE_UNREACHABLE, f"{shown} cannot be read: {error.strerror or type(error).__name__}"
    )


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception to speak of when several objects failed: a change of the source before all else."""
    flat = [
        _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
        for failure in failures.exceptions
    ]
    return next((failure for failure in flat if isinstance(failure, ObjectChanged)), flat[0])
