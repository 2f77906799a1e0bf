"""Counts the gateway's access log into the store, a part at a time, for as long as the platform runs.

The log is read in a thread. What a part said and where it ends are stored in one transaction, so a part
that was read and not stored is read again, and one that was stored never is. If the store is away, the
log waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from inferplane.domain.errors import Unavailable
from inferplane.gateway.usage_log import read_on
from inferplane.observability import get_logger
from inferplane.store.sql import Store

LOOK_SECONDS = 1.0
USAGE_KEPT = timedelta(days=400)
EXPIRED_KEYS_KEPT = timedelta(days=30)
"""So long an expired key stays in the list, that people see why it no longer works."""
PRUNE_EVERY = timedelta(hours=1)
ACCESS_LOG = "access"

log = get_logger("controllers.usage")


class UsageCollector:
    """Reads `access_log` on from where it was read before; None where there is no gateway."""

    def __init__(self, store: Store, access_log: Path | None, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._access_log = access_log
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now and then, until `close`."""
        self._task = asyncio.create_task(self._collect_forever(), name="usage")

    async def close(self) -> None:
        """Stop; what is not counted yet is counted at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def collect(self) -> None:
        """Count everything that is there. Raises Unavailable, OSError."""
        while self._access_log is not None:
            async with self._store.read() as tx:
                position = await tx.log_position(ACCESS_LOG)
            part = await asyncio.to_thread(read_on, self._access_log, position)
            if part.lost:
                log.warning("part of the access log went before it was counted", file=position.file)
            if part.position != position:
                async with self._store.transaction(durable=False) as tx:
                    await tx.count_usage(ACCESS_LOG, part.position, part.usage)
            if not part.more:
                return

    async def prune(self) -> None:
        """Forget what is older than it is kept. Raises Unavailable."""
        now = self._clock()
        async with self._store.transaction(durable=False) as tx:
            await tx.prune_usage(now - USAGE_KEPT)
            await tx.prune_endpoint_keys(now, EXPIRED_KEYS_KEPT // timedelta(microseconds=1))

    async def _collect_forever(self) -> None:
        prune_at = self._clock()
        answering = True
        while True:
            try:
                await self.collect()
                if self._clock() >= prune_at:
                    await self.prune()
                    prune_at = self._clock() + PRUNE_EVERY
                answering = True
            except (Unavailable, OSError) as error:
                if answering:
                    log.warning("usage is not counted at the moment", error=str(error))
                answering = False
            except Exception:  # a loop that died in silence would count nothing any more
                log.exception("usage is not counted at the moment")
            await asyncio.sleep(LOOK_SECONDS)
