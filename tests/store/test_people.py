"""Workspaces, clusters, keys, answers that may be asked for again, secrets of the installation."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inferplane.domain.cluster import ClusterConnection, ClusterReport
from inferplane.domain.errors import AlreadyExists, Conflict, NotFound
from inferplane.domain.workspace import Cluster
from inferplane.store.sql import INSTALLATION_SECRET_BYTES, Store


async def test_workspaces(store: Store, make: Any) -> None:
    b, a = make.workspace("b"), make.workspace("a")
    async with store.transaction() as tx:
        await tx.add_workspace(b)
        await tx.add_workspace(a)
        with pytest.raises(AlreadyExists, match="workspace a exists already"):
            await tx.add_workspace(a)
        changed = replace(a, clusters=("x", "y"), namespaces=(), email="new")
        await tx.update_workspace(changed)
        with pytest.raises(NotFound):
            await tx.update_workspace(make.workspace("c"))
    async with store.read() as tx:
        assert await tx.list_workspaces() == [changed, b]
        assert await tx.get_workspace("a") == changed
        with pytest.raises(NotFound, match="workspace c does not exist"):
            await tx.get_workspace("c")


async def test_a_workspace_with_endpoints_stays(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())
        await tx.insert_endpoint(make.endpoint(), {})
    with pytest.raises(Conflict, match="workspace default still has endpoints"):
        async with store.transaction() as tx:
            await tx.delete_workspace("default")
    async with store.transaction() as tx:
        await tx.remove_endpoint(make.endpoint().uid)
        await tx.delete_workspace("default")
        await tx.delete_workspace("default")
        assert await tx.list_workspaces() == []


async def test_clusters(store: Store, make: Any) -> None:
    local = Cluster("local", "local", make.now, "localhost")
    async with store.transaction() as tx:
        await tx.put_cluster(local)
        await tx.put_cluster(Cluster("far", "kserve", make.now))
        await tx.put_cluster(Cluster("local", "simulated", make.at(60), "example.com"))
    async with store.read() as tx:
        assert [cluster.name for cluster in await tx.list_clusters()] == ["far", "local"]
        assert await tx.get_cluster("local") == replace(local, engine="simulated", domain="example.com")
        with pytest.raises(NotFound, match="cluster none is not registered"):
            await tx.get_cluster("none")


async def test_a_cluster_s_kubeconfig_lies_apart_and_goes_with_it(store: Store, make: Any) -> None:
    far = Cluster(
        "far", "kserve", make.now, ingress_address="192.0.2.1", connection=ClusterConnection(context="c")
    )
    report = ClusterReport(make.now, reachable=True, since=make.now, version="v1.36.2")
    async with store.transaction() as tx:
        await tx.put_cluster(far)
        await tx.put_cluster_kubeconfig("far", "users: []")
        await tx.save_cluster_report("far", report)
        await tx.save_cluster_report("gone", report)
        await tx.put_cluster(replace(far, domain="example.com"))
    async with store.read() as tx:
        assert await tx.get_cluster("far") == replace(far, domain="example.com", report=report)
        assert await tx.cluster_kubeconfig("far") == "users: []"
        assert await tx.cluster_kubeconfig("gone") == ""
    async with store.transaction() as tx:
        await tx.delete_cluster("far")
    async with store.transaction() as tx:
        await tx.put_cluster(far)
        assert await tx.cluster_kubeconfig("far") == ""
        assert (await tx.get_cluster("far")).report is None


async def test_api_keys(store: Store, make: Any) -> None:
    owner, editor = make.key("k2"), replace(make.key("k1", workspace="w"), created_at=make.at(1))
    async with store.transaction() as tx:
        await tx.add_api_key(editor)
        await tx.add_api_key(owner)
        for twice in (owner, replace(owner, id="k3")):
            with pytest.raises(AlreadyExists):
                await tx.add_api_key(twice)
    async with store.read() as tx:
        assert await tx.find_api_key(owner.digest) == owner
        assert await tx.find_api_key("unknown") is None
        assert await tx.get_api_key("k1") == editor
        assert await tx.list_api_keys(None) == [owner, editor]
        assert await tx.list_api_keys("w") == [editor]
    async with store.transaction() as tx:
        await tx.touch_api_key("k2", make.at(9))
        await tx.touch_api_key("k2", make.at(3))
        assert await tx.get_api_key("k2") == replace(owner, last_used_at=make.at(9))
        await tx.delete_api_key("k2")
        await tx.delete_api_key("k2")
        with pytest.raises(NotFound):
            await tx.get_api_key("k2")


async def test_an_answer_is_remembered_once_per_key(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        await tx.remember_answer("k1", "abc", "digest", '{"a":1}', make.now)
        await tx.remember_answer("k2", "abc", "other", "{}", make.now)
        with pytest.raises(AlreadyExists):
            await tx.remember_answer("k1", "abc", "digest", "{}", make.now)
    async with store.read() as tx:
        assert await tx.recall_answer("k1", "abc") == ("digest", '{"a":1}')
        assert await tx.recall_answer("k2", "abc") == ("other", "{}")
        assert await tx.recall_answer("k1", "xyz") is None


async def test_of_two_same_requests_at_once_one_is_carried_out(store: Store, make: Any) -> None:
    async def request(number: int) -> bool:
        try:
            async with store.transaction() as tx:
                await tx.append_event(make.event(str(number)))
                await tx.remember_answer("k", "same", "d", str(number), make.now)
        except AlreadyExists:
            return False
        return True

    done = await asyncio.gather(*(request(number) for number in range(6)))
    assert done.count(True) == 1
    async with store.read() as tx:
        answer = await tx.recall_answer("k", "same")
        assert [("d", event.kind) for event in await tx.list_events()] == [answer]


async def test_old_answers_are_forgotten(store: Store, make: Any) -> None:
    async with store.transaction() as tx:
        for number in range(5):
            await tx.remember_answer("k", str(number), "d", "a", make.at(number))
    await store.prune_events(answers_max=2)
    async with store.read() as tx:
        known = [number for number in range(5) if await tx.recall_answer("k", str(number))]
    assert known == [3, 4]


async def test_an_installation_has_one_secret_however_many_ask_first(database_url: str) -> None:
    stores = await asyncio.gather(*(Store.open(database_url) for _ in range(4)))
    try:

        async def ask(store: Store) -> bytes:
            async with store.transaction() as tx:
                return await tx.installation_secret("tokens")

        answers = await asyncio.gather(*(ask(store) for store in stores))
        async with stores[0].transaction() as tx:
            other = await tx.installation_secret("other")
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert len(set(answers)) == 1
    assert len(answers[0]) == len(other) == INSTALLATION_SECRET_BYTES
    assert other != answers[0]


async def test_of_those_who_count_what_a_workspace_has_one_comes_after_the_other(
    store: Store, make: Any
) -> None:
    async with store.transaction() as tx:
        await tx.add_workspace(make.workspace())

    async def add_one(number: int) -> int:
        async with store.transaction() as tx:
            await tx.hold_workspace("default")
            known = len(await tx.list_gpu_requests(workspace="default"))
            await tx.insert_gpu_request(make.gpu_request(f"gpr-{number}"))
        return known

    assert sorted(await asyncio.gather(*map(add_one, range(8)))) == list(range(8))
    async with store.transaction() as tx:
        with pytest.raises(NotFound, match="workspace nowhere does not exist"):
            await tx.hold_workspace("nowhere")
