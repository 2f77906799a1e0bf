"""The model store: endpoints say what they want, and see where it is.

Each endpoint (by uid) has one reference: what it wants, and what it has. Equal wants (same URI,
digest and credentials) share one fetch and one entry on disk. References are kept on disk and
entries appear whole, so after a kill the state is what the folder says: what was finished is
present, what was under way is absent until it is asked for again, and then goes on where it stopped.

Everything here runs in one event loop; what blocks runs in threads. Failures are states, never
exceptions: `state(uid)` is the whole answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import redacted
from inferplane.modelstore.cache import Cache, Entry
from inferplane.modelstore.client import HttpClients
from inferplane.modelstore.disk import (
    Stopped,
    StoreFolder,
    from_text,
    path_digest,
    read_json,
    to_text,
    write_json,
)
from inferplane.modelstore.failure import FetchFailed, from_disk_error
from inferplane.modelstore.fetch import Progress, Slots, Workshop, fetch, long_job
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.probe import probe
from inferplane.modelstore.source import Source, Wanted, understand
from inferplane.observability import get_logger

__all__ = ["ModelStore", "Source"]

LONG_JOBS_AT_ONCE = 16  # threads are cheap; few would let large archives hold up small files
HELD_PREVIOUS_MAX = 1  # entries kept for replicas of the revision before, while the new one comes up

log = get_logger("modelstore")

Clock = Callable[[], datetime]


@dataclass(slots=True, eq=False)
class _Fetch:
    """One fetch under way and the endpoints that wait for it."""

    key: str
    wanted: Wanted
    uids: set[str]
    started_at: datetime
    progress: Progress
    task: asyncio.Task[None] | None = None
    samples: deque[tuple[float, int]] = field(default_factory=deque)
    told_at: float = float("-inf")
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Reference:
    """What one endpoint wants and has. `entry` names its folder under `entries`, "" for none or for a
    model used in place; `held` are entries it used before.
    """

    uid: str
    source_key: str
    state: ArtifactState
    entry: str = ""
    held: tuple[str, ...] = ()
    fetch: _Fetch | None = None
    on_change: Callable[[], None] | None = None


class ModelStore:
    """See the module's story. Construct, `start`, use from one event loop, `close`.

    `environment` holds the few variables of the platform's own environment that may shape requests
    (proxies, endpoints of emulators, certificates). `free_bytes` tells the space left for a folder.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        cache_bytes_max: int,
        environment: Mapping[str, str] | None = None,
        limits: StoreLimits | None = None,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        self._clock = clock
        self._environment = dict(environment or {})
        self._limits = limits or StoreLimits()
        self._folder = StoreFolder(root)
        self._cache = Cache(self._folder, cache_bytes_max, clock)
        self._clients = HttpClients(self._environment, self._limits)
        self._free_bytes = free_bytes or _free_bytes
        self._references: dict[str, _Reference] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._ending: dict[str, set[asyncio.Task[None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._salt = b""
        self._shop: Workshop | None = None

    async def start(self) -> None:
        """Read the folder, and clean what an earlier process left half-done."""
        await asyncio.to_thread(self._load)
        self._shop = Workshop(
            folder=self._folder,
            cache=self._cache,
            clients=self._clients,
            limits=self._limits,
            clock=self._clock,
            long_jobs=ThreadPoolExecutor(LONG_JOBS_AT_ONCE, "modelstore"),
            free_bytes=self._free_bytes,
            make_room=self._make_room,
            slots=Slots(self._limits),
        )
        self._trim()

    async def close(self) -> None:
        """Stop every fetch. What has arrived stays, to go on from after the next start."""
        tasks = [fetch.task for fetch in self._fetches.values() if fetch.task is not None]
        for fetching in self._fetches.values():
            if fetching.timer is not None:
                fetching.timer.cancel()
        tasks += [*self._background, *(task for ending in self._ending.values() for task in ending)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._shop is not None:
            self._shop.long_jobs.shutdown(wait=False, cancel_futures=True)

    def request(self, uid: str, source: Source, on_change: Callable[[], None]) -> None:
        """Want `source` for `uid`: begin to fetch it, join a fetch, or notice that it is here.

        Returns at once; `on_change` is called in the event loop when `state(uid)` has changed, a few
        times a second at most while bytes come. Asked again for the same, it does nothing while that
        is under way or here, and tries anew after a failure. Asked for something else, it turns to that.
        """
        try:
            wanted = understand(source, self._environment)
        except FetchFailed as failure:
            self._refuse(uid, source, failure, on_change)
            return
        key = wanted.key(self._salt)
        before = self._references.get(uid)
        if before is not None and before.source_key == key:
            before.on_change = on_change
            if before.fetch is not None or before.state.phase is ArtifactPhase.PRESENT:
                return
        if before is not None:
            self._turn_from(before)
        reference = _Reference(uid, key, self._new_state(wanted), held=_held(before), on_change=on_change)
        self._references[uid] = reference
        if self._write(reference):
            self._join(reference, wanted)

    def state(self, uid: str) -> ArtifactState:
        """Where the endpoint's model is; ABSENT for an unknown uid."""
        reference = self._references.get(uid)
        if reference is None:
            return ArtifactState()
        if reference.fetch is None:
            return reference.state
        progress = reference.fetch.progress
        return replace(
            reference.state,
            received_bytes=progress.received_bytes,
            total_bytes=progress.total_bytes,
            resumed_from_bytes=progress.resumed_from_bytes,
            rate_bytes_per_second=_rate(reference.fetch.samples),
            message=progress.message,
        )

    async def release(self, uid: str) -> None:
        """Forget the endpoint. A fetch that nobody else wants ends and its bytes are dropped; finished
        models that nobody uses stay in the cache as far as its limit allows. Harmless when unknown.
        """
        reference = self._references.pop(uid, None)
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._folder.ref_path(uid).unlink()
        if reference is None:
            return
        ended = self._leave(reference)
        if ended is not None:
            await asyncio.wait([ended])
        self._drop_unwanted_partials(reference.source_key)
        self._trim()

    def references(self) -> frozenset[str]:
        """Every uid that wants or has something here."""
        return frozenset(self._references)

    async def probe(self, source: Source, suffixes: tuple[str, ...] = ()) -> tuple[Check, ...]:
        """What would happen if `source` were requested, and whether it holds one file with one of the
        `suffixes`; changes nothing, takes a few seconds at most."""
        return await probe(
            source,
            self._environment,
            clients=self._clients,
            clock=self._clock,
            limits=self._limits,
            free_bytes=partial(self._free_bytes, self._folder.root),
            suffixes=suffixes,
        )

    # How a fetch begins and ends.

    def _join(self, reference: _Reference, wanted: Wanted) -> None:
        fetching = self._fetches.get(reference.source_key)
        if fetching is None:
            fetching = self._begin(reference, wanted)
        fetching.uids.add(reference.uid)
        reference.fetch = fetching
        reference.state = replace(reference.state, started_at=fetching.started_at)

    def _begin(self, reference: _Reference, wanted: Wanted) -> _Fetch:
        fetching = _Fetch(
            key=reference.source_key,
            wanted=wanted,
            uids=set(),
            started_at=self._clock(),
            progress=Progress(lambda: self._progressed(fetching)),
        )
        self._fetches[fetching.key] = fetching
        fetching.task = asyncio.create_task(self._run(fetching))
        return fetching

    async def _run(self, fetching: _Fetch) -> None:
        assert self._shop is not None, "start() comes first"
        try:
            while before := self._ending.get(fetching.key):  # a cancelled one may still be writing
                await asyncio.wait(before)
            entry = await fetch(self._shop, fetching.wanted, fetching.key, fetching.progress)
        except FetchFailed as failure:
            self._failed(fetching, failure)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a bug must not leave endpoints waiting for ever; it is logged whole
            log.exception("a fetch failed unexpectedly", uri=fetching.wanted.uri.shown)
            self._failed(
                fetching,
                FetchFailed(
                    ReasonCode.STORAGE_UNREACHABLE,
                    f"{fetching.wanted.uri.shown} could not be fetched ({type(error).__name__})",
                ),
            )
        else:
            self._arrived(fetching, entry)

    def _arrived(self, fetching: _Fetch, entry: Entry) -> None:
        self._end(fetching)
        self._cache.touch(entry.key)
        progress = fetching.progress
        waiting = [self._references[uid] for uid in sorted(fetching.uids)]
        for reference in waiting:
            reference.fetch = None
            reference.entry = entry.key
            reference.state = replace(
                reference.state,
                phase=ArtifactPhase.PRESENT,
                path=str(entry.path),
                digest=entry.digest,
                received_bytes=progress.received_bytes or entry.size,
                total_bytes=progress.received_bytes or entry.size,
                resumed_from_bytes=progress.resumed_from_bytes,
                rate_bytes_per_second=0.0,
                finished_at=self._clock(),
                reason=None,
                message="",
            )
            self._write(reference)
        if not entry.digest:
            self._spawn(self._digest_later(entry, {reference.uid for reference in waiting}))
        self._trim()
        self._tell(waiting)

    def _failed(self, fetching: _Fetch, failure: FetchFailed) -> None:
        self._end(fetching)
        log.info(
            "a model could not be fetched",
            uri=fetching.wanted.uri.shown,
            reason=failure.reason.value,
            message=failure.message,
        )
        waiting = [self._references[uid] for uid in sorted(fetching.uids)]
        for reference in waiting:
            reference.fetch = None
            reference.state = replace(
                reference.state,
                phase=ArtifactPhase.FAILED,
                received_bytes=fetching.progress.received_bytes,
                total_bytes=fetching.progress.total_bytes,
                resumed_from_bytes=fetching.progress.resumed_from_bytes,
                finished_at=self._clock(),
                reason=failure.reason,
                message=failure.message,
            )
        self._sweep()
        self._tell(waiting)

    def _end(self, fetching: _Fetch) -> None:
        if self._fetches.get(fetching.key) is fetching:
            del self._fetches[fetching.key]
        if fetching.timer is not None:
            fetching.timer.cancel()
            fetching.timer = None

    def _refuse(self, uid: str, source: Source, failure: FetchFailed, on_change: Callable[[], None]) -> None:
        """A source that cannot even be tried: failed from the start."""
        before = self._references.get(uid)
        if before is not None:
            self._turn_from(before)
        now = self._clock()
        state = ArtifactState(
            phase=ArtifactPhase.FAILED,
            uri=redacted(source.uri),
            started_at=now,
            finished_at=now,
            reason=failure.reason,
            message=failure.message,
        )
        reference = _Reference(uid, "", state, held=_held(before), on_change=on_change)
        self._references[uid] = reference
        self._write(reference)
        asyncio.get_running_loop().call_soon(self._tell, [reference])

    def _turn_from(self, before: _Reference) -> None:
        """The endpoint wants something else now: drop what only it was fetching."""

        async def drop(ended: asyncio.Task[None]) -> None:
            await asyncio.wait([ended])
            self._drop_unwanted_partials(before.source_key)

        ended = self._leave(before)
        if ended is not None:
            self._spawn(drop(ended))

    def _leave(self, reference: _Reference) -> asyncio.Task[None] | None:
        """Take the endpoint out of its fetch; the last one to leave ends it. Returns the task that is
        ending, if any.
        """
        fetching, reference.fetch = reference.fetch, None
        if fetching is None:
            return None
        fetching.uids.discard(reference.uid)
        task = fetching.task
        if fetching.uids or task is None:
            return None
        self._end(fetching)
        task.cancel()
        self._ending.setdefault(fetching.key, set()).add(task)
        task.add_done_callback(lambda _: self._ended(fetching.key, task))
        return task

    def _ended(self, source_key: str, task: asyncio.Task[None]) -> None:
        ending = self._ending.get(source_key, set())
        ending.discard(task)
        if not ending:
            self._ending.pop(source_key, None)

    def _drop_unwanted_partials(self, source_key: str) -> None:
        if not source_key or any(r.source_key == source_key for r in self._references.values()):
            return
        for leftover in self._folder.partials.glob(f"{source_key}-*"):
            self._folder.discard(leftover)
        self._sweep()

    # Telling.

    def _progressed(self, fetching: _Fetch) -> None:
        """Bytes came: tell now if it is time, else when it will be."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        samples = fetching.samples
        samples.append((now, fetching.progress.received_bytes))
        while len(samples) > 2 and now - samples[0][0] > self._limits.rate_window_seconds:
            samples.popleft()
        if fetching.timer is not None:
            return
        wait = fetching.told_at + self._limits.notify_seconds - now
        if wait <= 0:
            self._tell_waiting(fetching)
        else:
            fetching.timer = loop.call_later(wait, self._tell_waiting, fetching)

    def _tell_waiting(self, fetching: _Fetch) -> None:
        fetching.timer = None
        fetching.told_at = asyncio.get_running_loop().time()
        self._tell([self._references[uid] for uid in sorted(fetching.uids)])

    def _tell(self, references: list[_Reference]) -> None:
        for reference in references:
            if reference.on_change is None or self._references.get(reference.uid) is not reference:
                continue
            try:
                reference.on_change()
            except Exception:  # one listener's bug must not keep the news from the others
                log.exception("a listener failed", uid=reference.uid)

    # Disk and cache.

    def _load(self) -> None:
        self._folder.create()
        self._folder.clean_leftovers()
        self._salt = self._folder.salt()
        self._cache.load()
        for path in sorted(self._folder.refs.glob("*.json")):
            record = read_json(path)
            if record is not None:
                self._references[path.stem] = self._restored(path.stem, record)
        wanted = {reference.source_key for reference in self._references.values()}
        for leftover in self._folder.partials.iterdir():
            if leftover.name.partition("-")[0] not in wanted:
                self._folder.discard(leftover)
        self._folder.empty_trash()

    def _restored(self, uid: str, record: Mapping[str, Any]) -> _Reference:
        """A reference as an earlier process left it: present if its files are, else absent."""
        entry_key, path = str(record.get("entry") or ""), str(record.get("path") or "")
        entry = self._cache.get(entry_key) if entry_key else None
        state = ArtifactState(
            uri=str(record.get("uri") or ""), started_at=from_text(record.get("started_at"))
        )
        if path and (entry is not None or not entry_key):
            size = record.get("bytes")
            count = size if isinstance(size, int) else 0
            state = replace(
                state,
                phase=ArtifactPhase.PRESENT,
                path=str(entry.path) if entry is not None else path,
                digest=str(record.get("digest") or ""),
                received_bytes=count,
                total_bytes=count,
                finished_at=from_text(record.get("finished_at")),
            )
        held = record.get("held")
        return _Reference(
            uid,
            str(record.get("source_key") or ""),
            state,
            entry=entry_key if entry is not None else "",
            held=tuple(str(key) for key in held) if isinstance(held, list) else (),
        )

    def _write(self, reference: _Reference) -> bool:
        """Keep a reference on disk. When that fails, the endpoint's fetch has failed."""
        state = reference.state
        record = {
            "source_key": reference.source_key,
            "entry": reference.entry,
            "held": list(reference.held),
            "uri": state.uri,
            "path": state.path,
            "digest": state.digest,
            "bytes": state.received_bytes,
            "started_at": to_text(state.started_at),
            "finished_at": to_text(state.finished_at),
        }
        try:
            write_json(self._folder.ref_path(reference.uid), record)
        except OSError as error:
            failure = from_disk_error(error, str(self._folder.root))
            reference.state = replace(
                state,
                phase=ArtifactPhase.FAILED,
                path="",
                reason=failure.reason,
                message=failure.message,
                finished_at=self._clock(),
            )
            asyncio.get_running_loop().call_soon(self._tell, [reference])
            return False
        return True

    def _new_state(self, wanted: Wanted) -> ArtifactState:
        return ArtifactState(phase=ArtifactPhase.FETCHING, uri=wanted.uri.shown, started_at=self._clock())

    async def _digest_later(self, entry: Entry, uids: set[str]) -> None:
        """Hash a large model that is used in place, while it is already being served."""
        assert self._shop is not None
        try:
            digest = await long_job(self._shop, lambda stopped: path_digest(entry.path, stopped))
        except (OSError, Stopped):
            return  # it is shown without a digest
        told: list[_Reference] = []
        for uid in sorted(uids):
            reference = self._references.get(uid)
            if reference is not None and reference.state.path == str(entry.path):
                reference.state = replace(reference.state, digest=digest)
                self._write(reference)
                told.append(reference)
        self._tell(told)

    def _in_use(self) -> set[str]:
        """Entries that endpoints use, and those of sources being fetched, which may turn out to be them."""
        used = {key for reference in self._references.values() for key in (reference.entry, *reference.held)}
        for source_key in self._fetches:
            newest = self._cache.newest(source_key)
            if newest is not None:
                used.add(newest.key)
        return used

    def _trim(self) -> None:
        if self._cache.trim(self._in_use()):
            self._sweep()

    async def _make_room(self, missing: int) -> None:
        """Free space for a download, and wait until it is free."""
        if self._cache.make_room(missing, self._in_use()):
            await asyncio.to_thread(self._folder.empty_trash)

    def _sweep(self) -> None:
        async def sweep() -> None:
            await asyncio.to_thread(self._folder.empty_trash)

        self._spawn(sweep())

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(job)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _held(before: _Reference | None) -> tuple[str, ...]:
    """Entries to keep for an endpoint that turns to another source: its replicas may still use them."""
    if before is None:
        return ()
    if before.entry:
        return (before.entry, *before.held)[:HELD_PREVIOUS_MAX]
    return before.held


def _rate(samples: deque[tuple[float, int]]) -> float:
    """Bytes a second over the samples' window; 0 before there is a window."""
    if len(samples) < 2:
        return 0.0
    (first_at, first), (last_at, last) = samples[0], samples[-1]
    return max(0, last - first) / (last_at - first_at) if last_at > first_at else 0.0


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
