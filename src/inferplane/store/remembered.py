"""Many rows become values without making everybody else wait, and only those that changed.

Turning a row into a value takes some 20 µs, and most reads of GPU requests and nodes find nearly the same
rows as the read before. So what a row said is remembered with the value it became: as long as it says the
same, to the letter, the value is the same. That needs no versions, holds within transactions that are
undone, and whatever another process did. Only values that nobody can change are remembered.

Rows that have to be read are read some at a time, and others have their turn in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from sqlalchemy import Row

T = TypeVar("T")

READ_AT_A_TIME = 100
"""Rows turned into values in one go: about two milliseconds."""

COMPARED_AT_A_TIME = 2000

REMEMBERED_MAX = 100_000
"""Rows of one kind; they take some two kilobytes each."""


async def read_all(rows: Iterable[Row[Any]], read: Callable[[Any], T]) -> list[T]:
    """The value of each row, in order."""
    found = []
    for number, row in enumerate(rows, 1):
        found.append(read(row._mapping))
        if number % READ_AT_A_TIME == 0:
            await asyncio.sleep(0)
    return found


class Remembered(Generic[T]):
    """Rows of one table and what they became. `key_columns` is how many of their first columns identify them.

    Bounded by two generations: the older one is forgotten when the younger one has grown to half of
    `kept_max`; what is still read moves from the older to the younger.
    """

    def __init__(
        self, read: Callable[[Any], T], key_columns: int = 1, kept_max: int = REMEMBERED_MAX
    ) -> None:
        self._read = read
        self._key_columns = key_columns
        self._generation_max = max(1, kept_max // 2)
        self._young: dict[tuple[Any, ...], tuple[tuple[Any, ...], T]] = {}
        self._old: dict[tuple[Any, ...], tuple[tuple[Any, ...], T]] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    async def all(self, rows: Iterable[Row[Any]]) -> list[T]:
        """The value of each row, in order."""
        found = []
        work = 0
        for row in rows:
            said = tuple(row)
            key = said[: self._key_columns]
            known = self._young.get(key) or self._old.get(key)
            if known is not None and known[0] == said:
                work += 1
            else:
                known = (said, self._read(row._mapping))
                work += COMPARED_AT_A_TIME // READ_AT_A_TIME
            if self._young.get(key) is not known:
                self._remember(key, known)
            found.append(known[1])
            if work >= COMPARED_AT_A_TIME:
                work = 0
                await asyncio.sleep(0)
        return found

    def _remember(self, key: tuple[Any, ...], known: tuple[tuple[Any, ...], T]) -> None:
        self._old.pop(key, None)
        self._young[key] = known
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
