"""How often the database is asked for a key, and when it must be."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from inferplane.domain.access import Caller, Role
from inferplane.domain.errors import Unauthenticated
from inferplane.services import api_keys
from inferplane.services.bootstrap import ensure_owner_key
from inferplane.services.context import GatewayAddress, Platform
from inferplane.services.key_memory import KeyMemory
from inferplane.store.sql import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OWNER = Caller("id", "owner", Role.OWNER, "")


class Counting:
    """The store, with its readings counted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.readings = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self) -> AbstractAsyncContextManager[Any]:
        self.readings += 1
        return self._store.read()


class World:
    """A platform whose moments are set by hand, and its Owner's key."""

    def __init__(self, store: Counting) -> None:
        self.store = store
        self.seconds = 0.0
        self.platform = Platform(
            store=cast("Store", store),
            engines={},
            clock=lambda: NOW + timedelta(seconds=self.seconds),
            gateway=GatewayAddress("http", 7080, "localhost", "127.0.0.1"),
            new_id=lambda length: "a" * length,
            keys=KeyMemory(lambda: self.seconds),
        )


async def test_calls_of_one_moment_ask_the_database_once_and_a_deletion_counts_at_once(
    store: Store, tmp_path: Path
) -> None:
    world = World(Counting(store))
    value = await ensure_owner_key(store, tmp_path / "key", world.platform.clock, world.platform.new_id)
    secrets = await api_keys.load_secrets(store)
    for _ in range(20):
        token, key = await api_keys.exchange(world.platform, secrets, value)
        assert (await api_keys.identify(world.platform, secrets, token)).id == key.id
    assert world.store.readings == 2

    world.seconds = 1.5
    await api_keys.identify(world.platform, secrets, token)
    assert world.store.readings == 3

    await api_keys.delete(world.platform, secrets, OWNER, value)
    with pytest.raises(Unauthenticated):
        await api_keys.identify(world.platform, secrets, token)
    with pytest.raises(Unauthenticated):
        await api_keys.exchange(world.platform, secrets, value)


async def test_its_use_is_noted_once_though_the_record_is_remembered(store: Store, tmp_path: Path) -> None:
    world = World(Counting(store))
    value = await ensure_owner_key(store, tmp_path / "key", world.platform.clock, world.platform.new_id)
    secrets = await api_keys.load_secrets(store)
    _, key = await api_keys.exchange(world.platform, secrets, value)
    assert key.last_used_at is None
    await api_keys.note_use(world.platform, key)
    _, key = await api_keys.exchange(world.platform, secrets, value)
    assert key.last_used_at == NOW
    assert world.store.readings == 1


async def test_what_another_process_deleted_ends_within_a_second(store: Store, tmp_path: Path) -> None:
    world = World(Counting(store))
    value = await ensure_owner_key(store, tmp_path / "key", world.platform.clock, world.platform.new_id)
    secrets = await api_keys.load_secrets(store)
    _, key = await api_keys.exchange(world.platform, secrets, value)
    async with store.transaction() as tx:  # as another process does: nobody tells our memory
        await tx.delete_api_key(key.id)
    world.seconds = 1.0
    with pytest.raises(Unauthenticated):
        await api_keys.exchange(world.platform, secrets, value)
