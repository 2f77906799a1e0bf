"""What creating runs into when others change things at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from inferplane.domain.access import Caller, Role
from inferplane.domain.errors import AlreadyExists, QuotaExceeded
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.services import endpoints
from inferplane.services.bootstrap import ensure_installation
from inferplane.services.context import GatewayAddress, Limits, Platform
from inferplane.services.endpoint_drafts import EndpointDraft, ModelDraft
from inferplane.store.sql import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class JustGoing:
    """A transaction in which the name was taken when it was written, and free when it was looked up."""

    def __init__(self, tx: Any) -> None:
        self._tx = tx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    async def insert_endpoint(self, *_: Any) -> None:
        raise AlreadyExists("taken")


class Racing:
    """The store, as it looks to somebody whose rival's row goes between two of his questions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def transaction(self, **more: Any) -> AsyncIterator[Any]:
        async with self._store.transaction(**more) as tx:
            yield JustGoing(tx)


async def test_a_name_that_gets_free_at_this_moment_is_to_be_tried_again(
    store: Store, tmp_path: Path
) -> None:
    def new_id(length: int) -> str:
        return "a" * length

    await ensure_installation(store, tmp_path / "owner.key", lambda: NOW, new_id, cluster="local")
    platform = Platform(
        store=cast("Store", Racing(store)),
        engines={},
        clock=lambda: NOW,
        gateway=GatewayAddress("http", 7080, "localhost", "127.0.0.1"),
        new_id=new_id,
    )
    draft = EndpointDraft("default", "iris", model=ModelDraft("sklearn", "/m.joblib"))
    with pytest.raises(AlreadyExists) as caught:
        await endpoints.create(platform, Caller("id", "owner", Role.OWNER, ""), draft)
    assert caught.value.reason == "EndpointTerminating"
    assert caught.value.next_action == "Try again in a moment."


async def test_a_name_that_is_taken_on_another_cluster_gets_a_host_of_its_own(
    store: Store, tmp_path: Path
) -> None:
    chance = Random(1)

    def new_id(length: int) -> str:
        return "".join(chance.choices("abcdef", k=length))

    await ensure_installation(store, tmp_path / "owner.key", lambda: NOW, new_id, cluster="local")
    clusters = ("local", "east", "west")
    async with store.transaction() as tx:
        for name in clusters[1:]:
            await tx.put_cluster(Cluster(name, "local", NOW))
        await tx.add_workspace(Workspace("team", clusters, NOW))
        await tx.add_workspace(Workspace("other", clusters, NOW))
    platform = Platform(
        store=store,
        engines={},
        clock=lambda: NOW,
        gateway=GatewayAddress("http", 7080, "localhost", "127.0.0.1"),
        new_id=new_id,
    )
    owner = Caller("id", "owner", Role.OWNER, "")
    model = ModelDraft("sklearn", "/m.joblib")

    async def create(workspace: str, name: str, cluster: str) -> str:
        await endpoints.create(platform, owner, EndpointDraft(workspace, name, model=model, cluster=cluster))
        return await host_cluster(workspace, name, cluster)

    async def host_cluster(workspace: str, name: str, cluster: str) -> str:
        async with store.read() as tx:
            return (await tx.get_endpoint(workspace, name, cluster)).host_cluster

    assert await create("team", "iris", "local") == ""
    assert await create("team", "iris-2", "west") == ""
    assert await create("other", "iris", "east") == "", "names belong to workspaces"
    assert await create("team", "iris", "east") == "east"
    await endpoints.delete(platform, owner, "team", "iris", "local")
    assert await host_cluster("team", "iris", "east") == "east", "an address never changes"
    assert await create("team", "iris", "west") == "west"
    for cluster in ("east", "west"):
        await endpoints.delete(platform, owner, "team", "iris", cluster)
    async with store.transaction() as tx:
        await tx.remove_endpoint((await tx.get_endpoint("team", "iris", "west")).uid)
    assert await create("team", "iris", "west") == "", "what is being deleted has no address any more"


async def test_workspaces_that_create_at_once_do_not_both_get_the_last_place(
    postgres_url: str, tmp_path: Path
) -> None:
    """On PostgreSQL two transactions count side by side; each holds only its own workspace."""
    chance = Random(1)

    def new_id(length: int) -> str:
        return "".join(chance.choices("abcdef", k=length))

    workspaces = [f"team-{number}" for number in range(6)]
    store = await Store.open(postgres_url)
    try:
        await ensure_installation(store, tmp_path / "owner.key", lambda: NOW, new_id, cluster="local")
        async with store.transaction() as tx:
            for name in workspaces:
                await tx.add_workspace(Workspace(name, ("local",), NOW))
        platform = Platform(
            store=store,
            engines={},
            clock=lambda: NOW,
            gateway=GatewayAddress("http", 7080, "localhost", "127.0.0.1"),
            new_id=new_id,
            limits=Limits(endpoints_max=3),
        )
        owner = Caller("id", "owner", Role.OWNER, "")
        drafts = [
            EndpointDraft(each, "iris", model=ModelDraft("sklearn", "/m.joblib")) for each in workspaces
        ]
        ends = await asyncio.gather(
            *(endpoints.create(platform, owner, draft) for draft in drafts), return_exceptions=True
        )
        async with store.read() as tx:
            assert await tx.count_endpoints() == 3
    finally:
        await store.close()
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert [type(end) for end in refused] == [QuotaExceeded] * 3, refused
