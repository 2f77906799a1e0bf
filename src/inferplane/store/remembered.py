"""Many rows become values without making everybody else wait, and only those that changed.

Turning a row into a value takes some 20 µs, and most reads of GPU requests and nodes find nearly the same
rows as the read before. So what a row said is remembered with the value it became: as long as it says the
same, to the letter, the value is the same. That needs no versions, holds within transactions that are
undone, and whatever another process did. Only values that nobody can change are remembered.

Remembered is what the last reading of a whole table found, no more and no less: however many rows there are,
the next reading finds them, and what is gone from the table is gone from here.

Rows that have to be read are read some at a time, and others have their turn in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import Row

T = TypeVar("T")

Known: TypeAlias = dict[tuple[Any, ...], tuple[tuple[Any, ...], T]]
"""By key: what the row said, and what it became."""

READ_AT_A_TIME = 100
"""Rows turned into values in one go: about two milliseconds."""

COMPARED_AT_A_TIME = 2000


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

    A row takes some two kilobytes, which whoever reads the whole table needs anyway.
    """

    def __init__(self, read: Callable[[Any], T], key_columns: int = 1) -> None:
        self._read = read
        self._key_columns = key_columns
        self._known: Known[T] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def all(self, rows: Iterable[Row[Any]]) -> list[T]:
        """The value of each row, in order. These are all that there are: they are remembered, others are not."""
        present: Known[T] = {}
        found = await self._values(rows, present)
        self._known = present
        return found

    async def some(self, rows: Iterable[Row[Any]]) -> list[T]:
        """The value of each row, in order. There may be others, so what is remembered stays as it is."""
        return await self._values(rows, {})

    async def _values(self, rows: Iterable[Row[Any]], present: Known[T]) -> list[T]:
        found = []
        work = 0
        for row in rows:
            said = tuple(row)
            key = said[: self._key_columns]
            known = self._known.get(key)
            if known is not None and known[0] == said:
                work += 1
            else:
                known = (said, self._read(row._mapping))
                work += COMPARED_AT_A_TIME // READ_AT_A_TIME
            present[key] = known
            found.append(known[1])
            if work >= COMPARED_AT_A_TIME:
                work = 0
                await asyncio.sleep(0)
        return found
