"""Pre-flight of a source: does the storage answer, do the credentials fit, will it fit on the disk.

The same questions that a fetch asks first, without writing anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from inferplane.domain.model_files import check_names
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.storage_uri import Scheme
from inferplane.modelstore.archive import is_archive
from inferplane.modelstore.client import HttpClients
from inferplane.modelstore.disk import files_under
from inferplane.modelstore.failure import FetchFailed, bytes_text, disk_full
from inferplane.modelstore.fetch import look_here
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.source import Source, Wanted, resolved, understand

_CREDENTIALS = {ReasonCode.STORAGE_UNAUTHORIZED, ReasonCode.STORAGE_FORBIDDEN}
_FILES = {ReasonCode.NOT_A_MODEL, ReasonCode.UNSAFE_ARCHIVE}


async def probe(
    source: Source,
    environment: Mapping[str, str],
    *,
    clients: HttpClients,
    clock: Callable[[], datetime],
    limits: StoreLimits,
    free_bytes: Callable[[], int],
    suffixes: tuple[str, ...] = (),
) -> tuple[Check, ...]:
    """The checks `storage`, `credentials`, `size` and `files`, as far as they can be made.

    `suffixes` are the endings of which the model server will want one, () when they are not known.

    A failure of one ends the list, because the later ones depend on it.
    """
    try:
        wanted = understand(source, environment)
    except FetchFailed as failure:
        return _failed(failure)
    try:
        async with asyncio.timeout(limits.probe_seconds):
            wanted = await resolved(wanted, clients)
            names, size, single = await _look(wanted, clients, clock, limits)
    except FetchFailed as failure:
        return _failed(failure)
    except TimeoutError:
        return _failed(
            FetchFailed(
                ReasonCode.STORAGE_UNREACHABLE,
                f"{wanted.uri.shown} did not answer within {limits.probe_seconds:g} s",
            )
        )
    return (
        Check("storage", True, None, f"{wanted.uri.shown} answers"),
        Check("credentials", True, None, "access is granted"),
        _size(size, limits, free_bytes, in_place=wanted.uri.scheme is Scheme.FILE),
        # What an archive holds is known only once it is unpacked.
        check_names(names, () if single and is_archive(names[0]) else suffixes, single=single),
    )


async def _look(
    wanted: Wanted, clients: HttpClients, clock: Callable[[], datetime], limits: StoreLimits
) -> tuple[list[str], int | None, bool]:
    """(file names, bytes if known, whether the URI names one file) of what is stored."""
    if wanted.uri.scheme is Scheme.FILE:
        return await asyncio.to_thread(_look_here, wanted, limits.objects_max)
    await asyncio.to_thread(clients.prepare)
    async with clients.new() as client:
        origin = wanted.origin(client, clock)
        await clients.check_host(origin.host, origin.shown)
        listing = await origin.look()
    return [found.name for found in listing.objects], listing.total_bytes, listing.single


def _look_here(wanted: Wanted, files_max: int) -> tuple[list[str], int, bool]:
    path = Path(wanted.uri.path)
    size, is_file, _ = look_here(path, wanted.uri.shown, files_max)
    names = [path.name] if is_file else [str(f.relative_to(path)) for f in files_under(path)]
    return names, size, is_file


def _failed(failure: FetchFailed) -> tuple[Check, ...]:
    action = reason_of(failure.reason).next_action
    if failure.reason in _CREDENTIALS:
        return (
            Check("storage", True, None, "the storage answers"),
            Check("credentials", False, failure.reason, failure.message, action),
        )
    if failure.reason in _FILES:
        return (
            Check("storage", True, None, "the storage answers"),
            Check("credentials", True, None, "access is granted"),
            Check("files", False, failure.reason, failure.message, action),
        )
    return (Check("storage", False, failure.reason, failure.message, action),)


def _size(size: int | None, limits: StoreLimits, free_bytes: Callable[[], int], *, in_place: bool) -> Check:
    if size is None:
        return Check("size", True, None, "the storage does not say how large it is")
    if in_place:
        return Check("size", True, None, f"{bytes_text(size)}, used where it lies")
    free = free_bytes()
    needed = size + limits.disk_reserve_bytes
    if needed > free:
        failure = disk_full(needed, free, "the platform's home folder")
        return Check("size", False, failure.reason, failure.message, reason_of(failure.reason).next_action)
    return Check("size", True, None, f"{bytes_text(size)} to fetch, {bytes_text(free)} free")
