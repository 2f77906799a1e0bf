"""Finding the platform of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferplane import Client, ConfigurationError, UnreachableError
from inferplane.client.local import running_at
from inferplane.locks import acquire_lock
from inferplane.settings import Settings


def test_only_a_platform_that_lives_is_found(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert running_at(settings) == ""
    lock = acquire_lock(settings.lock_path)
    assert lock is not None
    assert running_at(settings) == ""  # it has not said yet where it is
    settings.api_url_path.write_text("http://127.0.0.1:8081\n")
    assert running_at(settings) == "http://127.0.0.1:8081"
    os.close(lock)
    assert running_at(settings) == ""


def test_the_owner_key_is_not_offered_to_whoever_has_taken_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a platform that was killed has left, and an address that only looks like this machine's."""
    monkeypatch.setenv("INFERPLANE_HOME", str(tmp_path))
    monkeypatch.delenv("INFERPLANE_API_URL", raising=False)
    monkeypatch.delenv("INFERPLANE_API_KEY", raising=False)
    (tmp_path / "owner.key").write_text("ipk_owner")
    (tmp_path / "api.url").write_text("http://127.0.0.1:7070\n")
    with Client() as client, pytest.raises(UnreachableError, match="no platform runs with the home folder"):
        client.list_clusters()
    with (
        Client("http://127.0.0.1:7070") as client,
        pytest.raises(ConfigurationError, match="no platform runs with the home folder"),
    ):
        client.list_clusters()
