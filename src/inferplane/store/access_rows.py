"""Endpoint keys and usage: this part of a transaction.

What was counted of a log and how far it was counted are written together (`count_usage`), so whatever is
interrupted, each line counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update

from inferplane.domain.endpoint import InferenceEndpoint
from inferplane.domain.endpoint_access import Access, EndpointKey, LogPosition, Usage, Used
from inferplane.domain.errors import AlreadyExists, NotFound
from inferplane.store.schema import endpoint_keys, endpoints, log_positions, usage_hours, workspaces
from inferplane.store.statements import STATEMENT_KEYS_MAX, Change, Statements, batched
from inferplane.store.values import (
    Row,
    from_json,
    from_micros,
    list_of,
    mapping_of,
    micros_of,
    moment_of,
    number_or_none,
    text_of,
    to_json,
    to_micros,
)

USAGE_ROWS_KEPT_MAX = 2_000_000
USAGE_ROWS_WRITTEN_MAX = 200  # in one statement: databases take a limited number of parameters
_COUNTS = ("requests", "errors", "rows", "tokens", "milliseconds")


class AccessRows(Statements):
    """What can be done with endpoint keys and usage within one transaction."""

    # Keys

    async def add_endpoint_key(self, key: EndpointKey) -> None:
        """Raises AlreadyExists when the id is known."""
        statement = self._database.insert(endpoint_keys).values(_key_to_row(key))
        if not await self._count(statement.on_conflict_do_nothing(index_elements=["id"])):
            raise AlreadyExists("this endpoint key exists already", reason="EndpointKeyExists")

    async def get_endpoint_key(self, key_id: str) -> EndpointKey:
        """Revoked ones too, as long as they are remembered. Raises NotFound."""
        row = await self._first(select(endpoint_keys).where(endpoint_keys.c.id == key_id))
        if row is None:
            raise NotFound("there is no such endpoint key", reason="EndpointKeyNotFound", field="keyId")
        return _key_from_row(row._mapping)

    async def list_endpoint_keys(self, workspace: str, *, revoked: bool = False) -> list[EndpointKey]:
        """A workspace's, without or with revoked ones; oldest first, then by id."""
        columns = endpoint_keys.c
        statement = select(endpoint_keys).where(columns.workspace == workspace)
        if not revoked:
            statement = statement.where(columns.revoked_at.is_(None))
        rows = await self._all(statement.order_by(columns.created_at, columns.id))
        return [_key_from_row(row._mapping) for row in rows]

    async def count_endpoint_keys(self, workspace: str) -> int:
        """How many are remembered of a workspace, revoked ones too."""
        statement = select(func.count().label("count")).where(endpoint_keys.c.workspace == workspace)
        row = await self._first(statement)
        return 0 if row is None else int(row.count)  # type: ignore[call-overload]

    async def revoke_endpoint_key(self, key: EndpointKey, at: datetime) -> None:
        """Have it refused from now on; those who route its endpoints are told. A second time is harmless."""
        statement = update(endpoint_keys).where(
            endpoint_keys.c.id == key.id, endpoint_keys.c.revoked_at.is_(None)
        )
        if await self._count(statement.values(revoked_at=to_micros(at), at_gateway=1)):
            await self.touch_opened(key)

    async def revoke_endpoint_keys_of(self, workspace: str, at: datetime) -> None:
        """Revoke all of a workspace that goes: they must not open the next one of its name."""
        await self._run(
            update(endpoint_keys)
            .where(endpoint_keys.c.workspace == workspace, endpoint_keys.c.revoked_at.is_(None))
            .values(revoked_at=to_micros(at), at_gateway=1)
        )

    async def keys_that_matter(self, endpoint: InferenceEndpoint, now: datetime) -> list[EndpointKey]:
        """Of the unexpired keys that open (or opened) `endpoint`: revoked ones, and those with own rates.

        All, where the requests of each key are counted. By id. Nothing for an endpoint that is open.
        """
        if endpoint.spec.access is not Access.KEY:
            return []
        columns = endpoint_keys.c
        statement = select(endpoint_keys).where(
            columns.workspace == endpoint.workspace, columns.expires_at > to_micros(now)
        )
        if endpoint.spec.limits.concurrency_max_per_key is None:
            statement = statement.where(columns.at_gateway == 1)
        rows = await self._all(statement.order_by(columns.id))
        return [key for key in (_key_from_row(row._mapping) for row in rows) if key.opens(endpoint.uid)]

    async def touch_opened(self, key: EndpointKey) -> None:
        """Announce every endpoint that the key opens as changed."""
        columns = endpoints.c
        statement = select(columns.uid, columns.name).where(columns.workspace == key.workspace)
        for row in await self._all(statement.order_by(columns.uid)):
            if key.opens(row.uid):
                self.touched[Change(key.workspace, row.name, row.uid)] = None

    async def prune_endpoint_keys(self, now: datetime, kept_for_micros: int) -> None:
        """Forget revoked keys that have expired, and others so long after they expired."""
        columns, at = endpoint_keys.c, to_micros(now)
        await self._run(
            delete(endpoint_keys).where(
                columns.expires_at <= at,
                columns.revoked_at.is_not(None) | (columns.expires_at <= at - kept_for_micros),
            )
        )

    # Usage

    async def log_position(self, log: str) -> LogPosition:
        """How far this log has been counted; the beginning of no file when never."""
        row = await self._first(select(log_positions).where(log_positions.c.log == log))
        return LogPosition() if row is None else LogPosition(row.file, row.offset)

    async def count_usage(self, log: str, position: LogPosition, counted: Iterable[Usage]) -> None:
        """Add what was counted of a log up to `position`. What belongs to no workspace is left out."""
        items = list(counted)
        known: set[str] = set()
        for batch in batched(dict.fromkeys(item.workspace for item in items), STATEMENT_KEYS_MAX):
            rows = await self._all(select(workspaces.c.name).where(workspaces.c.name.in_(batch)))
            known |= {row.name for row in rows}
        added = usage_rows(item for item in items if item.workspace in known)
        for start in range(0, len(added), USAGE_ROWS_WRITTEN_MAX):
            statement = self._database.insert(usage_hours).values(
                added[start : start + USAGE_ROWS_WRITTEN_MAX]
            )
            sums = {name: usage_hours.c[name] + statement.excluded[name] for name in _COUNTS}
            await self._run(
                statement.on_conflict_do_update(
                    index_elements=["workspace", "hour", "endpoint_uid", "key_id"], set_=sums
                )
            )
        values = {"log": log, "file": position.file, "offset": position.offset}
        statement = self._database.insert(log_positions).values(values)
        await self._run(
            statement.on_conflict_do_update(
                index_elements=["log"], set_={"file": position.file, "offset": position.offset}
            )
        )

    async def list_usage(
        self,
        workspace: str,
        *,
        since: datetime,
        until: datetime,
        bucket: timedelta,
        endpoint: str = "",
        key_id: str | None = None,
        limit: int,
    ) -> list[Usage]:
        """Sums of `bucket` each (counted from 1970 UTC), by its start, endpoint and key; at most `limit`.

        Of hours that begin from `since` on and before `until`. "" of `endpoint` does not filter, nor does
        None of `key_id`; its "" means requests without a key.
        """
        columns = usage_hours.c
        micros = bucket // timedelta(microseconds=1)
        start = (columns.hour - columns.hour % micros).label("hour")
        groups = (start, columns.endpoint, columns.endpoint_uid, columns.key_id)
        statement = select(*groups, *(func.sum(columns[name]).label(name) for name in _COUNTS)).where(
            columns.workspace == workspace, columns.hour >= to_micros(since), columns.hour < to_micros(until)
        )
        if endpoint:
            statement = statement.where(columns.endpoint == endpoint)
        if key_id is not None:
            statement = statement.where(columns.key_id == key_id)
        rows = await self._all(statement.group_by(*groups).order_by(*groups).limit(limit))
        return [_usage_from_row(row._mapping, workspace) for row in rows]

    async def prune_usage(self, before: datetime, kept_max: int = USAGE_ROWS_KEPT_MAX) -> int:
        """Delete hours that began before this moment, and the oldest beyond `kept_max` rows; how many rows."""
        columns = usage_hours.c
        gone = await self._count(delete(usage_hours).where(columns.hour < to_micros(before)))
        newest_doomed = (
            select(columns.hour).order_by(columns.hour.desc()).offset(max(0, kept_max)).limit(1)
        ).scalar_subquery()
        return gone + await self._count(delete(usage_hours).where(columns.hour <= newest_doomed))

    async def delete_usage(self, workspace: str) -> None:
        """Forget what was used in a workspace that goes."""
        await self._run(delete(usage_hours).where(usage_hours.c.workspace == workspace))


def usage_rows(counted: Iterable[Usage]) -> list[dict[str, Any]]:
    """One row for each bucket, in order: what comes twice is added up."""
    sums: dict[tuple[str, datetime, str, str], Usage] = {}
    for item in counted:
        key = (item.workspace, item.start, item.endpoint_uid, item.key_id)
        known = sums.get(key)
        sums[key] = item if known is None else replace(item, used=known.used.plus(item.used))
    return [_usage_to_row(sums[key]) for key in sorted(sums)]


def _usage_to_row(item: Usage) -> dict[str, Any]:
    return {
        "workspace": item.workspace,
        "hour": to_micros(item.start),
        "endpoint_uid": item.endpoint_uid,
        "key_id": item.key_id,
        "endpoint": item.endpoint,
        **{name: getattr(item.used, name) for name in _COUNTS},
    }


def _usage_from_row(row: Row, workspace: str) -> Usage:
    return Usage(
        start=from_micros(row["hour"]),
        workspace=workspace,
        endpoint=row["endpoint"],
        endpoint_uid=row["endpoint_uid"],
        key_id=row["key_id"],
        used=Used(**{name: int(row[name]) for name in _COUNTS}),
    )


def _key_to_row(key: EndpointKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "workspace": key.workspace,
        "created_at": to_micros(key.created_at),
        "expires_at": to_micros(key.expires_at),
        "revoked_at": micros_of(key.revoked_at),
        "at_gateway": int(key.revoked_at is not None or key.requests_per_second is not None),
        "body": to_json(
            {
                "name": key.name,
                "endpoints": key.endpoints,
                "created_by": key.created_by,
                "validity": key.validity,
                "requests_per_second": key.requests_per_second,
            }
        ),
    }


def _key_from_row(row: Row) -> EndpointKey:
    raw: Mapping[str, Any] = mapping_of(from_json(row["body"]))
    pairs = (list_of(item) for item in list_of(raw.get("endpoints")))
    return EndpointKey(
        id=row["id"],
        workspace=row["workspace"],
        name=text_of(raw, "name"),
        created_at=from_micros(row["created_at"]),
        expires_at=from_micros(row["expires_at"]),
        endpoints=tuple((str(pair[0]), str(pair[1])) for pair in pairs if len(pair) == 2),
        created_by=text_of(raw, "created_by"),
        validity=text_of(raw, "validity"),
        requests_per_second=number_or_none(raw, "requests_per_second"),
        revoked_at=moment_of(row["revoked_at"]),
    )
