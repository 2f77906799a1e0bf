"""Endpoints in the store: names are unique, writers notice each other, lists have one order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inferplane.domain.endpoint import EndpointStatus, Scaling
from inferplane.domain.errors import AlreadyExists, Conflict, NotFound, StaleVersion
from inferplane.store.sql import Store


async def test_an_endpoint_comes_back_as_it_went_in(store: Store, make: Any) -> None:
    endpoint = replace(make.endpoint(), deletion_requested_at=make.at(5), deletion_requested_by="Zoë")
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {})
    async with store.read() as tx:
        assert await tx.get_endpoint("default", "iris") == endpoint
        assert await tx.get_endpoint("default", "iris", "local") == endpoint
        assert await tx.get_endpoint_by_uid(endpoint.uid) == endpoint
        assert await tx.list_endpoints() == [endpoint]
        assert await tx.endpoint_uids() == [endpoint.uid]
        assert await tx.get_endpoint_by_uid("other") is None
        with pytest.raises(NotFound, match="endpoint other does not exist in workspace default"):
            await tx.get_endpoint("default", "other")


async def test_a_name_is_taken_per_workspace_and_cluster(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.add_workspace(make.workspace("other"))
        await tx.insert_endpoint(make.endpoint(), {"A": "1"})
        with pytest.raises(AlreadyExists, match="endpoint iris exists already in workspace default"):
            await tx.insert_endpoint(make.endpoint(uid="second"), {"A": "2"})
        await tx.insert_endpoint(make.endpoint(workspace="other"), {})
        await tx.insert_endpoint(make.endpoint(cluster="far"), {})
    async with store.read() as tx:
        with pytest.raises(Conflict, match="several clusters: far, local"):
            await tx.get_endpoint("default", "iris")
        assert (await tx.get_endpoint("default", "iris", "far")).cluster == "far"
        assert await tx.endpoint_secret("second") == {}


async def test_a_uid_is_never_reused(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(make.endpoint(uid="same"), {})
    with pytest.raises(AlreadyExists):
        async with store.transaction() as tx:
            await tx.insert_endpoint(make.endpoint("another", uid="same"), {})


async def test_of_two_that_create_the_same_name_at_once_one_is_told(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())

    async def create(number: int) -> bool:
        try:
            async with store.transaction() as tx:
                await tx.insert_endpoint(make.endpoint(uid=f"uid{number}"), {})
                await tx.append_event(make.event(endpoint=make.endpoint(uid=f"uid{number}")))
        except AlreadyExists:
            return False
        return True

    created = await asyncio.gather(*(create(number) for number in range(8)))
    assert created.count(True) == 1
    async with store.read() as tx:
        (endpoint,) = await tx.list_endpoints()
        assert [event.endpoint_uid for event in await tx.list_events()] == [endpoint.uid]


async def test_an_unknown_workspace_has_no_endpoints(store: Store, make: Any) -> None:
    with pytest.raises(NotFound, match="workspace default does not exist"):
        async with store.transaction() as tx:
            await tx.insert_endpoint(make.endpoint(), {})
    async with store.read() as tx:
        assert await tx.list_endpoints("default") == []


async def test_spec_and_status_are_written_apart(store: Store, make: Any) -> None:
    endpoint = make.endpoint()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {})
        status = EndpointStatus(observed_generation=1, problem_message="p")
        version = await tx.save_endpoint_status(endpoint.uid, endpoint.version, status)
        assert version == 2
        # A service that read the new row changes the spec; the status it carries is not written.
        changed = replace(
            endpoint, version=2, generation=2, spec=replace(endpoint.spec, scaling=Scaling(2, 3))
        )
        assert await tx.update_endpoint_spec(changed) == 3
    async with store.read() as tx:
        stored = await tx.get_endpoint("default", "iris")
    assert stored == replace(changed, version=3, status=status)


async def test_the_loser_of_a_compare_and_set_is_told(store: Store, make: Any) -> None:
    endpoint = make.endpoint()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {})
        await tx.save_endpoint_status(endpoint.uid, 1, EndpointStatus(observed_generation=1))
        with pytest.raises(StaleVersion):
            await tx.save_endpoint_status(endpoint.uid, 1, EndpointStatus())
        with pytest.raises(StaleVersion):
            await tx.update_endpoint_spec(endpoint)
        with pytest.raises(StaleVersion):
            await tx.save_endpoint_status("gone", 1, EndpointStatus())
    async with store.read() as tx:
        assert (await tx.get_endpoint("default", "iris")).status.observed_generation == 1


async def test_concurrent_writers_lose_no_update(store: Store, make: Any) -> None:
    """Ten writers add one each, reading and writing in transactions of their own."""
    endpoint = make.endpoint()
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {})

    async def add_one() -> int:
        lost = 0
        while True:
            async with store.read() as tx:
                read = await tx.get_endpoint("default", "iris")
            counted = EndpointStatus(observed_generation=read.status.observed_generation + 1)
            try:
                async with store.transaction() as tx:
                    await tx.save_endpoint_status(read.uid, read.version, counted)
            except StaleVersion:
                lost += 1
            else:
                return lost

    lost = await asyncio.gather(*(add_one() for _ in range(10)))
    assert sum(lost) > 0
    async with store.read() as tx:
        stored = await tx.get_endpoint("default", "iris")
    assert (stored.status.observed_generation, stored.version) == (10, 11)


async def test_lists_have_one_order_and_can_be_paged(store: Store, make: Any) -> None:
    names = ["b", "a-b", "ab", "a", "zz"]
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace("one"))
        await tx.add_workspace(make.workspace("two"))
        for workspace in ("two", "one"):
            for name in names:
                await tx.insert_endpoint(make.endpoint(name, workspace=workspace), {})
        await tx.insert_endpoint(make.endpoint("b", workspace="one", cluster="far"), {})
        await tx.insert_endpoint(make.endpoint("x", workspace="one", model_format="onnx"), {})
    async with store.read() as tx:
        everything = [(e.workspace, e.name, e.cluster) for e in await tx.list_endpoints()]
        assert everything == sorted(everything)
        assert len(everything) == 12
        paged: list[tuple[str, str, str]] = []
        while page := await tx.list_endpoints(after=paged[-1] if paged else None, limit=2):
            paged += [(e.workspace, e.name, e.cluster) for e in page]
        assert paged == everything
        assert [e.name for e in await tx.list_endpoints("one", cluster="far")] == ["b"]
        assert [e.name for e in await tx.list_endpoints(model_format="onnx")] == ["x"]
        assert await tx.list_endpoints("nowhere") == []
        assert (await tx.count_endpoints(), await tx.count_endpoints("one")) == (12, 7)
        assert await tx.count_endpoints("nowhere") == 0


async def test_a_secret_goes_with_its_endpoint(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(make.endpoint(), {"AWS_SECRET_ACCESS_KEY": "s3cr3t/ü", "EMPTY": ""})
        assert await tx.endpoint_secret(make.endpoint().uid) == {
            "AWS_SECRET_ACCESS_KEY": "s3cr3t/ü",
            "EMPTY": "",
        }
        assert "s3cr3t" not in repr(await tx.list_endpoints())
        await tx.remove_endpoint(make.endpoint().uid)
        await tx.remove_endpoint(make.endpoint().uid)
        assert await tx.endpoint_secret(make.endpoint().uid) == {}
        assert await tx.list_endpoints() == []
        # The name is free again, and nothing of the old secret comes back with it.
        await tx.insert_endpoint(make.endpoint(), {})
        assert await tx.endpoint_secret(make.endpoint().uid) == {}


async def test_odd_characters_are_stored_or_find_nothing(store: Store, make: Any) -> None:
    endpoint = make.endpoint()
    odd = "nul \x00 half \ud800 end"
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(endpoint, {"KEY": odd})
        await tx.save_endpoint_status(endpoint.uid, 1, EndpointStatus(problem_message=odd, left=(odd,)))
        await tx.append_event(
            replace(make.event(endpoint=endpoint), message=odd, data={odd: [odd, {1}, None]})
        )
        with pytest.raises(NotFound):
            await tx.get_endpoint(odd, odd, odd)
        assert await tx.list_events(odd, odd, odd) == []
        assert await tx.find_api_key(odd) is None
    async with store.read() as tx:
        assert (await tx.get_endpoint("default", "iris")).status.problem_message.startswith("nul \x00 half")
        (event,) = await tx.list_events()
        assert event.message.startswith("nul \ufffd half")


async def test_a_transaction_is_all_or_nothing(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction that fails
        async with store.transaction() as tx:
            await tx.insert_endpoint(make.endpoint(), {"A": "b"})
            await tx.append_event(make.event(endpoint=make.endpoint()))
            raise ZeroDivisionError
    async with store.read() as tx:
        assert await tx.list_endpoints() == []
        assert await tx.list_events() == []


async def test_an_error_of_the_block_is_not_taken_for_the_databases(store: Store, make: Any) -> None:
    for error in (FileNotFoundError("mine"), TimeoutError("mine")):
        with pytest.raises(type(error), match="mine"):  # noqa: PT012 - the block is what fails
            async with store.transaction() as tx:
                await tx.add_workspace(make.workspace())
                raise error
        with pytest.raises(type(error), match="mine"):  # noqa: PT012 - the block is what fails
            async with store.read() as tx:
                assert await tx.list_workspaces() == []
                raise error


async def test_a_cancelled_writer_leaves_nothing_and_blocks_nobody(store: Store, make: Any) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with store.transaction() as tx:
            await tx.add_workspace(make.workspace("cancelled"))
            inside.set()
            while True:
                await tx.list_workspaces()

    for _ in range(3):
        inside.clear()
        task = asyncio.create_task(write())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace("after"))
        assert [workspace.name for workspace in await tx.list_workspaces()] == ["after"]


async def test_reading_does_not_wait_for_a_writer(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        async with store.read() as other:
            assert await other.list_workspaces() == []
    async with store.read() as other:
        assert len(await other.list_workspaces()) == 1


async def test_undurable_writes_are_seen_like_any_other(store: Store, make: Any) -> None:
    for number, durable in enumerate((False, True, False)):
        async with store.transaction(durable=durable) as tx:
            await tx.add_workspace(make.workspace(f"w{number}"))
    async with store.read() as tx:
        assert len(await tx.list_workspaces()) == 3
