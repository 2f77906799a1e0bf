"""How many rows a call of the model has, asked of the model servers.

The gateway sees requests, not batches: those are made behind it. So the replicas of whoever had requests
are asked for their metrics, over their sockets, now and then. A replica that does not answer, or whose server
counts no batches (a manifest's own command, say), is left out: this is for charts, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from inferplane.gateway.config import parse_address
from inferplane.gateway.route_table import Upstream

ENDPOINTS_ASKED_MAX = 200
"""At one look; the others have no batch size then."""
ASKED_AT_ONCE_MAX = 8
ANSWER_SECONDS_MAX = 1.0
LOOK_SECONDS_MAX = 1.5
"""For all of them: a look that took longer would make the charts coarse."""
ANSWER_BYTES_MAX = 1024 * 1024

_LINE = re.compile(rb"^inferplane_model_batch_rows_(sum|count)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_REQUEST = b"GET /metrics HTTP/1.1\r\nhost: replica\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Batches:
    """Calls of a model, and the rows of them all."""

    calls: int = 0
    rows: float = 0.0

    @property
    def rows_of_one(self) -> float | None:
        """The mean; None without a call."""
        return self.rows / self.calls if self.calls else None

    def plus(self, other: Batches) -> Batches:
        """The sum."""
        return Batches(self.calls + other.calls, self.rows + other.rows)

    def since(self, earlier: Batches) -> Batches:
        """What came since then; everything, if another server began anew in between."""
        if earlier.calls > self.calls:
            return self
        return Batches(self.calls - earlier.calls, self.rows - earlier.rows)


class BatchMeter:
    """`replicas(uid)` are those of an endpoint that may get requests."""

    def __init__(self, replicas: Callable[[str], Iterable[Upstream]]) -> None:
        self._replicas = replicas
        self._last: dict[tuple[str, str], Batches] = {}

    async def since_last(self, uids: Iterable[str]) -> Mapping[tuple[str, int], float]:
        """Rows in one call of the model since it was asked for last, by uid and revision."""
        asked = [
            (uid, each)
            for uid in list(uids)[:ENDPOINTS_ASKED_MAX]
            for each in self._replicas(uid)
            if parse_address(each.address).path
        ]
        room = asyncio.Semaphore(ASKED_AT_ONCE_MAX)
        answers = await _all_in_time([_ask(each.address, room) for _, each in asked])
        sums: dict[tuple[str, int], Batches] = {}
        seen: dict[tuple[str, str], Batches] = {}
        for (uid, replica), present in zip(asked, answers, strict=True):
            if present is None:
                continue
            # By its address too: a replica that was made anew under the name has counted from nothing.
            place = (uid, f"{replica.replica} {replica.address}")
            seen[place] = present
            came = present.since(self._last.get(place, Batches()))
            key = (uid, replica.revision)
            sums[key] = sums.get(key, Batches()).plus(came)
        self._last = {place: was for place, was in self._last.items() if self._is_there(*place)} | seen
        return {key: size for key, came in sums.items() if (size := came.rows_of_one) is not None}

    def _is_there(self, uid: str, place: str) -> bool:
        return any(f"{each.replica} {each.address}" == place for each in self._replicas(uid))


def batches_in(text: bytes) -> Batches | None:
    """What a model server's metrics say of its batches; None when they say nothing."""
    said = {bytes(kind): value for kind, value in _LINE.findall(text)}
    try:
        return Batches(int(float(said[b"count"])), float(said[b"sum"]))
    except (KeyError, ValueError, OverflowError):
        return None


async def _all_in_time(asking: list[Coroutine[None, None, Batches | None]]) -> list[Batches | None]:
    tasks = [asyncio.ensure_future(each) for each in asking]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=LOOK_SECONDS_MAX)
        return [task.result() if task.done() else None for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(address: str, room: asyncio.Semaphore) -> Batches | None:
    async with room:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return batches_in(await _get(parse_address(address).path))
    return None


async def _get(socket: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(_REQUEST)
        text = bytearray()
        while len(text) < ANSWER_BYTES_MAX and (piece := await reader.read(65536)):
            text += piece
        return bytes(text)
    finally:
        writer.close()
