"""Endpoint keys and usage, on both databases: what is remembered, what is announced, what counts once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inferplane.domain.endpoint_access import Access, EndpointKey, LogPosition, Usage, Used
from inferplane.domain.errors import AlreadyExists, NotFound
from inferplane.store.sql import Change, Store

HOUR = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)


def key(make: Any, key_id: str = "k1", **more: Any) -> EndpointKey:
    values: dict[str, Any] = {"name": "n", "created_at": make.now, "expires_at": make.at(3600), **more}
    return EndpointKey(id=key_id, workspace=values.pop("workspace", "default"), **values)


def usage(
    hour: datetime = HOUR, endpoint: str = "iris", key_id: str = "k1", workspace: str = "default", **used: int
) -> Usage:
    return Usage(hour, workspace, endpoint, f"uid-{endpoint}", key_id, Used(**{"requests": 1, **used}))


async def test_keys_come_back_as_they_were_and_go_from_the_list_when_revoked(store: Store, make: Any) -> None:
    first = key(make, endpoints=(("u1", "iris"), ("u2", "wine")), created_by="me", validity="1h")
    second = key(make, "k0", created_at=make.at(1), requests_per_second=2.5)
    elsewhere = key(make, "k2", workspace="other")
    async with store.transaction() as tx:
        for each in (second, first, elsewhere):
            await tx.add_endpoint_key(each)
        with pytest.raises(AlreadyExists):
            await tx.add_endpoint_key(first)
        assert await tx.list_endpoint_keys("default") == [first, second]
        await tx.revoke_endpoint_key(first, make.at(5))
        await tx.revoke_endpoint_key(first, make.at(6))
        assert await tx.list_endpoint_keys("default") == [second]
        assert await tx.get_endpoint_key("k1") == replace(first, revoked_at=make.at(5))
        assert await tx.count_endpoint_keys("default") == 2
        with pytest.raises(NotFound, match="no such endpoint key"):
            await tx.get_endpoint_key("nothing")


async def test_a_revocation_is_told_to_the_endpoints_that_the_key_opened(store: Store, make: Any) -> None:
    told: list[Change] = []
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        for name in ("iris", "wine"):
            await tx.insert_endpoint(make.endpoint(name, uid=f"uid-{name}"), {})
        await tx.add_endpoint_key(key(make, endpoints=(("uid-wine", "wine"),)))
        await tx.add_endpoint_key(key(make, "all"))
    store.subscribe(told.append)
    async with store.transaction() as tx:
        await tx.revoke_endpoint_key(await tx.get_endpoint_key("k1"), make.now)
    assert [change.endpoint for change in told] == ["wine"]
    async with store.transaction() as tx:
        await tx.revoke_endpoint_key(await tx.get_endpoint_key("all"), make.now)
    assert [change.endpoint for change in told] == ["wine", "iris", "wine"]


async def test_only_unexpired_keys_that_say_something_matter_to_an_endpoint(store: Store, make: Any) -> None:
    iris = make.endpoint(uid="uid-iris")
    guarded = replace(iris, spec=replace(iris.spec, access=Access.KEY))
    async with store.transaction() as tx:
        await tx.add_endpoint_key(key(make, "plain"))
        await tx.add_endpoint_key(key(make, "own-rate", requests_per_second=1.0))
        await tx.add_endpoint_key(key(make, "of-another", endpoints=(("uid-wine", "wine"),)))
        await tx.add_endpoint_key(key(make, "old", expires_at=make.at(10)))
        for key_id in ("of-another", "old"):
            await tx.revoke_endpoint_key(await tx.get_endpoint_key(key_id), make.now)
        assert await tx.keys_that_matter(iris, make.now) == []
        assert [each.id for each in await tx.keys_that_matter(guarded, make.at(9))] == ["old", "own-rate"]
        assert [each.id for each in await tx.keys_that_matter(guarded, make.at(10))] == ["own-rate"]
        await tx.revoke_endpoint_keys_of("default", make.now)
        assert [each.id for each in await tx.keys_that_matter(guarded, make.at(11))] == ["own-rate", "plain"]

        await tx.prune_endpoint_keys(make.at(20), 10**12)
        assert await tx.count_endpoint_keys("default") == 3, "what is revoked and has expired is forgotten"
        await tx.prune_endpoint_keys(make.at(4000), 10**12)
        assert await tx.count_endpoint_keys("default") == 0


async def test_usage_adds_up_by_hour_and_day(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        assert await tx.log_position("access") == LogPosition()
        counted = [
            usage(rows=2, milliseconds=5),
            usage(errors=1, tokens=7),
            usage(HOUR + ONE_HOUR, rows=3),
            usage(HOUR + DAY),
            usage(endpoint="wine", key_id=""),
            usage(workspace="gone"),
        ]
        await tx.count_usage("access", LogPosition("f", 10), counted)
        await tx.count_usage("access", LogPosition("f", 20), [usage(rows=2**40)])
        assert await tx.log_position("access") == LogPosition("f", 20)
    async with store.read() as tx:
        everything: dict[str, Any] = {"since": HOUR, "until": HOUR + 2 * DAY, "limit": 100}
        hours = await tx.list_usage("default", bucket=ONE_HOUR, **everything)
        assert [(each.start, each.endpoint, each.key_id, each.used) for each in hours] == [
            (HOUR, "iris", "k1", Used(3, 1, 2**40 + 2, 7, 5)),
            (HOUR, "wine", "", Used(1)),
            (HOUR + ONE_HOUR, "iris", "k1", Used(1, rows=3)),
            (HOUR + DAY, "iris", "k1", Used(1)),
        ]
        days = await tx.list_usage("default", bucket=DAY, **everything)
        midnight = HOUR.replace(hour=0)
        assert [(each.start, each.endpoint, each.used.requests) for each in days] == [
            (midnight, "iris", 4),
            (midnight, "wine", 1),
            (midnight + DAY, "iris", 1),
        ]
        assert len(await tx.list_usage("default", bucket=ONE_HOUR, endpoint="wine", **everything)) == 1
        assert len(await tx.list_usage("default", bucket=ONE_HOUR, key_id="", **everything)) == 1
        assert len(await tx.list_usage("default", bucket=ONE_HOUR, key_id="k1", **everything)) == 3
        assert await tx.list_usage("gone", bucket=ONE_HOUR, **everything) == []


async def test_what_is_undone_counts_neither_lines_nor_place(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())

    async def interrupted() -> None:
        async with store.transaction() as tx:
            await tx.count_usage("access", LogPosition("f", 10), [usage()])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await interrupted()
    async with store.read() as tx:
        assert await tx.log_position("access") == LogPosition()
        assert await tx.list_usage("default", since=HOUR, until=HOUR + DAY, bucket=DAY, limit=9) == []


async def test_usage_is_bounded_by_age_and_number(store: Store, make: Any) -> None:
    hours = [HOUR + number * ONE_HOUR for number in range(6)]
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.count_usage("access", LogPosition("f", 1), [usage(hour) for hour in hours])
        assert await tx.prune_usage(hours[1]) == 1
        assert await tx.prune_usage(hours[0], kept_max=2) == 3
        left = await tx.list_usage("default", since=HOUR, until=HOUR + DAY, bucket=ONE_HOUR, limit=9)
        assert [each.start for each in left] == hours[4:]
        assert await tx.prune_usage(hours[0], kept_max=2) == 0
        await tx.delete_usage("default")
        assert await tx.list_usage("default", since=HOUR, until=HOUR + DAY, bucket=DAY, limit=9) == []


async def test_many_buckets_at_once(store: Store, make: Any) -> None:
    many = [usage(HOUR, f"e{number}") for number in range(1000)]
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        for _ in range(2):
            await tx.count_usage("access", LogPosition("f", 1), many)
        found = await tx.list_usage("default", since=HOUR, until=HOUR + DAY, bucket=DAY, limit=2000)
    assert len(found) == 1000
    assert {each.used.requests for each in found} == {2}
