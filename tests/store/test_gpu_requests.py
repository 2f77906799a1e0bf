"""GPU requests in the store, and what they are decided from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from inferplane.domain.errors import AlreadyExists, Conflict, NotFound, StaleVersion
from inferplane.domain.gpr_template import BoundCluster, GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import (
    GpuRequest,
    Grant,
    ProvisioningStatus,
    draining,
    ended,
    granted,
    refused,
    reprioritised,
    requeued,
    started,
)
from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.store.sql import STATEMENT_KEYS_MAX, Change, Store

Until = Callable[..., Any]
GRANT = Grant("local", (("node-0", (0, 1)), ("node-1", (3,))), "A100", "big", 80)


async def _begin(store: Store, make: Any, *requests: GpuRequest) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        for request in requests:
            await tx.insert_gpu_request(request)


async def test_a_request_comes_back_as_it_went_in_through_its_whole_life(store: Store, make: Any) -> None:
    request = make.gpu_request(endpoint="iris")
    await _begin(store, make, request)
    life: tuple[Callable[[GpuRequest], GpuRequest], ...] = (
        lambda held: granted(held, GRANT, make.at(1)),
        lambda held: started(held, make.at(2)),
        lambda held: draining(held, ProvisioningStatus.EVICTED, make.at(3), evicted_by="gpr-other"),
        lambda held: ended(held, make.at(4)),
        lambda held: requeued(held, make.at(5)),
    )
    for change in life:
        async with store.transaction() as tx:
            assert await tx.get_gpu_request(request.id) == request
            changed = change(request)
            version = await tx.save_gpu_request(changed)
        assert version == request.version + 1
        request = replace(changed, version=version)
    async with store.read() as tx:
        assert await tx.list_gpu_requests() == [request]


async def test_an_endpoints_requests_keep_the_order_in_which_they_came_whatever_the_clock_did(
    store: Store, make: Any
) -> None:
    await _begin(store, make)
    seconds = {"c": 0, "b": 0, "a": -3600, "d": -1800, "e": 5}
    async with store.transaction() as tx:
        for request_id, at in seconds.items():
            await tx.insert_gpu_request(make.gpu_request(request_id, endpoint="iris", seconds=at))
            await tx.insert_gpu_request(make.gpu_request(f"own-{request_id}", seconds=at))
    async with store.read() as tx:
        of_iris = await tx.list_gpu_requests(endpoint_uid="iris-default-local")
        assert [each.id for each in of_iris] == list(seconds)
        assert [each.queued_at for each in of_iris] == [make.at(at) for at in seconds.values()]
        assert (await tx.get_gpu_request("own-a")).created_at == make.at(-3600)  # of no endpoint: as it says
        assert (await tx.get_gpu_request("e")).created_at == make.at(5)


async def test_an_id_is_taken_once_and_a_workspace_must_exist(store: Store, make: Any) -> None:
    await _begin(store, make, make.gpu_request())
    async with store.transaction() as tx:
        with pytest.raises(AlreadyExists, match="gpr-00000001-0001 exists already"):
            await tx.insert_gpu_request(make.gpu_request())
    with pytest.raises(NotFound, match="workspace nowhere does not exist"):
        async with store.transaction() as tx:
            await tx.insert_gpu_request(make.gpu_request("other", workspace="nowhere"))
    async with store.read() as tx:
        with pytest.raises(NotFound, match="no GPU request gpr-none"):
            await tx.get_gpu_request("gpr-none")


async def test_of_two_writers_one_reads_again(store: Store, make: Any) -> None:
    request = make.gpu_request()
    await _begin(store, make, request)

    async def write(priority: int) -> bool:
        try:
            async with store.transaction() as tx:
                await tx.save_gpu_request(reprioritised(request, priority))
        except StaleVersion:
            return False
        return True

    written = await asyncio.gather(*(write(number) for number in range(1, 9)))
    assert written.count(True) == 1
    async with store.transaction() as tx:
        stored = await tx.get_gpu_request(request.id)
        assert (stored.priority, stored.version) == (1 + written.index(True), 2)
        await tx.delete_gpu_request(request.id)
        await tx.delete_gpu_request(request.id)
        with pytest.raises(StaleVersion, match="no longer at version 2"):
            await tx.save_gpu_request(stored)


async def test_lists_have_one_order_and_go_on_from_where_they_were(store: Store, make: Any) -> None:
    early, twin_a, twin_b, late = (
        make.gpu_request("z", seconds=1),
        make.gpu_request("a", seconds=2, endpoint="iris"),
        make.gpu_request("b", seconds=2),
        make.gpu_request("A", seconds=3, workspace="other", endpoint="iris"),
    )
    over = refused(make.gpu_request("over", seconds=9), "no such cluster", make.at(9))
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.add_workspace(make.workspace("other"))
        for request in (over, late, twin_b, twin_a, early):
            await tx.insert_gpu_request(request)
    async with store.read() as tx:
        assert await tx.list_gpu_requests() == [early, twin_a, twin_b, late, over]
        assert await tx.list_gpu_requests(live_only=True) == [early, twin_a, twin_b, late]
        assert await tx.list_gpu_requests(workspace="other") == [late]
        assert await tx.list_gpu_requests(endpoint_uid="iris-default-local") == [twin_a]
        assert await tx.list_gpu_requests(workspace="default", live_only=True, limit=2) == [early, twin_a]
        assert await tx.list_gpu_requests(after_id="a", limit=2) == [twin_b, late]
        assert await tx.list_gpu_requests(newest=2) == [late, over]
        assert await tx.list_gpu_requests(workspace="default", newest=3) == [twin_a, twin_b, over]
        assert await tx.list_gpu_requests(live_only=True, newest=99) == [early, twin_a, twin_b, late]
        assert await tx.list_gpu_requests(after_id="over") == []
        with pytest.raises(NotFound):
            await tx.list_gpu_requests(after_id="gone")


async def test_what_is_said_of_a_wait_does_not_disturb_its_writers(store: Store, make: Any) -> None:
    request, other = make.gpu_request("one"), make.gpu_request("two", endpoint="iris")
    await _begin(store, make, request, other)
    note = WaitNote(3, "position 3; 1 GPU is needed; 0 are free", make.at(60), "nobody new comes", make.now)
    heard: list[Change] = []
    store.subscribe(heard.append)
    async with store.transaction(durable=False) as tx:
        await tx.save_wait_notes({"one": note, "two": replace(note, position=None), "gone": note})
        assert await tx.get_gpu_request("one") == request
        assert await tx.wait_notes() == {"one": note, "two": replace(note, position=None)}
        assert await tx.wait_notes(["two", "gone"]) == {"two": replace(note, position=None)}
    # Only the endpoint's controller has something to do; who writes notes is not woken by them.
    assert heard == [Change("default", "iris", other.endpoint_uid)]
    async with store.transaction(durable=False) as tx:
        await tx.save_wait_note("two", replace(note, position=None, at=make.at(5)))
        assert (await tx.wait_notes(["two"]))["two"].at == make.at(5)
    assert len(heard) == 1  # the same was said again
    async with store.transaction(durable=False) as tx:
        await tx.save_wait_note("two", replace(note, position=2))
    assert len(heard) == 2
    async with store.transaction() as tx:
        await tx.save_wait_note("two", None)
        assert list(await tx.wait_notes()) == ["one"]
        held = granted(request, GRANT, make.now)
        held = replace(held, version=await tx.save_gpu_request(held))
        assert await tx.wait_notes() == {}
        await tx.save_wait_note("one", note)  # too late: it waits no longer
        held = refused(requeued(_evicted(held, make), make.now), "", make.now)
        await tx.save_gpu_request(requeued(held, make.now))
        assert await tx.wait_notes() == {}


def _evicted(request: GpuRequest, make: Any) -> GpuRequest:
    return ended(draining(request, ProvisioningStatus.EVICTED, make.now), make.now)


async def test_many_waits_are_noted_at_once(store: Store, make: Any) -> None:
    requests = [make.gpu_request(f"gpr-{number:04}") for number in range(STATEMENT_KEYS_MAX + 2)]
    await _begin(store, make, *requests)
    notes = {
        request.id: WaitNote(number, "said", None, "", make.now) for number, request in enumerate(requests)
    }
    async with store.transaction(durable=False) as tx:
        await tx.save_wait_notes(notes)
    async with store.read() as tx:
        assert await tx.wait_notes() == notes
        assert await tx.wait_notes(notes) == notes
        assert await tx.wait_notes([]) == {}


async def test_a_workspace_with_requests_that_have_not_ended_stays(store: Store, make: Any) -> None:
    request = make.gpu_request()
    await _begin(store, make, request)
    async with store.transaction() as tx:
        await tx.put_policy(WorkspacePolicy("default"))
        await tx.insert_binding(GprTemplateBinding("default"))
    with pytest.raises(Conflict, match="workspace default still has GPU requests that have not ended"):
        async with store.transaction() as tx:
            await tx.delete_workspace("default")
    async with store.transaction() as tx:
        await tx.save_gpu_request(refused(request, "never mind", make.now))
        await tx.delete_workspace("default")
    async with store.read() as tx:
        assert await tx.list_gpu_requests() == []
        assert await tx.list_policies() == []
        assert await tx.list_bindings() == []


async def test_a_refused_delete_keeps_the_history(store: Store, make: Any) -> None:
    over = refused(make.gpu_request(), "no such cluster", make.now)
    await _begin(store, make, over)
    async with store.transaction() as tx:
        await tx.insert_endpoint(make.endpoint(), {})
    with pytest.raises(Conflict, match="still has endpoints"):
        async with store.transaction() as tx:
            await tx.delete_workspace("default")
    async with store.read() as tx:
        assert await tx.list_gpu_requests() == [over]


async def test_a_request_and_the_deletion_of_its_workspace_do_not_both_happen(
    store: Store, make: Any
) -> None:
    await _begin(store, make)

    async def insert() -> bool:
        try:
            async with store.transaction() as tx:
                await tx.insert_gpu_request(make.gpu_request())
        except NotFound:
            return False
        return True

    async def remove() -> bool:
        try:
            async with store.transaction() as tx:
                await tx.delete_workspace("default")
        except Conflict:
            return False
        return True

    inserted, removed = await asyncio.gather(insert(), remove())
    assert inserted != removed
    async with store.read() as tx:
        assert len(await tx.list_gpu_requests()) == (1 if inserted else 0)


async def test_old_history_goes_and_what_lives_stays(store: Store, make: Any) -> None:
    ended_ones = [refused(make.gpu_request(f"e{n}", seconds=n), "", make.at(n)) for n in range(5)]
    await _begin(store, make, make.gpu_request("live", seconds=-1), *ended_ones)
    async with store.transaction() as tx:
        assert await tx.prune_gpu_requests() == 0
        assert await tx.prune_gpu_requests(kept_max=2) == 3
        assert await tx.prune_gpu_requests(kept_max=2) == 0
        assert [request.id for request in await tx.list_gpu_requests()] == ["live", "e3", "e4"]


async def test_changes_of_requests_are_heard(
    database_url: str, store: Store, make: Any, until: Until
) -> None:
    """At once from this process; from others by their events."""
    own, with_endpoint = make.gpu_request("own"), make.gpu_request("iris-gpr", endpoint="iris")
    heard: list[Change] = []
    await _begin(store, make)
    store.subscribe(heard.append)
    async with store.transaction() as tx:
        await tx.insert_gpu_request(own)
        await tx.insert_gpu_request(with_endpoint)
        assert heard == []
    first, second = (
        Change("default", "", "", "own"),
        Change("default", "iris", "iris-default-local", "iris-gpr"),
    )
    assert heard == [first, second]
    async with store.transaction() as tx:
        await tx.save_gpu_request(reprioritised(own, 7))
        await tx.delete_gpu_request("iris-gpr")
    assert heard == [first, second] * 2
    other = await Store.open(database_url)
    try:
        async with other.transaction() as tx:
            await tx.append_event(
                replace(make.event("GprReprioritised"), workspace="default", gpu_request_id="own")
            )
        await until(lambda: len(heard) > 4)
    finally:
        await other.close()
    assert heard[4:] == [first]


async def test_policies(store: Store, make: Any) -> None:
    policy = WorkspacePolicy(
        "default", 5, 200, 10, 20, timedelta(days=1, microseconds=1), ("A100",), 8, 640, 3, True, True, True
    )
    await _begin(store, make)
    heard: list[Change] = []
    store.subscribe(heard.append)
    async with store.transaction() as tx:
        assert await tx.get_policy("default") == WorkspacePolicy("default")
        assert await tx.get_policy("nowhere") == WorkspacePolicy("nowhere")
        assert await tx.list_policies() == []
        await tx.put_policy(WorkspacePolicy("default", max_queued=1))
        await tx.put_policy(policy)
        assert await tx.get_policy("default") == policy
        assert await tx.list_policies() == [policy]
    assert heard == [Change("default", "", "")]
    with pytest.raises(NotFound, match="workspace nowhere does not exist"):
        async with store.transaction() as tx:
            await tx.put_policy(WorkspacePolicy("nowhere"))


async def test_templates(store: Store, make: Any) -> None:
    big = GprTemplate(
        "big", "local", 8, 2, 80, "A100", "a2", timedelta(hours=1), 150, True, timedelta(minutes=5)
    )
    small = GprTemplate("a-small", "far")
    async with store.transaction() as tx:
        await tx.insert_template(big)
        await tx.insert_template(small)
        with pytest.raises(AlreadyExists, match="GPR template big exists already"):
            await tx.insert_template(big)
        assert await tx.list_templates() == [small, big]
        changed = replace(big, gpus_per_node=4, cluster="far")
        await tx.update_template(changed)
        assert await tx.get_template("big") == changed
        await tx.delete_template("big")
        await tx.delete_template("big")
        with pytest.raises(NotFound, match="GPR template big does not exist"):
            await tx.get_template("big")
        with pytest.raises(NotFound):
            await tx.update_template(big)


async def test_bindings(store: Store, make: Any) -> None:
    await _begin(store, make)
    binding = GprTemplateBinding("default", (BoundCluster("local", "big", ("big", "small")),), True)
    async with store.transaction() as tx:
        with pytest.raises(NotFound, match="workspace default has no GPR template binding"):
            await tx.get_binding("default")
        with pytest.raises(NotFound):
            await tx.update_binding(binding)
        await tx.insert_binding(GprTemplateBinding("default"))
        with pytest.raises(AlreadyExists, match="workspace default has a GPR template binding already"):
            await tx.insert_binding(binding)
        await tx.update_binding(binding)
        assert await tx.get_binding("default") == binding
        assert await tx.list_bindings() == [binding]
        await tx.delete_binding("default")
        await tx.delete_binding("default")
        assert await tx.list_bindings() == []
    with pytest.raises(NotFound, match="workspace nowhere does not exist"):
        async with store.transaction() as tx:
            await tx.insert_binding(GprTemplateBinding("nowhere"))


async def test_nodes_of_a_cluster_are_replaced_and_news_is_told(store: Store, make: Any) -> None:
    gpus = tuple(Gpu(index, f"GPU-{index}", "A100-SXM4-80GB", healthy=index != 1) for index in range(2))
    one = Node("b", "node-1", "a2", "A100", 2, 80, gpus=gpus, region="eu", simulated=True)
    two = Node("b", "node-0", "a2", "A100", 2, 80, NodeHealth.UNSCHEDULABLE)
    far = Node("a", "node-9", "l4", "L4", 1, 24)
    heard: list[Change] = []
    store.subscribe(heard.append)
    async with store.transaction() as tx:
        assert await tx.save_nodes("b", [one, two])
        assert await tx.save_nodes("a", [far])
    assert heard == [Change("", "", "")]
    async with store.transaction() as tx:
        assert await tx.list_nodes() == [far, two, one]
        assert await tx.list_nodes("b") == [two, one]
        assert await tx.list_nodes("none") == []
        assert not await tx.save_nodes("b", [two, one])
        assert not await tx.save_nodes("none", [])
    assert len(heard) == 1  # looked again, and nothing was new
    async with store.transaction() as tx:
        assert await tx.save_nodes("b", [replace(one, health=NodeHealth.UNHEALTHY)])
        assert [node.health for node in await tx.list_nodes("b")] == [NodeHealth.UNHEALTHY]
        assert await tx.save_nodes("a", [])
        assert await tx.list_nodes("a") == []
    assert len(heard) == 2


async def test_usage(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        assert await tx.load_usage() == {}
        assert await tx.usage_at() is None
        await tx.save_usage({"default": 1.5, "other": 0.1 + 0.2}, make.now)
        await tx.save_usage({"default": 7.25}, make.at(30))
    async with store.read() as tx:
        assert await tx.load_usage() == {"default": 7.25}
        assert await tx.usage_at() == make.at(30)
