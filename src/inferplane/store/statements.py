"""What all parts of a transaction share: the ways to the database, and what it will announce.

`Tx` (sql.py) is put together from parts by what they are about; this is what each of them stands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Executable, Row
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.domain.access import no_such_workspace
from inferplane.domain.errors import NotFound
from inferplane.store import gpu_codec
from inferplane.store.dialect import Database, translated
from inferplane.store.remembered import Remembered

STATEMENT_KEYS_MAX = 500


@dataclass(frozen=True, slots=True)
class Change:
    """Something about this endpoint, or this GPU request, was written. A hint: read to learn what.

    `endpoint_uid` is "" for a GPU request of its own. Both are "" when something was written that GPU
    requests are decided from (a policy, the nodes of a cluster); that is told within this process only.
    """

    workspace: str
    endpoint: str
    endpoint_uid: str
    gpu_request_id: str = ""


class Memory:
    """What the rows read lately became; one for all transactions of a store."""

    def __init__(self) -> None:
        self.gpu_requests = Remembered(gpu_codec.gpu_request_from_row)
        self.nodes = Remembered(gpu_codec.node_from_row, key_columns=2)


class Statements:
    """One transaction of the database. `touched` is what is announced once it is committed."""

    def __init__(self, database: Database, connection: AsyncConnection, memory: Memory) -> None:
        self._database = database
        self._connection = connection
        self._memory = memory
        self.touched: dict[Change, None] = {}

    async def _run(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> CursorResult[Any]:
        with translated():
            return await self._connection.execute(statement, parameters)

    async def _first(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> Row[Any] | None:
        return (await self._run(statement, parameters)).first()

    async def _all(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> list[Row[Any]]:
        return list((await self._run(statement, parameters)).all())

    async def _many(self, statement: Executable, parameters: list[dict[str, Any]]) -> None:
        if parameters:
            with translated():
                await self._connection.execute(statement, parameters)

    async def _count(self, statement: Executable) -> int:
        return (await self._run(statement)).rowcount


def no_workspace(name: str) -> NotFound:
    """For whoever names a workspace that is not there."""
    return no_such_workspace(name)


def batched(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """The keys in lists of at most `size`: databases take a limited number of parameters."""
    rest = iter(keys)
    while batch := list(islice(rest, size)):
        yield batch
