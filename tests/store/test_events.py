"""Events: in order, bounded, and announced to whoever follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from inferplane.domain.endpoint import EndpointStatus
from inferplane.domain.events import Event
from inferplane.domain.reasons import ReasonCode
from inferplane.store.sql import PRUNE_SLICE_EVENTS, Change, Store, even_share

Until = Callable[..., Awaitable[None]]


async def test_events_are_numbered_in_the_order_of_their_writing(store: Store, make: Any) -> None:
    one, two = make.endpoint("one"), make.endpoint("two")
    full = replace(make.event("Second", two), reason=ReasonCode.LOADING, data={"bytes": [1, None, "ü"]})
    async with store.transaction() as tx:
        seqs = [await tx.append_event(make.event("First", one)), await tx.append_event(full)]
    async with store.transaction() as tx:
        seqs.append(await tx.append_event(make.event("Third", one)))
    assert seqs == sorted(set(seqs))
    assert seqs[0] > 0
    async with store.read() as tx:
        everything = await tx.list_events()
        assert [event.seq for event in everything] == seqs
        assert everything[1] == replace(full, seq=seqs[1])
        assert [e.kind for e in await tx.list_events(newest_first=True)] == ["Third", "Second", "First"]
        assert [e.kind for e in await tx.list_events(newest_first=True, limit=1)] == ["Third"]
        assert [e.kind for e in await tx.list_events(after_seq=seqs[0], limit=1)] == ["Second"]
        assert [e.kind for e in await tx.list_events(workspace="default", endpoint="one")] == [
            "First",
            "Third",
        ]
        assert [e.kind for e in await tx.list_events(endpoint_uid=two.uid)] == ["Second"]
        assert await tx.list_events(workspace="other") == []
        assert await tx.last_event_seq() == seqs[-1]


async def test_events_outlive_their_endpoint(store: Store, make: Any) -> None:
    endpoint = make.endpoint()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {})
        await tx.append_event(make.event(endpoint=endpoint))
        await tx.remove_endpoint(endpoint.uid)
        await tx.append_event(make.event("EndpointDeleted", endpoint))
    async with store.read() as tx:
        kinds = [event.kind for event in await tx.list_events(endpoint_uid=endpoint.uid)]
    assert kinds == ["EndpointCreated", "EndpointDeleted"]


async def test_a_follower_by_number_misses_no_event(store: Store, make: Any) -> None:
    """Whatever the order in which writers commit, a number once passed never fills up later."""
    writing = 6
    seen: list[int] = []

    async def write(number: int) -> None:
        for step in range(8):
            async with store.transaction() as tx:
                await tx.append_event(make.event(f"{number}/{step}"))
                await asyncio.sleep(0)

    async def follow() -> None:
        while len(seen) < writing * 8:
            async with store.read() as tx:
                seen.extend(e.seq for e in await tx.list_events(after_seq=seen[-1] if seen else 0))

    async with asyncio.timeout(30):
        await asyncio.gather(follow(), *(write(number) for number in range(writing)))
    assert seen == sorted(set(seen))


async def test_pruning_keeps_the_newest_and_never_reuses_a_number(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        for number in range(10):
            await tx.append_event(make.event(str(number)))
    assert await store.prune_events(events_max=3) == 7
    assert await store.prune_events(events_max=3) == 0
    async with store.read() as tx:
        assert [event.kind for event in await tx.list_events()] == ["7", "8", "9"]
        last = await tx.last_event_seq()
    assert await store.prune_events(events_max=0) == 3
    async with store.transaction() as tx:
        assert await tx.append_event(make.event("next")) > last


async def test_many_events_go_in_slices_and_whoever_writes_meanwhile_loses_nothing(
    store: Store, make: Any
) -> None:
    async with store.transaction() as tx:
        for number in range(2 * PRUNE_SLICE_EVENTS + 100):
            await tx.append_event(make.event(str(number)))
    pruning = asyncio.create_task(store.prune_events(events_max=50))
    written = []
    while not pruning.done():
        async with store.transaction() as tx:
            written.append(await tx.append_event(make.event("meanwhile")))
    left = 2 * PRUNE_SLICE_EVENTS + 100 + len(written) - await pruning
    async with store.read() as tx:
        newest = await tx.list_events(limit=left + 1, newest_first=True)
    assert left == len(newest) >= 50
    assert {event.seq for event in newest} >= set(written[-50:])
    assert newest[-1].seq == newest[0].seq - left + 1, "the newest, without a gap"


async def test_who_makes_a_noise_pushes_out_nobody_elses_history(store: Store, make: Any) -> None:
    quiet, noisy = make.endpoint("quiet"), make.endpoint("noisy")
    other = make.endpoint("other", workspace="other")
    async with store.transaction() as tx:
        for number in range(3):
            await tx.append_event(make.event(f"old-{number}", quiet))
            await tx.append_event(make.event(f"else-{number}", other))
        await tx.append_event(replace(make.event("policy", quiet), endpoint="", endpoint_uid=""))
        for number in range(60):
            await tx.append_event(make.event(f"noise-{number}", noisy))
    assert await store.prune_events(events_max=20) == 67 - 20
    async with store.read() as tx:
        kept = [event.kind for event in await tx.list_events()]
    assert kept == [
        *("old-0", "else-0", "old-1", "else-1", "old-2", "else-2", "policy"),
        *(f"noise-{number}" for number in range(47, 60)),
    ]
    assert await store.prune_events(events_max=20) == 0


async def test_a_workspace_with_many_endpoints_pushes_out_no_other_workspaces_history(
    store: Store, make: Any
) -> None:
    """Endpoints that come and go, each with few events, are as loud as one with many."""
    other = make.endpoint("other", workspace="other")
    async with store.transaction() as tx:
        for number in range(8):
            await tx.append_event(make.event(f"else-{number}", other))
        for number in range(100):
            await tx.append_event(make.event("noise", make.endpoint(f"e{number}")))
    await store.prune_events(events_max=20)
    async with store.read() as tx:
        assert len(await tx.list_events(workspace="other")) == 8
        kept = await tx.list_events(workspace="default")
    assert [event.endpoint for event in kept] == [f"e{number}" for number in range(88, 100)]


@pytest.mark.parametrize(
    ("counts", "room", "share"),
    [
        ((), 0, None),
        ((3, 4), 7, None),
        ((3, 4), 6, 3),
        ((1, 9, 9), 10, 4),
        ((5, 5, 5), 2, 0),
        ((0, 100), 10, 10),
        ((7,), 0, 0),
    ],
)
def test_shares_are_as_even_as_they_can_be(counts: tuple[int, ...], room: int, share: int | None) -> None:
    assert even_share(counts, room) == share
    if share is not None:
        assert sum(min(each, share) for each in counts) <= room
        assert sum(min(each, share + 1) for each in counts) > room


async def test_the_audit_log_answers_who_did_what_when(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        for number in range(6):
            await tx.append_event(
                Event(
                    at=make.at(number),
                    kind="PolicyChanged" if number % 2 else "GprReleased",
                    message="m",
                    actor="ann" if number < 4 else "bob",
                    workspace="default" if number < 3 else "other",
                    data={"before": {"maxGPRs": number}, "after": {"maxGPRs": None}},
                    gpu_request_id="" if number % 2 else f"gpr-{number}",
                )
            )
    async with store.read() as tx:
        everything = await tx.list_audit()
        assert [event.at for event in everything] == [make.at(number) for number in range(6)]
        assert everything[3].data == {"before": {"maxGPRs": 3}, "after": {"maxGPRs": None}}
        assert [event.gpu_request_id for event in everything] == ["gpr-0", "", "gpr-2", "", "gpr-4", ""]

        async def numbers(**wanted: Any) -> list[int]:
            return [everything.index(event) for event in await tx.list_audit(**wanted)]

        assert await numbers(actor="ann") == [0, 1, 2, 3]
        assert await numbers(actor="ann", kind="PolicyChanged") == [1, 3]
        assert await numbers(workspace="other") == [3, 4, 5]
        assert await numbers(since=make.at(2), until=make.at(4)) == [2, 3]
        assert await numbers(after_seq=everything[1].seq, limit=2) == [2, 3]
        assert await numbers(newest_first=True, limit=2) == [5, 4]
        assert await numbers(limit=-1) == []
        assert await numbers(actor="x' OR '1'='1") == []


async def test_subscribers_hear_after_the_commit_and_only_then(store: Store, make: Any) -> None:
    endpoint = make.endpoint()
    heard: list[Change] = []
    also: list[Change] = []
    unsubscribe = store.subscribe(heard.append)
    store.subscribe(also.append)
    change = Change("default", "iris", endpoint.uid)
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {})
        await tx.append_event(make.event(endpoint=endpoint))
        assert heard == []
    assert heard == [change]
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction that fails
        async with store.transaction() as tx:
            await tx.save_endpoint_status(endpoint.uid, 1, EndpointStatus())
            raise ZeroDivisionError
    assert heard == [change]
    async with store.transaction() as tx:
        await tx.save_endpoint_status(endpoint.uid, 1, EndpointStatus(observed_generation=1))
    assert heard == [change] * 2
    async with store.transaction() as tx:
        await tx.update_endpoint_spec(replace(endpoint, version=2))
    assert heard == [change] * 3
    unsubscribe()
    unsubscribe()
    async with store.transaction() as tx:
        await tx.remove_endpoint(endpoint.uid)
    assert heard == [change] * 3
    assert also == [change] * 4


async def test_one_subscribers_mistake_harms_nobody(store: Store, make: Any) -> None:
    heard: list[Change] = []

    def fail(change: Change) -> None:
        raise ZeroDivisionError

    store.subscribe(fail)
    store.subscribe(heard.append)
    async with store.transaction() as tx:
        await tx.append_event(make.event(endpoint=make.endpoint()))
    assert len(heard) == 1
    async with store.read() as tx:
        assert len(await tx.list_events()) == 1


async def test_what_another_process_writes_is_heard_too(
    database_url: str, store: Store, make: Any, until: Until
) -> None:
    heard: list[Change] = []
    store.subscribe(heard.append)
    other = await Store.open(database_url)
    try:
        own, foreign = make.endpoint("own"), make.endpoint("foreign")
        async with store.transaction() as tx:
            await tx.append_event(make.event(endpoint=own))
        async with other.transaction() as tx:
            await tx.append_event(make.event(endpoint=foreign))
        await until(lambda: len(heard) >= 2)
    finally:
        await other.close()
    # One's own was told at once, and is not told again when the events are looked through. Another's may be told
    # twice: by PostgreSQL's hint, and when its event is seen.
    names = [change.endpoint for change in heard]
    assert names[:2] == ["own", "foreign"]
    assert set(names[2:]) <= {"foreign"}
