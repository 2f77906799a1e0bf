"""What creating runs into when others change things at the same moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from inferplane.domain.access import Caller, Role
from inferplane.domain.errors import AlreadyExists
from inferplane.services import endpoints
from inferplane.services.bootstrap import ensure_installation
from inferplane.services.context import GatewayAddress, Platform
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
