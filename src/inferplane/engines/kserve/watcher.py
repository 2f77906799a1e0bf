"""One kind of object of one cluster, kept up to date: listed once, then watched from there on.

A watch ends all the time: the API server ends it after some minutes, load balancers cut it, connections die. It is
opened again where it ended, which costs nothing at rest. Only when the API server has forgotten that
moment (410) all is listed anew, and what vanished meanwhile is noticed by that. Whatever goes wrong is tried again
for ever, after pauses that grow and are jittered, so that many control planes do not come back at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from inferplane.engines.kserve.cache import Cache, version_of
from inferplane.engines.kserve.client import Busy, Kind, KubeClient, TooOld
from inferplane.engines.kserve.http_api import ApiError
from inferplane.engines.kserve.raw import Raw, text
from inferplane.observability import get_logger

PAUSE_SECONDS = 0.25
PAUSE_SECONDS_MAX = 5.0
REFUSED_PAUSE_SECONDS = 30.0
"""Between tries where the credentials may not see it: somebody has to grant it."""

log = get_logger("engines.kserve")


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched. Of what is `optional` an answer that it may not be seen is as good as having none."""

    kind: Kind
    selector: str = ""
    optional: bool = False


class Watcher:
    """`changed(namespaces)` is called where something changed, `reached(kind, error)` at each success (None) and
    each failure.
    """

    def __init__(
        self,
        watched: Watched,
        client: KubeClient,
        cache: Cache,
        *,
        changed: Callable[[set[str]], None],
        reached: Callable[[Kind, ApiError | None], None],
        chance: random.Random,
    ) -> None:
        self._watched = watched
        self._client = client
        self._cache = cache
        self._changed = changed
        self._reached = reached
        self._chance = chance
        self._version = ""
        self._synced = asyncio.Event()

    @property
    def is_synced(self) -> bool:
        """Whether all was listed at least once."""
        return self._synced.is_set()

    async def synced(self) -> None:
        """Until all was listed."""
        await self._synced.wait()

    def put(self, raw: Raw) -> None:
        """The answer to a write, ahead of the watch; nothing that the watch has gone past."""
        seen = int(self._version) if self._version.isascii() and self._version.isdigit() else 0
        if version_of(raw) > seen and self._cache.put(self._watched.kind, raw):
            self._changed({text(raw, "metadata", "namespace") or text(raw, "metadata", "name")})

    async def run(self) -> None:
        """For ever."""
        pause = PAUSE_SECONDS
        while True:
            self._is_well = False
            after = 0.0
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except TooOld:
                self._version = ""
            except ApiError as error:
                after = self._failed(error)
            except Exception as error:  # noqa: BLE001 - a watch that ended for good would look like a quiet cluster
                what = f"{type(error).__name__}: {error}"  # no traceback: its frames hold objects of others
                log.error("kserve.watch-failed", kind=self._watched.kind.plural, error=what)
                self._version = ""
                after = self._failed(ApiError(f"what it sent could not be read: {type(error).__name__}"))
            pause = PAUSE_SECONDS if self._is_well else min(pause * 2, PAUSE_SECONDS_MAX)
            await asyncio.sleep(max(after, pause * self._chance.uniform(0.5, 1.5)))

    _is_well = False
    """Whether the last watch was opened, so that its end is nothing new."""

    def _failed(self, error: ApiError) -> float:
        """Says it. At least so many seconds have to pass."""
        refused = error.status in (403, 404)
        if refused and self._watched.optional:
            self._reached(self._watched.kind, None)
            self._synced.set()
            return REFUSED_PAUSE_SECONDS
        if not self._is_well:  # a watch that was cut is opened again before anything is said
            self._reached(self._watched.kind, error)
        if isinstance(error, Busy):
            return error.retry_after_seconds
        return REFUSED_PAUSE_SECONDS if error.status == 403 else 0.0

    async def _list(self) -> None:
        path, selector = self._watched.kind.path(), self._watched.selector
        found: list[Raw] = []
        version = ""
        async for page, version in self._client.pages(path, selector):  # noqa: B007 - the last page's counts
            found += page
        changed = self._cache.replace(self._watched.kind, found)
        self._version = version
        self._synced.set()
        self._reached(self._watched.kind, None)
        if changed:
            self._changed(changed)

    async def _watch(self) -> None:
        kind = self._watched.kind
        async for what, raw in self._client.watch(kind.path(), self._version, self._watched.selector):
            if what == "OPEN":
                self._is_well = True
                self._reached(kind, None)
                continue
            if version := text(raw, "metadata", "resourceVersion"):
                self._version = version
            if what == "BOOKMARK":
                continue
            news = self._cache.remove(kind, raw) if what == "DELETED" else self._cache.put(kind, raw)
            if news:
                self._changed({text(raw, "metadata", "namespace") or text(raw, "metadata", "name")})
