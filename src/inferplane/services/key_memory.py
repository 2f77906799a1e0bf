"""Records of API keys that were read a moment ago, so that not every call asks the database for one.

What must stay true: *deleting a key ends its tokens at once*. Whoever deletes keys in this process
calls `forget` when the deletion is committed, before anybody is told of it; a reading that began
earlier is not kept either (its `mark` is out of date). A deletion by another process on the same
database is not heard of here, so nothing is kept longer than `REMEMBERED_SECONDS`: that is the
longest time for which such a key works on. Keys that do not exist are asked for anew each time.

Expiry is not this module's business: it stands in the record and is compared with the clock each time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from inferplane.domain.access import ApiKey

REMEMBERED_SECONDS = 1.0
REMEMBERED_KEYS_MAX = 1024


class KeyMemory:
    """Records by what they were looked up with: a digest or an id, which cannot be mistaken for each
    other. `ticks` is a clock in seconds that only goes forward. Belongs to one event loop.
    """

    def __init__(self, ticks: Callable[[], float] = time.monotonic) -> None:
        self._ticks = ticks
        self._known: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._forgotten = 0

    @property
    def mark(self) -> int:
        """To be taken before a reading begins and given back with what was read."""
        return self._forgotten

    def recall(self, name: str) -> ApiKey | None:
        """The record looked up with `name` within the last `REMEMBERED_SECONDS`, if it is still held."""
        found = self._known.get(name)
        if found is None or self._ticks() - found[0] >= REMEMBERED_SECONDS:
            return None
        return found[1]

    def keep(self, name: str, record: ApiKey, mark: int) -> None:
        """Hold a record that was read from the database just now; not if keys were deleted meanwhile."""
        if mark != self._forgotten:
            return
        self._known[name] = (self._ticks(), record)
        self._known.move_to_end(name)
        if len(self._known) > REMEMBERED_KEYS_MAX:
            self._known.popitem(last=False)

    def replace(self, record: ApiKey) -> None:
        """Put a newer state of a record in the place of the one held; it is not held longer for that."""
        for name in (record.id, record.digest):
            found = self._known.get(name)
            if found is not None:
                self._known[name] = (found[0], record)

    def forget(self) -> None:
        """Keys were deleted: nothing that was read so far is to be used again."""
        self._forgotten += 1
        self._known.clear()
