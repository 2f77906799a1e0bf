"""Leases: this part of a transaction.

Three ways to touch a row, and what keeps them apart on PostgreSQL. Who takes a lease locks its row for itself
(FOR UPDATE) and passes by where somebody else has it locked. Who writes under a lease shares the row until
the commit (FOR KEY SHARE), so that the lease changes hands before that write or after it, not in between.
Renewing changes no key of the row and waits for neither writers nor readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, bindparam, or_, select, update

from inferplane.domain.errors import StaleLease
from inferplane.domain.lease import EXPIRY_AHEAD_MAX, Fence, Lease, next_epoch
from inferplane.store.dialect import Hint, translated
from inferplane.store.schema import leases
from inferplane.store.statements import Statements
from inferplane.store.values import Row, from_micros, to_micros


class LeaseRows(Statements):
    """What can be done with leases within one transaction."""

    async def database_now(self) -> datetime:
        """What time it is for the database."""
        with translated():
            return from_micros(await self._database.now_micros(self._connection))

    async def list_leases(self) -> list[Lease]:
        """All, by name."""
        rows = await self._all(select(leases).order_by(leases.c.name))
        return [_lease(row._mapping) for row in rows]

    async def take_lease(
        self, name: str, seen_epoch: int, holder: str, now: datetime, lasts: timedelta
    ) -> int | None:
        """Take it if its epoch is still `seen_epoch` (0: there was no such lease), else None.

        Returns the new epoch. Whether it may be taken is decided before; that it was not renewed meanwhile is
        seen here, unless the holder is this one.
        """
        if not seen_epoch:
            epoch = next_epoch(None, now)
            values = {"name": name, "holder": holder, "epoch": epoch, "expires_at": to_micros(now + lasts)}
            statement = self._database.insert(leases).values(values)
            inserted = await self._count(statement.on_conflict_do_nothing(index_elements=["name"]))
            return epoch if inserted else None
        columns = leases.c
        out_of_time = columns.expires_at > to_micros(now + EXPIRY_AHEAD_MAX)
        free = or_(columns.expires_at <= to_micros(now), out_of_time, columns.holder == holder)
        found = select(leases).where(columns.name == name, columns.epoch == seen_epoch, free)
        row = await self._first(self._database.taking(found))
        if row is None:
            return None
        epoch = next_epoch(_lease(row._mapping), now)
        await self._run(
            update(leases)
            .where(columns.name == name)
            .values(holder=holder, epoch=epoch, expires_at=to_micros(now + lasts))
        )
        return epoch

    async def renew_leases(
        self, held: Mapping[str, int], holder: str, now: datetime, lasts: timedelta
    ) -> set[str]:
        """Renew the leases `held` (name and epoch); returns the names of those that are still the holder's."""
        if not held:
            return set()
        statement = (
            update(leases)
            .where(_ours(held, holder))
            .values(expires_at=to_micros(now + lasts))
            .returning(leases.c.name)
        )
        return {row.name for row in (await self._run(statement)).all()}

    async def release_leases(self, held: Mapping[str, int], holder: str, now: datetime) -> None:
        """Let others take them from `now` on, and tell them."""
        if held:
            await self._run(update(leases).where(_ours(held, holder)).values(expires_at=to_micros(now)))
            with translated():
                await self._database.notify(self._connection, Hint.LEASES)

    async def hold_fence(self, fence: Fence) -> None:
        """Make sure that the lease stays the holder's until this transaction ends. Raises StaleLease."""
        if not fence.epoch:
            return
        parameters = {"name": fence.name, "holder": fence.holder, "epoch": fence.epoch}
        if await self._first(self._database.sharing(_FENCED), parameters) is None:
            raise StaleLease(f"the lease {fence.name} has gone to another control plane")


def _ours(held: Mapping[str, int], holder: str) -> ColumnElement[bool]:
    columns = leases.c
    return and_(
        columns.holder == holder,
        or_(*(and_(columns.name == name, columns.epoch == epoch) for name, epoch in sorted(held.items()))),
    )


def _lease(row: Row) -> Lease:
    return Lease(row["name"], row["holder"], row["epoch"], from_micros(row["expires_at"]))


_FENCED = select(leases.c.name).where(
    leases.c.name == bindparam("name"),
    leases.c.holder == bindparam("holder"),
    leases.c.epoch == bindparam("epoch"),
)
