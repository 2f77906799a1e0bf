"""What an installation has from its first start, and what later starts make of the Owner key's file."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inferplane.domain.access import Role
from inferplane.domain.errors import Unavailable
from inferplane.services.api_keys import digest_of, load_secrets
from inferplane.services.bootstrap import (
    adopt_owner_key,
    ensure_installation,
    ensure_local_cluster,
    ensure_owner_key,
    ensure_workspace,
    has_owner_key,
)
from inferplane.store.sql import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def clock(after: timedelta = timedelta(0)) -> Callable[[], datetime]:
    return lambda: NOW + after


_numbers = itertools.count(1)


def new_id(length: int) -> str:
    return f"{next(_numbers):0{length}d}"[-length:]


async def role_of(store: Store, key: str) -> Role | None:
    secrets = await load_secrets(store)
    async with store.read() as tx:
        found = await tx.find_api_key(digest_of(secrets, key))
    return None if found is None else found.role


async def test_the_first_start_leaves_a_key_only_its_owner_can_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "home" / "owner.key"
    value = await ensure_owner_key(store, path, clock(), new_id)
    assert path.read_text() == value + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert await role_of(store, value) is Role.OWNER
    assert [each.name for each in path.parent.iterdir()] == ["owner.key"]


async def test_later_starts_reuse_it_and_mend_its_mode(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    first = await ensure_owner_key(store, path, clock(), new_id)
    path.chmod(0o644)
    assert await ensure_owner_key(store, path, clock(), new_id) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with store.read() as tx:
        assert len(await tx.list_api_keys(None)) == 1


async def test_a_lost_file_gets_a_new_key(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    first = await ensure_owner_key(store, path, clock(), new_id)
    for content in (None, "", "not a key", "ipk_short", "ipk_" + "ü" * 43):
        path.unlink()
        if content is not None:
            path.write_text(content)
        fresh = await ensure_owner_key(store, path, clock(), new_id)
        assert fresh != first
        assert await role_of(store, fresh) is Role.OWNER
        assert path.read_text().strip() == fresh
        async with store.read() as tx:
            assert len(await tx.list_api_keys(None)) == 1, "what the lost file held opens nothing"


async def test_a_new_database_takes_over_the_key_of_the_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    first = await ensure_owner_key(store, path, clock(), new_id)
    second = await Store.open(f"sqlite:///{tmp_path / 'second.db'}")
    try:
        assert await ensure_owner_key(second, path, clock(), new_id) == first
        assert await role_of(second, first) is Role.OWNER
    finally:
        await second.close()


async def test_a_deleted_or_expired_key_does_not_come_back(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    first = await ensure_owner_key(store, path, clock(), new_id)
    second = await ensure_owner_key(store, path, clock(timedelta(days=4000)), new_id)
    assert second != first
    digest = digest_of(await load_secrets(store), second)
    async with store.transaction() as tx:
        key = await tx.find_api_key(digest)
        assert key is not None
        await tx.delete_api_key(key.id)
    third = await ensure_owner_key(store, path, clock(), new_id)
    assert third not in {first, second}
    assert await role_of(store, second) is None


async def test_a_folder_that_cannot_be_written_is_a_sentence(store: Store, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(Unavailable) as caught:
        await ensure_owner_key(store, blocked / "owner.key", clock(), new_id)
    assert str(blocked / "owner.key") in caught.value.message
    async with store.read() as tx:
        assert await tx.list_api_keys(None) == []


async def test_the_local_cluster_and_a_workspace_exist(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        await ensure_installation(store, tmp_path / "owner.key", clock(), new_id, cluster="local")
    async with store.read() as tx:
        [cluster] = await tx.list_clusters()
        [workspace] = await tx.list_workspaces()
    assert (cluster.name, cluster.engine) == ("local", "local")
    assert (workspace.name, workspace.clusters) == ("default", ("local",))


async def test_a_deleted_default_workspace_stays_deleted_while_there_are_others(store: Store) -> None:
    await ensure_local_cluster(store, clock(), cluster="local", workspace="mine")
    await ensure_local_cluster(store, clock(), cluster="local")
    async with store.read() as tx:
        assert [each.name for each in await tx.list_workspaces()] == ["mine"]


CHOSEN = "ipk_" + "c" * 43


async def test_a_chosen_owner_key_is_taken_over_by_all_who_share(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    path.write_text(f"{CHOSEN}\n")
    path.chmod(0o440)
    assert not await has_owner_key(store, clock())
    for _ in range(3):
        await adopt_owner_key(store, path, clock(), new_id)
    assert await role_of(store, CHOSEN) is Role.OWNER
    assert await has_owner_key(store, clock())
    assert stat.S_IMODE(path.stat().st_mode) == 0o440
    async with store.read() as tx:
        assert len(await tx.list_api_keys(None)) == 1


async def test_another_chosen_one_ends_the_one_before(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    path.write_text(CHOSEN)
    await adopt_owner_key(store, path, clock(), new_id)
    path.write_text(CHOSEN.replace("c", "d"))
    await adopt_owner_key(store, path, clock(), new_id)
    assert await role_of(store, CHOSEN) is None
    assert await role_of(store, CHOSEN.replace("c", "d")) is Role.OWNER


@pytest.mark.parametrize("content", [None, "", "hunter2", "ipk_short", "ipk_" + "é" * 43])
async def test_a_file_without_a_key_is_said(store: Store, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "owner.key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unavailable) as caught:
        await adopt_owner_key(store, path, clock(), new_id)
    assert "hunter2" not in str(caught.value)
    assert caught.value.field == "owner_key_file"
    assert ("is not there" in str(caught.value)) is (content is None)


async def test_an_expired_one_is_not_brought_back(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    path.write_text(CHOSEN)
    await adopt_owner_key(store, path, clock(), new_id)
    with pytest.raises(Unavailable, match="expired"):
        await adopt_owner_key(store, path, clock(timedelta(days=10_000)), new_id)


async def test_a_workspace_is_made_on_the_declared_clusters_once(store: Store) -> None:
    await ensure_workspace(store, clock(), ["main"])
    await ensure_workspace(store, clock(), ["other"])
    async with store.read() as tx:
        assert [each.clusters for each in await tx.list_workspaces()] == [("main",)]
